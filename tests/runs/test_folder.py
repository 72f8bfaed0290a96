"""A run's folder, read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.runs import RunFolder, claim_folder, inference_config


def test_nothing_is_none_and_other_content_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert (folder.run, folder.history, folder.metrics, folder.evaluation, folder.bundle) == (
        None,
        None,
        None,
        None,
        "",
    )
    (tmp_path / "history.json").write_text('{"epoch": 1}')
    with pytest.raises(ValueError, match=r"history\.json: wanted a list, got a dict"):
        _ = folder.history
    (tmp_path / "metrics.json").write_text("{cut")
    with pytest.raises(ValueError, match=r"metrics\.json: no JSON .*: run the training or evaluation again"):
        _ = folder.metrics


def test_inference_config_of_a_bundle(bundle: Path) -> None:
    by_name, by_folder = inference_config("lung_ct_classification"), inference_config(bundle)
    assert by_name.get() == by_folder.get()
    assert by_name["bundle_root"] == str(bundle)
    assert by_name["classes"] == ["healthy", "disease"]


def test_inference_config_of_a_run(
    tmp_path: Path, bundle: Path, as_bundle: Callable[..., None], record: Callable[..., dict[str, Any]]
) -> None:
    """As trained: overlays and numbers, but not the folders of the training."""
    configs = [str(bundle / "configs" / f"{name}.yaml") for name in ("train", "demo")]
    overrides = ["--network_def::widen_factor", "0.25", "--masking", "channel", "--max_epochs", "3",
                 "--dataset_dir", "x", "--output_dir", "y", "--device", "cuda:7", "--on_error", "raise"]  # fmt: skip
    as_bundle("--config_file", str(configs), *overrides)
    record(tmp_path)
    config = inference_config(tmp_path, **{"dataset_dir": "scans", "network_def::n_input_channels": 5})
    assert config["size"] == [64, 64, 64]
    assert config["masking"] == "channel"
    network = config["network_def"]
    assert (network["_target_"], network["widen_factor"]) == ("monai.networks.nets.resnet10", 0.25)
    assert network["n_input_channels"] == 5
    assert (config["bundle_root"], config["checkpoint"]) == (str(tmp_path), str(tmp_path / "best.pt"))
    assert (config["dataset_dir"], config["on_error"]) == ("scans", "skip")
    assert "x" not in (config["output_dir"], config["dataset_dir"])
    assert config["device"].startswith("$")


def test_inference_config_of_neither_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"lung_ct_clasification: wanted .*\(did you mean 'lung_ct_classification'\?\)"
    ):
        inference_config("lung_ct_clasification")
    (tmp_path / "configs").mkdir()
    with pytest.raises(ValueError, match=r"its configs/inference\.yaml is missing"):
        inference_config(tmp_path)


def test_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    claim_folder(tmp_path / "new")
    (tmp_path / "features").mkdir()
    claim_folder(tmp_path)
    (tmp_path / "last.pt").touch()
    with pytest.raises(FileExistsError, match=r"holds a trained run \(last\.pt\).* --resume true.* --overwrite true"):
        claim_folder(tmp_path)
    claim_folder(tmp_path, resume=True)
    claim_folder(tmp_path, overwrite=True)


@pytest.mark.parametrize("resumed", [False, True])
def test_what_a_new_training_removes(tmp_path: Path, resumed: bool) -> None:
    removed = ["report.html", "explanations/1.png", "tensorboard/evaluation/events", "subgroups_2.png"]
    checkpoints = ["best.pt", "last.pt"]
    kept = ["cache/a.entry", "tensorboard/train/events", "history.json", "mine.png"]
    for name in (*removed, *checkpoints, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    RunFolder(tmp_path).clear(resumed)
    left = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {*kept, *(checkpoints if resumed else ())}
