PYTHON ?= python3
PY := .venv/bin/python
INSTALLED := .venv/.installed

BUNDLE ?= lung_ct_classification
SEED ?= 0
OVERLAY ?=
DEMO ?= runs/demo/$(BUNDLE)$(if $(OVERLAY),-$(OVERLAY))

CONFIGS := bundles/$(BUNDLE)/configs
RUN_BUNDLE := $(PY) -m monai.bundle run --bundle_root bundles/$(BUNDLE)
DATA := $(DEMO)/phantoms-$(SEED)
TRAINED := --dataset_dir $(DATA) --output_dir $(DEMO) --seed $(SEED)
AND := ','
SMALL := $(CONFIGS)/demo.yaml$(if $(OVERLAY),$(AND)$(CONFIGS)/$(OVERLAY).yaml)
TRAIN := $(CONFIGS)/train.yaml$(AND)$(SMALL)

# What each demo is trained on, and what its inference gets.
PHANTOMS_lung_ct_classification := lung-ct $(DATA) --patients 480 --matrix 128 --slice-mm 6
PHANTOMS_chest_xray_classification := chest-xray $(DATA) --patients 1000
PHANTOMS_colorectal_histology_classification := histology-tiles $(DATA) --per-class 60
PHANTOMS_fundus_classification := fundus $(DATA) --patients 200
PHANTOMS_medmnist_classification := pathmnist $(DATA)
PHANTOMS_lung_nodule_ct_detection := lung-ct $(DATA) --patients 150 --matrix 128 --slice-mm 5 --lesion-mm 18 30
PHANTOMS_chest_xray_detection := chest-xray $(DATA) --patients 400
PHANTOMS_histology_slide_classification := slides $(DATA) --slides 120
# Of another seed, for the inference; where there are none, it gets those of the training.
NEW_lung_nodule_ct_detection := lung-ct $(DATA)-new --patients 8 --matrix 128 --slice-mm 5 --lesion-mm 18 30
NEW_histology_slide_classification := slides $(DATA)-new --slides 4
IMAGES_lung_ct_classification := $(DATA)/scans
IMAGES_lung_nodule_ct_detection := $(DATA)-new/scans
IMAGES_medmnist_classification := $(DATA)/pathmnist.npz
IMAGES_histology_slide_classification := $(DATA)-new/slides
CACHE := $(if $(filter medmnist% histology_slide%,$(BUNDLE)),,--cache_dir $(DEMO)/cache)
IMAGES := $(or $(IMAGES_$(BUNDLE)),$(DATA))

# Slides want a tile network: that of the tile bundle's demo, on twice as many tiles.
TILES := bundles/colorectal_histology_classification
ifeq ($(BUNDLE),histology_slide_classification)
BACKBONE := $(DEMO)/backbone-$(SEED)/best.pt
WITH_BACKBONE := --backbone_weights $(BACKBONE)
demo: $(BACKBONE)
endif

.PHONY: demo test nightly lint bench clean

demo: $(DATA)/.complete $(if $(NEW_$(BUNDLE)),$(DATA)-new/.complete)
	$(RUN_BUNDLE) --config_file "['$(TRAIN)']" $(TRAINED) $(WITH_BACKBONE) --overwrite True
	$(RUN_BUNDLE) --run_id evaluate --config_file "['$(TRAIN)']" $(TRAINED) $(WITH_BACKBONE)
	$(RUN_BUNDLE) --config_file "['$(CONFIGS)/inference.yaml$(AND)$(SMALL)']" --dataset_dir $(IMAGES) \
		--output_dir $(DEMO)/inference --checkpoint $(DEMO)/best.pt $(CACHE) $(WITH_BACKBONE)
	@echo
	@echo "Report:       $(DEMO)/report.html"
	@echo "Numbers:      $(DEMO)/metrics.json  $(DEMO)/predictions.csv (held out)"
	@echo "Inference:    $(DEMO)/inference/predictions.csv (all images of $(IMAGES))"
	@echo "Curves:       .venv/bin/tensorboard --logdir $(DEMO)/tensorboard"

$(DATA)/.complete: | $(INSTALLED)
	rm -rf $(@D)
	$(PY) -m monai_pipelines phantoms $(PHANTOMS_$(BUNDLE)) --seed $(SEED)
	touch $@

$(DATA)-new/.complete: | $(INSTALLED)
	rm -rf $(@D)
	$(PY) -m monai_pipelines phantoms $(NEW_$(BUNDLE)) --seed 1$(SEED)
	touch $@

$(DEMO)/backbone-$(SEED)/best.pt: | $(INSTALLED)
	rm -rf $(@D)
	$(PY) -m monai_pipelines phantoms histology-tiles $(@D)/tiles --per-class 120 --seed $(SEED)
	$(PY) -m monai.bundle run --bundle_root $(TILES) --config_file "['$(TILES)/configs/train.yaml','$(TILES)/configs/demo.yaml']" \
		--dataset_dir $(@D)/tiles --output_dir $(@D) --seed $(SEED)

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup

nightly: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup -m nightly

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(INSTALLED)
	$(PY) benchmarks/startup.py
	$(PY) benchmarks/ct_chain.py
	$(PY) benchmarks/ct_reading.py
	$(PY) benchmarks/ct_cache.py
	$(PY) benchmarks/cohort.py
	$(PY) benchmarks/loading.py
	$(PY) benchmarks/augment3d.py
	$(PY) benchmarks/augment2d.py
	$(PY) benchmarks/medmnist_loading.py
	$(PY) benchmarks/slide_reading.py
	$(PY) benchmarks/feature_extraction.py
	$(PY) benchmarks/mil_step.py
	$(PY) benchmarks/training_step.py
	$(PY) benchmarks/detection.py
	$(PY) benchmarks/bootstrap.py
	$(PY) benchmarks/charts.py

clean:
	rm -rf .venv runs build dist .mypy_cache .pytest_cache .ruff_cache

# No stamp, no trust: an install that was cut short starts again from an empty folder.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer wanted: make PYTHON=python3.11 ...")'
	test -e $@ || $(PYTHON) -m venv --clear .venv
	rm -f $@
	$(PY) -m pip install -r requirements.txt
	touch $@
