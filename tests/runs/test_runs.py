"""What a run needs before it starts, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines import load_chain
from monai_pipelines.runs import record as runs
from monai_pipelines.runs.checkpoint import load_checkpoint, save_plain
from monai_pipelines.data import Cohort, read_cohort
from monai_pipelines.declared import declared_path
from monai_pipelines.errors import CohortError

BUNDLE = declared_path("bundles") / "lung_ct_classification"


def _cohort(*labels: int) -> Cohort:
    items = [{"name": f"Jane Doe {k}", "label": label, "patient": f"Jane Doe {k}"} for k, label in enumerate(labels)]
    return Cohort(items[:-2], items[-2:-1], items[-1:], ("healthy", "disease"))


COHORT = _cohort(0, 1, 0, 1)
DIGEST = COHORT.digest


def _record(output_dir: Path, **changed: Any) -> dict[str, Any]:
    settings = {"chain": load_chain("lung_ct"), "augmentation": None, "source": Path("a folder")}
    return runs.record_run(
        output_dir, BUNDLE, split=runs.split_card(3, (0.6, 0.2, 0.2), COHORT), **{**settings, **changed}
    )


def test_record_says_how_to_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "--config_file", "['configs/train.yaml']", "--dataset_dir", "a folder"]
    monkeypatch.setattr(sys, "orig_argv", ["/venv/bin/python", "-m", "monai.bundle", *arguments])
    chain, augmentation = load_chain("lung_ct", size=[8, 8, 8]), load_chain("augment_ct")
    run = _record(tmp_path / "run", chain=chain, augmentation=augmentation)
    assert run == json.loads((tmp_path / "run" / "run.json").read_text())
    assert shlex.split(run["command"]) == ["python", "-m", "monai.bundle", *arguments]
    assert (run["seed"], run["split_fractions"], run["data_sha256"]) == (3, [0.6, 0.2, 0.2], DIGEST)
    assert run["source"] == "a folder"
    assert (run["chain"], run["fingerprint"]) == (chain.describe(), chain.fingerprint())
    assert run["augmentation"] == augmentation.describe()
    assert {"python", "monai", "torch", "numpy", "pydicom"} <= set(run["versions"])
    assert "Doe" not in (tmp_path / "run" / "run.json").read_text()
    assert "seen" not in run
    for file in (BUNDLE / "configs").iterdir():
        assert (tmp_path / "run" / "configs" / file.name).read_bytes() == file.read_bytes()


def test_record_without_augmentation(tmp_path: Path) -> None:
    assert _record(tmp_path)["augmentation"] is None


def test_split_card() -> None:
    card = runs.split_card(3, (1, 0, 0), COHORT)
    seen = {
        hashlib.sha256(f"{key}:Jane Doe {k}".encode()).hexdigest()[:16] for key in ("name", "patient") for k in range(3)
    }
    assert card == {"seed": 3, "split_fractions": [1.0, 0.0, 0.0], "data_sha256": DIGEST, "seen": sorted(seen)}


def _table(folder: Path, *lines: str) -> Path:
    for k in range(24):
        (folder / f"{k}.png").touch()
    (folder / "table.csv").write_text("\n".join(lines))
    return folder / "table.csv"


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Any]:
    """A checkpoint of a training on 24 images of 12 patients, as it comes back from disk."""
    table = _table(tmp_path, "image,label,patient", *(f"{k}.png,{k // 2 % 2},p{k // 2}" for k in range(24)))
    save_plain({"split": runs.split_card(0, (0.6, 0.2, 0.2), read_cohort(table))}, tmp_path / "best.pt")
    return load_checkpoint(tmp_path / "best.pt")


def _check(trained: dict[str, Any], cohort: Cohort, seed: int = 0) -> None:
    runs.check_split(trained, runs.split_card(seed, (0.6, 0.2, 0.2), cohort), cohort)


def test_same_split_passes_and_so_do_other_patients(trained: dict[str, Any], tmp_path: Path) -> None:
    _check(trained, read_cohort(tmp_path / "table.csv"))
    lines = [f"{k}.png,{k // 2 % 2},q{k // 2}" for k in range(24)]
    other = _table(tmp_path, "image,label,patient", *lines).rename(tmp_path / "other.csv")
    names = Cohort(
        *[[{**i, "name": f"new {i['name']}"} for i in part] for part in _parts(read_cohort(other))], ("a", "b")
    )
    _check(trained, names, seed=7)


def _parts(cohort: Cohort) -> list[list[dict[str, Any]]]:
    return [cohort.train, cohort.validation, cohort.test]


def test_another_seed_is_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    cohort = read_cohort(tmp_path / "table.csv", seed=1)
    seen = {item["patient"] for part in _parts(read_cohort(tmp_path / "table.csv"))[:2] for item in part}
    both = [item for item in cohort.test if item["patient"] in seen]
    num = len(both) + len({item["patient"] for item in both})
    with pytest.raises(ValueError, match=rf"^{num} names or patients .* have been seen .*\(seed 0 there, 1 here\)"):
        _check(trained, cohort, seed=1)


def test_other_patients_of_the_same_images_are_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    """As where a patient_pattern is forgotten: every image a patient of its own."""
    table = _table(tmp_path, "image,label", *(f"{k}.png,{k // 2 % 2}" for k in range(24)))
    with pytest.raises(ValueError, match=r"patient_pattern of the training \(the data differ\)"):
        _check(trained, read_cohort(table))


def test_one_more_image_of_a_trained_patient_is_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    patient = read_cohort(tmp_path / "table.csv").train[0]["patient"]
    new = {"name": "new.png", "patient": patient, "label": 0}
    with pytest.raises(ValueError, match=r"^1 names or patients"):
        _check(trained, Cohort([], [], [new], ("a", "b")))


def test_a_checkpoint_that_does_not_tell_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    _check({"split": None}, COHORT)
    assert "does not tell what it was trained on" in caplog.text


@pytest.mark.parametrize(
    ("argument", "told"),
    [("--max_epoch", "did you mean 'max_epochs'?"), ("--network_deff::_target_", "did you mean 'network_def'?")],
)
def test_misspelt_override_is_told(monkeypatch: pytest.MonkeyPatch, argument: str, told: str) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for arguments in (["--max_epochs", "3", "--network_def::widen_factor=0.5", "--config_file", "x"], [argument, "3"]):
        monkeypatch.setattr(sys, "argv", ["site/monai/bundle/__main__.py", "run", *arguments])
        if argument in arguments:
            with pytest.raises(SystemExit, match=re.escape(told)):
                runs.start_run(BUNDLE)
        else:
            runs.start_run(BUNDLE)


def test_flags_that_would_be_texts_and_knobs_of_other_overlays_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    train = str(BUNDLE / "configs" / "train.yaml")
    for arguments, told in {
        ("--multilabel", "false"): "--multilabel false: this would be a text; write False",
        ("--checkpoint", "a.pt"): "--checkpoint: nothing in the configs is called 'checkpoint'",
        ("--resume", "false"): None,
    }.items():
        monkeypatch.setattr(sys, "argv", ["site/monai/bundle/__main__.py", "run", "--config_file", train, *arguments])
        if told is None:
            runs.start_run(BUNDLE)
        else:
            with pytest.raises(SystemExit, match=re.escape(told)):
                runs.start_run(BUNDLE)


def test_wrong_bundle_root(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="run from the bundle's folder or add --bundle_root FOLDER"):
        runs.start_run(tmp_path)


def test_first_cause_is_told_last(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    runs.start_run(BUNDLE)
    cause = CohortError("table.csv", ["line 2: lost", "line 3: no label"])
    middle, outer = RuntimeError("failed to instantiate"), RuntimeError("failed again")
    middle.__cause__, outer.__cause__ = cause, middle
    sys.excepthook(RuntimeError, outer, None)
    assert capsys.readouterr().err.endswith(f"\nerror: {cause}\n")
    sys.excepthook(ValueError, ValueError("alone"), None)
    assert capsys.readouterr().err.count("alone") == 1


def _as_bundle(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["site/monai/bundle/__main__.py", "run", *arguments])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "monai.bundle", "run", *arguments])


def test_record_tells_configs_overrides_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "mine" / "demo.yaml"  # named as one of the bundle's
    own.parent.mkdir()
    own.write_text(
        "size: [8, 8, 8]\nlearning_rate: 0.5\npatience: null\ncache_dir: /secret\nnetwork_def::widen_factor: 0.5\n"
    )
    files = [str(BUNDLE / "configs" / "train.yaml"), str(own)]
    overrides = ["--batch_size=3", "--threshold_by", "sensitivity=0.9", "--network_def::act", "elu", "--resume", "True",
                 "--classes", "['a','b']", "--dataset_dir", "/home/x", "--precision", "$None"]  # fmt: skip
    _as_bundle(monkeypatch, "--bundle_root", str(BUNDLE), *overrides, "--config_file", str(files))
    run = _record(tmp_path / "run")
    assert run == json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["config_files"] == ["train.yaml", "demo.yaml"]
    assert (tmp_path / "run" / "configs" / "demo.yaml").read_bytes() == own.read_bytes()
    assert run["overrides"] == {
        "bundle_root": str(BUNDLE),
        "batch_size": 3,
        "threshold_by": "sensitivity=0.9",
        "network_def::act": "elu",
        "resume": True,
        "classes": ["a", "b"],
        "dataset_dir": "/home/x",
        "precision": "$None",
    }
    settings = run["settings"]
    told = {"size": "8, 8, 8", "learning_rate": 0.5, "batch_size": 3, "threshold_by": "sensitivity=0.9", "seed": 0,
            "max_epochs": 50, "classes": "a, b", "multilabel": False, "split_fractions": "0.7, 0.15, 0.15"}  # fmt: skip
    assert told.items() <= settings.items()
    places = {"bundle_root", "cache_dir", "dataset_dir", "device", "output_dir", "table"}
    assert not (places | {"patience", "precision", "title", "resume", "network_def", "explanations"}) & settings.keys()
    assert not [value for value in settings.values() if str(value).startswith(("$", "@")) or "/" in str(value)]


def test_record_from_python_tells_no_command(tmp_path: Path) -> None:
    run = _record(tmp_path)
    assert (run["config_files"], run["overrides"], run["settings"]) == ([], {}, {})


@pytest.mark.parametrize(
    ("arguments", "files", "overrides"),
    [
        (["--config_file", "a/train.yaml,a/b.yaml", "--x", "1"], ["a/train.yaml", "a/b.yaml"], {"x": 1}),
        (["--config_file=['a.yaml']", "--x=-1.5", "--y", "-2"], ["a.yaml"], {"x": -1.5, "y": -2}),
        (["--x", "--run_id", "run", "--meta_file", "m.json"], [], {"x": True}),
        (["--flag"], [], {"flag": True}),
        (["--args_file", "{args}", "--x", "2"], ["t.yaml"], {"x": 2, "y": "b"}),
    ],
)
def test_command_line_is_read_as_fire_does(
    arguments: list[str], files: list[str], overrides: dict[str, Any], tmp_path: Path
) -> None:
    args = tmp_path / "args.yaml"
    args.write_text("config_file: [t.yaml]\nx: 1\ny: b\n")
    assert runs._command_line(["run", *(a.format(args=args) for a in arguments)]) == (files, overrides)


def test_inference_config_of_a_bundle() -> None:
    by_name, by_folder = runs.inference_config("lung_ct_classification"), runs.inference_config(BUNDLE)
    assert by_name.get() == by_folder.get()
    assert by_name["bundle_root"] == str(BUNDLE)
    assert by_name["classes"] == ["healthy", "disease"]


@pytest.mark.parametrize("recorded", [True, False])
def test_inference_config_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool) -> None:
    """As trained: overlays and numbers, but not the folders of the training; those of earlier versions too."""
    configs = [str(BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "demo")]
    overrides = ["--network_def::widen_factor", "0.25", "--masking", "channel", "--max_epochs", "3",
                 "--dataset_dir", "x", "--output_dir", "y", "--device", "cuda:7", "--on_error", "raise"]  # fmt: skip
    _as_bundle(monkeypatch, "--config_file", str(configs), *overrides)
    run = _record(tmp_path)
    if not recorded:
        old = {name: value for name, value in run.items() if name not in ("config_files", "overrides", "settings")}
        (tmp_path / "run.json").write_text(json.dumps(old))
    config = runs.inference_config(tmp_path, **{"dataset_dir": "scans", "network_def::n_input_channels": 5})
    assert config["size"] == [64, 64, 64]
    assert config["masking"] == "channel"
    network = config["network_def"]
    assert (network["_target_"], network["widen_factor"]) == ("monai.networks.nets.resnet10", 0.25)
    assert network["n_input_channels"] == 5
    assert (config["bundle_root"], config["checkpoint"]) == (str(tmp_path), str(tmp_path / "best.pt"))
    assert (config["dataset_dir"], config["on_error"]) == ("scans", "skip")
    assert "x" not in (config["output_dir"], config["dataset_dir"])
    assert config["device"].startswith("$")


def test_inference_config_of_neither_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"lung_ct_clasification: wanted .*\(did you mean 'lung_ct_classification'\?\)"
    ):
        runs.inference_config("lung_ct_clasification")
    (tmp_path / "configs").mkdir()
    with pytest.raises(ValueError, match=r"its configs/inference\.yaml is missing"):
        runs.inference_config(tmp_path)
