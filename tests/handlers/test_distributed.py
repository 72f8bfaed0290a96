"""Trainings of several processes: equal to one with the same batches, resumed exactly, ended by the failure of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_pipelines import processes
from tests.handlers.distributed_runs import EPOCHS, NUM_VALIDATION, STEPS, fail, measure, train, train_and_save
from tests.new_process import run_together


def _together(folder: Path, num: int = 2, **options: Any) -> dict[str, Any]:
    ends = run_together(train_and_save, num, folder, folder.with_suffix(".pt"), **options)
    assert {code for code, _ in ends} == {0}, ends
    return torch.load(folder.with_suffix(".pt"), weights_only=True)


@pytest.mark.parametrize("sampling", ["shuffle", "balanced", "weighted"])
def test_two_processes_train_as_one(sampling: str, tmp_path: Path) -> None:
    """With class weights (shuffle), whose normalization spans all processes."""
    two, one = _together(tmp_path / "two", sampling=sampling), train(tmp_path / "one", sampling)
    assert len(two["losses"]) == len(one["losses"]) == (STEPS if sampling != "balanced" else STEPS + EPOCHS)
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    for when in ("first", "last"):
        for name, value in one[when].items():
            torch.testing.assert_close(two[when][name], value, rtol=0, atol=1e-5 if when == "last" else 1e-7)
    assert two["num_validation"] == one["num_validation"] == NUM_VALIDATION  # 11: one process has 5
    assert two["metrics"] == [pytest.approx(metrics, abs=1e-6, nan_ok=True) for metrics in one["metrics"]]
    train_metrics = [
        [epoch["train"] for epoch in json.loads((tmp_path / name / "history.json").read_text())]
        for name in ("two", "one")
    ]
    assert train_metrics[0] == [pytest.approx(metrics, abs=1e-5) for metrics in train_metrics[1]]


def test_a_resume_of_several_processes_is_exact(tmp_path: Path) -> None:
    """Of three: the sum of two gradients would not depend on their order."""
    options = {"random": True, "checkpoint_every": 1}
    _together(tmp_path / "whole", 3, **options)
    folder = tmp_path / "cut"
    for number, cut in enumerate((2, 8, 13)):
        ends = run_together(train, 3, folder, cut=cut, resume=number > 0, **options)
        assert all(code == 1 and "Cut" in text for code, text in ends), ends
    _together(folder, 3, resume=True, **options)
    for name in ("best.pt", "history.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (folder / name).read_bytes()
    ((code, text),) = run_together(train, 1, folder, resume=True, **options)
    assert code == 1
    assert "num_processes (--nproc_per_node): 3 there, 1 here" in text


def test_all_processes_have_the_same_metrics() -> None:
    """So that they stop, and lower the learning rate, together."""
    assert run_together(measure, 2) == [(0, "0.0\n")] * 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("killed", "lost process 1 of 2: killed, stuck or unreachable"),
        pytest.param("stuck", "lost process 1 of 2: killed, stuck or unreachable", marks=pytest.mark.nightly),
        ("NaN", "stopped, since another process failed; process 1: FloatingPointError: loss is nan in epoch 2"),
    ],
)
def test_the_failure_of_one_process_ends_all(how: str, message: str, tmp_path: Path) -> None:
    timeout_s = 6 if how == "stuck" else 60
    (first, text), (second, _) = run_together(fail, 2, tmp_path, how, timeout_s=timeout_s)
    assert first == 1, text
    assert message in text
    assert second != 0


def test_batch_statistics_of_all_processes_want_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.start_processes(sync_batchnorm=True)  # of a single process: nothing
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sync_batchnorm works on GPUs only; set --sync_batchnorm false"):
        processes.start_processes(sync_batchnorm=True)
