PYTHON ?= python3
PY := .venv/bin/python
INSTALLED := .venv/.installed

SEED ?= 0
DEMO ?= runs/demo
BUNDLE := bundles/lung_ct_classification
CONFIGS := $(BUNDLE)/configs
RUN_BUNDLE := $(PY) -m monai.bundle run --bundle_root $(BUNDLE)
DATA := $(DEMO)/phantoms-$(SEED)
TRAINED := --dataset_dir $(DATA) --output_dir $(DEMO) --seed $(SEED)
TRAIN := $(CONFIGS)/train.yaml','$(CONFIGS)/demo.yaml

.PHONY: demo test lint bench clean

demo: $(DATA)/.complete
	$(RUN_BUNDLE) --config_file "['$(TRAIN)']" $(TRAINED)
	$(RUN_BUNDLE) --config_file "['$(TRAIN)','$(CONFIGS)/evaluate.yaml']" $(TRAINED)
	$(RUN_BUNDLE) --config_file "['$(CONFIGS)/inference.yaml','$(CONFIGS)/demo.yaml']" --dataset_dir $(DATA)/scans \
		--output_dir $(DEMO)/inference --checkpoint $(DEMO)/best.pt --cache_dir $(DEMO)/cache
	@echo
	@echo "Report:       $(DEMO)/report.html"
	@echo "Numbers:      $(DEMO)/metrics.json  $(DEMO)/predictions.csv (test patients)"
	@echo "Inference:    $(DEMO)/inference/predictions.csv (all scans of the folder)"
	@echo "Curves:       .venv/bin/tensorboard --logdir $(DEMO)/tensorboard"

$(DATA)/.complete: | $(INSTALLED)
	rm -rf $(@D)
	$(PY) -m monai_pipelines phantoms lung-ct $(@D) --patients 480 --seed $(SEED) --matrix 128 --slice-mm 6
	touch $@

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(INSTALLED)
	$(PY) benchmarks/ct_chain.py

clean:
	rm -rf .venv runs build dist .mypy_cache .pytest_cache .ruff_cache

# No stamp, no trust: an install that was cut short starts again from an empty folder.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer wanted: make PYTHON=python3.11 ...")'
	test -e $@ || $(PYTHON) -m venv --clear .venv
	rm -f $@
	$(PY) -m pip install -r requirements.txt
	touch $@
