"""What a run leaves so that it can be run again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monai_pipelines import load_chain
from monai_pipelines.data import Cohort

Record = Callable[..., dict[str, Any]]


def test_record_says_how_to_run_again(
    tmp_path: Path, bundle: Path, as_bundle: Callable[..., None], record: Record, cohort: Cohort
) -> None:
    arguments = ["--config_file", str(bundle / "configs" / "train.yaml"), "--dataset_dir", "a folder"]
    as_bundle(*arguments)
    chain, augmentation = load_chain("lung_ct", size=[8, 8, 8]), load_chain("augment_ct")
    run = record(tmp_path / "run", chain, augmentation)
    assert run == json.loads((tmp_path / "run" / "run.json").read_text())
    assert shlex.split(run["command"]) == ["python", "-m", "monai.bundle", "run", *arguments]
    assert (run["seed"], run["split_seed"], run["split_fractions"]) == (0, 3, [0.6, 0.2, 0.2])
    assert (run["data_sha256"], run["source"]) == (cohort.digest, "a folder")
    assert (run["chain"], run["fingerprint"]) == (chain.describe(), chain.fingerprint())
    assert run["augmentation"] == augmentation.describe()
    assert {"python", "monai", "torch", "numpy", "pydicom"} <= set(run["versions"])
    assert "Doe" not in (tmp_path / "run" / "run.json").read_text()
    assert "seen" not in run
    for file in (bundle / "configs").iterdir():
        assert (tmp_path / "run" / "configs" / file.name).read_bytes() == file.read_bytes()


def test_record_has_configs_overrides_and_settings(
    tmp_path: Path, bundle: Path, as_bundle: Callable[..., None], record: Record
) -> None:
    overlay = tmp_path / "mine" / "demo.yaml"  # named as one of the bundle's
    overlay.parent.mkdir()
    overlay.write_text(
        "size: [8, 8, 8]\nlearning_rate: 0.5\npatience: null\ncache_dir: /secret\nnetwork_def::widen_factor: 0.5\n"
    )
    files = [str(bundle / "configs" / "train.yaml"), str(overlay)]
    overrides = ["--batch_size=3", "--threshold_by", "sensitivity=0.9", "--network_def::act", "elu", "--resume", "True",
                 "--classes", "['a','b']", "--dataset_dir", "/home/x", "--precision", "$None"]  # fmt: skip
    as_bundle("--bundle_root", str(bundle), *overrides, "--config_file", str(files))
    run = record(tmp_path / "run")
    assert run["config_files"] == ["train.yaml", "demo.yaml"]
    assert (tmp_path / "run" / "configs" / "demo.yaml").read_bytes() == overlay.read_bytes()
    assert run["overrides"] == {
        "bundle_root": str(bundle),
        "batch_size": 3,
        "threshold_by": "sensitivity=0.9",
        "network_def::act": "elu",
        "resume": True,
        "classes": ["a", "b"],
        "dataset_dir": "/home/x",
        "precision": "$None",
    }
    settings = run["settings"]
    wanted = {"size": "8, 8, 8", "learning_rate": 0.5, "batch_size": 3, "threshold_by": "sensitivity=0.9",
              "seed": 0, "max_epochs": 50, "classes": "a, b", "multilabel": False,
              "split_fractions": "0.7, 0.15, 0.15", "overlays": "demo", "network": "Linear", "num_parameters": 8,
              "chain": f"lung_ct {run['fingerprint']}", "data": run["data_sha256"][:16],
              "inferer": "SimpleInferer"}  # fmt: skip
    assert wanted.items() <= settings.items()
    places = {"bundle_root", "cache_dir", "dataset_dir", "device", "output_dir", "table", "checkpoint"}
    assert not (places | {"patience", "precision", "title", "resume", "network_def", "handlers"}) & settings.keys()
    assert not [value for value in settings.values() if str(value).startswith(("$", "@")) or "/" in str(value)]


def test_record_from_python_has_no_command(tmp_path: Path, record: Record) -> None:
    run = record(tmp_path)
    assert (run["config_files"], run["overrides"], run["settings"]["overlays"]) == ([], {}, "none")
    assert run["augmentation"] is None
