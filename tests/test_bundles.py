"""Every bundle: described rightly, complete for MONAI's tools, and run through its real command line."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

from monai_pipelines import Chain, __version__
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.phantoms import write_lung_ct_cohort

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = list_declared("bundles")
ENTRY_POINTS = ("train", "inference", "evaluate")

COHORTS: dict[str, Callable[[Path], Path]] = {
    "lung_ct_classification": lambda folder: write_lung_ct_cohort(
        folder, 14, matrix=64, slice_mm=8, num_workers=1, progress=False
    ),
}
# of the network with one channel and two classes, as published for the architecture in 3D
PARAMETERS = {
    "lung_ct_classification": {
        "train": 33_161_026,
        "resnet34": 63_470_658,
        "resnet50": 46_159_170,
        "densenet121": 11_244_674,
    },
}

# What MONAI's schema of 2024-07-25 asks for, in short.
REQUIRED = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors")
STRINGS = (*REQUIRED, "copyright", "data_source", "data_type", "image_classes", "label_classes", "pred_classes")
MAPPINGS = ("required_packages_version", "changelog", "eval_metrics", "supported_apps")
TENSOR = {
    "type": {"type": "string"},
    "format": {"type": "string"},
    "num_channels": {"type": "integer"},
    "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
    "dtype": {"type": "string"},
    "value_range": {"type": "array", "items": {"type": "number"}},
}
TENSORS = {"additionalProperties": {"type": "object", "properties": TENSOR, "required": list(TENSOR)}}
SCHEMA = {
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in STRINGS},
        **{name: {"type": "object"} for name in MAPPINGS},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "properties": {"inputs": TENSORS, "outputs": TENSORS, "post_processed_outputs": TENSORS},
            "required": ["inputs", "outputs"],
        },
    },
    "required": [*REQUIRED, "copyright", "required_packages_version", "network_data_format"],
}

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, scope="module")


def _root(bundle: str) -> Path:
    return declared_path("bundles") / bundle


def _config(bundle: str, *names: str) -> list[str]:
    return [str(_root(bundle) / "configs" / f"{name}.yaml") for name in names]


def _overlays(bundle: str) -> list[str]:
    """Configs that change the network or the loss."""
    return sorted({file.stem for file in (_root(bundle) / "configs").glob("*.yaml")} - set(ENTRY_POINTS))


def _metadata(bundle: str) -> dict[str, Any]:
    return json.loads((_root(bundle) / "configs" / "metadata.json").read_text())


def _parser(bundle: str, *names: str, **override: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(_config(bundle, *names))
    parser.update(override)
    return parser


@pytest.fixture(scope="module")
def table(bundle: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return COHORTS[bundle](tmp_path_factory.mktemp(bundle) / "data")


@pytest.fixture
def workflow(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ConfigWorkflow]]:
    """The bundle in this process, initialised, at a small size."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def start(*names: str, workflow_type: str = "train", **override: Any) -> ConfigWorkflow:
        settings = {"bundle_root": str(_root(bundle)), "output_dir": str(tmp_path), "num_workers": 0}
        flow = ConfigWorkflow(
            _config(bundle, *names),
            logging_file=False,
            workflow_type=workflow_type,
            **{**settings, "size": [32] * 3, **override},
        )
        flow.initialize()
        return flow

    yield start
    set_determinism(None)


# ---- what the bundle says about itself


def test_metadata(bundle: str) -> None:
    metadata = _metadata(bundle)
    jsonschema.validate(metadata, SCHEMA)
    assert re.search(r"/meta_schema_20240725\.json$", metadata["schema"])
    assert metadata["required_packages_version"]["monai_pipelines"] == __version__
    assert metadata["version"] in metadata["changelog"]
    for broken in ({"network_data_format": {}}, {"authors": ["a", "b"]}, {"version": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**metadata, **broken}, SCHEMA)


def test_configs_override_by_name(bundle: str) -> None:
    for file in (_root(bundle) / "configs").glob("*.yaml"):
        assert not re.search(r"(::|#)\d", file.read_text())


def test_class_names_are_those_of_the_metadata(bundle: str) -> None:
    told = _metadata(bundle)["network_data_format"]["outputs"]["pred"]["channel_def"]
    for name in ("train", "inference"):
        assert told == {str(k): c for k, c in enumerate(_parser(bundle, name).get_parsed_content("classes"))}


def test_networks_are_as_the_metadata_and_the_papers_say(bundle: str) -> None:
    """Built and run without memory, on the meta device."""
    data_format = _metadata(bundle)["network_data_format"]
    given, wanted = data_format["inputs"]["image"], data_format["outputs"]["pred"]
    shape = given["num_channels"], *given["spatial_shape"]
    for name in ("train", *_overlays(bundle)):
        networks = []
        for entry in ("train", "inference"):
            names = [entry] if name == "train" else [entry, name]
            with torch.device("meta"):
                networks.append(_parser(bundle, *names).get_parsed_content("network_def"))
        trained, inferred = ([(k, v.shape) for k, v in n.state_dict().items()] for n in networks)
        assert trained == inferred
        result = networks[0].eval()(torch.empty(1, *shape, dtype=getattr(torch, given["dtype"]), device="meta"))
        assert tuple(result.shape) == (1, wanted["num_channels"])
        assert result.dtype == getattr(torch, wanted["dtype"])
        if name in PARAMETERS[bundle]:
            assert sum(p.numel() for p in networks[0].parameters()) == PARAMETERS[bundle][name]
    assert set(PARAMETERS[bundle]) <= {"train", *_overlays(bundle)}


def test_training_and_inference_prepare_alike(bundle: str) -> None:
    for overlay in ([], *([name] for name in _overlays(bundle))):
        for override in ({}, {"size": [48, 40, 32]}):
            chains = [
                _parser(bundle, entry, *overlay, **override).get_parsed_content("preprocessing")
                for entry in ("train", "inference")
            ]
            assert all(isinstance(chain, Chain) for chain in chains)
            assert chains[0].describe() == chains[1].describe()
            assert chains[0].fingerprint() == chains[1].fingerprint()
    size = _parser(bundle, "train").get_parsed_content("preprocessing").describe()["knobs"]["size"]
    assert size == _metadata(bundle)["network_data_format"]["inputs"]["image"]["spatial_shape"]


def test_every_loss_overlay_gives_a_loss(bundle: str) -> None:
    for overlay in ("train", *_overlays(bundle)):
        names = dict.fromkeys(["train", overlay])
        loss = _parser(bundle, *names, class_weights="$torch.tensor([0.5, 1.5])").get_parsed_content("loss")
        assert loss(torch.zeros(2, 2), torch.tensor([0, 1])).isfinite()


@pytest.mark.parametrize(
    ("knob", "told"),
    [
        ("preprocessing::sise", "no knob 'sise' \\(did you mean 'size'"),
        ("augmentation::noise_std", "no knob 'noise_std' \\(did you mean 'noise_sd'"),
        ("train::trainer::max_epoch", "max_epoch"),
        ("optimizer::learning_rate", "learning_rate"),
    ],
)
def test_misspelt_argument_is_an_error(bundle: str, knob: str, told: str) -> None:
    entry = knob.rpartition("::")[0]
    parts: dict[str, Any] = {"network": "$torch.nn.Linear(1, 1)", "train::dataloader": [0], "train::handlers": None}
    parts |= {"cohort": None, "class_weights": "$torch.ones(2)", "train::key_metric": None}
    with pytest.raises((RuntimeError, TypeError)) as error:
        _parser(bundle, "train", **parts, **{knob: 3}).get_parsed_content(entry)
    cause: BaseException = error.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert re.search(told, str(cause))


# ---- MONAI's view, in this process


def test_nothing_is_missing(bundle: str, table: Path, workflow: Callable) -> None:
    train = workflow("train", "demo", dataset_dir=str(table.parent))
    scan = str(next((table.parent / "scans").iterdir()))
    inference = workflow("inference", "demo", workflow_type="infer", dataset_dir=scan)
    assert (train.check_properties(), inference.check_properties()) == ([], [])
    for handlers in (train.train_handlers, train.val_handlers, inference.handlers):
        assert isinstance(handlers, list)  # experiment tracking appends to them


def test_test_patients_of_another_split_are_refused(
    bundle: str, table: Path, workflow: Callable, tmp_path: Path
) -> None:
    """Evaluated with another seed, the test patients would be those of the training."""
    settings = {"dataset_dir": str(table.parent), "cache_dir": None, "max_epochs": 1, "batch_size": 4}
    workflow("train", "demo", **settings).run()
    assert {"best.pt", "last.pt", "run.json"} <= {file.name for file in tmp_path.iterdir()}
    with pytest.raises(RuntimeError) as error:
        workflow("train", "demo", "evaluate", **settings, seed=1).run()
    assert "trained on another split of the same table (seed 0 there, 1 here)" in str(error.value.__cause__)


# ---- the real command line


def _run(cwd: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0 or not check, result.stdout[-2000:] + result.stderr[-4000:]
    return result


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _options(table: Path, output_dir: Path) -> list[str]:
    small = ["--size", "[32,32,32]", "--batch_size", "4", "--num_workers", "0"]
    return ["--dataset_dir", str(table.parent), "--output_dir", str(output_dir), *small]


@pytest.fixture(scope="module")
def trained(bundle: str, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of the demo network, from the bundle's own folder."""
    output = tmp_path_factory.mktemp("trained")
    configs = "['configs/train.yaml','configs/demo.yaml']"
    _run(_root(bundle), "run", "--config_file", configs, "--max_epochs", "1", *_options(table, output))
    return output


@pytest.mark.slow
def test_training_leaves_what_is_needed(bundle: str, table: Path, trained: Path) -> None:
    wanted = {"best.pt", "last.pt", "cache", "configs", "history.json", "history.png", "run.json", "tensorboard"}
    assert {file.name for file in trained.iterdir()} == wanted
    configs = _root(bundle) / "configs"
    kept = {file.name: file.read_text() for file in (trained / "configs").iterdir()}
    assert kept == {file.name: file.read_text() for file in configs.iterdir() if file.is_file()}
    run = json.loads((trained / "run.json").read_text())
    assert run["command"].startswith("python -m monai.bundle run --config_file ")
    assert "configs/demo.yaml" in run["command"]
    assert run["seed"] == 0
    checkpoint = torch.load(trained / "best.pt", weights_only=True)
    assert run["fingerprint"] == checkpoint["fingerprint"]
    assert run["chain"] == checkpoint["chain"]
    assert run["chain"]["knobs"]["size"] == [32, 32, 32]
    assert [len(json.loads((trained / "history.json").read_text())), checkpoint["epoch"]] == [1, 1]
    everything = b"".join(file.read_bytes() for file in trained.rglob("*") if file.is_file())
    assert b"phantom-0" not in everything, "a patient"


@pytest.mark.slow
def test_resume_and_evaluate_from_elsewhere(bundle: str, table: Path, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    shutil.copytree(trained, output)
    options = ["--bundle_root", str(_root(bundle)), *_options(table, output)]
    train = _config(bundle, "train", "demo")
    resumed = _run(tmp_path, "run", "--config_file", str(train), "--resume", "true", "--max_epochs", "2", *options)
    assert "resumed after epoch 1" in resumed.stdout
    assert [record["epoch"] for record in json.loads((output / "history.json").read_text())] == [1, 2]
    assert torch.load(output / "last.pt", weights_only=True)["epoch"] == 2
    assert len(list((output / "tensorboard").iterdir())) == 2

    _run(tmp_path, "run", "--config_file", str([*train, *_config(bundle, "evaluate")]), *options)
    assert {"metrics.json", "predictions.csv", "report.html", "roc.png", "confusion_matrix.png"} <= {
        file.name for file in output.iterdir()
    }
    metrics = json.loads((output / "metrics.json").read_text())
    rows = _rows(output / "predictions.csv")
    assert {row["split"] for row in rows} == {"test"}
    assert metrics["num_scans"] == len(rows) >= 2
    assert {*metrics["metrics"]} == {*metrics["shortcut"]} >= {"roc_auc", "accuracy"}
    correct = [row["label"] == row["predicted"] for row in rows]
    assert metrics["metrics"]["accuracy"] == pytest.approx(sum(correct) / len(correct))
    for row in rows:
        prob = [float(row["prob_healthy"]), float(row["prob_disease"])]
        assert sum(prob) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == str(int(prob[1] > prob[0]))


@pytest.mark.slow
def test_inference_lists_bad_scans(bundle: str, table: Path, trained: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for series in sorted((table.parent / "scans").iterdir())[:2]:
        shutil.copytree(series, scans / series.name)
    broken = scans / "truncated"
    shutil.copytree(series, broken)
    first = min(broken.iterdir())
    first.write_bytes(first.read_bytes()[:-100])
    (scans / "empty.nii.gz").touch()
    (scans / "no_dicom").mkdir()
    (scans / "no_dicom" / "notes.doc").write_text("not a scan")
    output = tmp_path / "predictions"
    options = ["--checkpoint", str(trained / "best.pt"), *_options(table, output)]
    options[options.index("--dataset_dir") + 1] = str(scans)
    configs = str(_config(bundle, "inference", "demo"))
    told = _run(tmp_path, "run", "--config_file", configs, "--bundle_root", str(_root(bundle)), *options)
    assert "2 scans predicted, 3 skipped" in told.stdout
    rows = {row["image"]: row for row in _rows(output / "predictions.csv")}
    assert set(rows) == {"phantom-0000_1", "phantom-0001_1", "truncated", "empty.nii.gz", "no_dicom"}
    reasons = {
        "truncated": "truncated",
        "empty.nii.gz": "unreadable NIfTI",
        "no_dicom": "wanted a folder with one DICOM",
    }
    for name, row in rows.items():
        if name in reasons:
            assert reasons[name] in row["skipped"]
            assert row["predicted"] == row["prob_disease"] == ""
        else:
            assert row["skipped"] == ""
            prob = [float(row["prob_healthy"]), float(row["prob_disease"])]
            assert sum(prob) == pytest.approx(1, abs=1e-4)
            assert row["predicted"] == str(int(prob[1] > prob[0]))


@pytest.mark.slow
def test_wrong_bundle_root_is_told_in_one_line(bundle: str, tmp_path: Path) -> None:
    told = _run(tmp_path, "run", "--config_file", *_config(bundle, "train"), check=False)
    assert told.returncode == 1
    assert "Traceback" not in told.stderr
    last = told.stderr.splitlines()[-1]
    assert last.startswith("bundle_root '.'")
    assert last.endswith("has no configs/metadata.json: run from the bundle's folder or add --bundle_root FOLDER")


@pytest.mark.slow
def test_bad_table_is_told_last_with_all_problems(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("image,label\nlost,0\nalso_lost,ill\n")
    options = _options(tmp_path / "table.csv", tmp_path / "output")
    told = _run(_root(bundle), "run", "--config_file", "configs/train.yaml", *options, check=False)
    assert told.returncode == 1
    _, _, last = told.stderr.rpartition("\nerror: ")
    lines = last.strip().splitlines()
    assert re.fullmatch(r".*table\.csv: \d problem\(s\)", lines[0])
    assert "line 2: lost: no such file or folder" in lines[1]
    assert "line 3: also_lost: no such file or folder" in lines[2]
    assert "line 3: also_lost: unknown label 'ill', wanted one of" in lines[3]


@pytest.mark.slow
def test_monais_own_checks_pass(bundle: str, tmp_path: Path) -> None:
    metadata = str(_root(bundle) / "configs" / "metadata.json")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    verified = _run(tmp_path, "verify_metadata", "--meta_file", metadata, "--filepath", str(schema))
    assert "metadata is verified with no error." in verified.stdout + verified.stderr
    small = ["--_meta_#network_data_format#inputs#image#spatial_shape", "[64,64,64]"]
    (config,) = _config(bundle, "train")
    verified = _run(tmp_path, "verify_net_in_out", "network", "--meta_file", metadata, "--config_file", config, *small)
    assert "data shape of network is verified with no error." in verified.stdout + verified.stderr


@pytest.mark.slow
def test_export_gives_the_same_output(bundle: str, trained: Path, tmp_path: Path) -> None:
    exported = tmp_path / "model.ts"
    configs, root = _config(bundle, "inference", "demo"), _root(bundle)
    options = ["--ckpt_file", str(trained / "best.pt"), "--key_in_ckpt", "model", "--filepath", str(exported)]
    options += ["--meta_file", str(root / "configs" / "metadata.json"), "--config_file", str(configs)]
    _run(tmp_path, "ckpt_export", "network_def", *options)
    network = _parser(bundle, "inference", "demo").get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(trained / "best.pt", weights_only=True)["model"])
    images = torch.rand(2, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(exported)(images), network(images), atol=1e-5)
