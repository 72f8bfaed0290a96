"""Outcomes from worker processes, of which one crashes at an unlucky moment."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from torch.utils.data import Dataset

from monai_pipelines.data.workers import CRASHED, Outcome, each_outcome


class _Crashing(Dataset):
    def __init__(self, error: type[Exception] | None = None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Outcome:
        if index == 2:
            if self.error is not None:
                raise self.error("of the dataset")
            os.kill(os.getpid(), signal.SIGSEGV)
        return torch.full((2,), index), None


def test_tensors_that_die_with_their_worker_are_made_again() -> None:
    outcomes = each_outcome(_Crashing(), num_workers=1)
    got = [next(outcomes)]
    time.sleep(1)  # tensor 1 is announced, and the worker crashes at 2 before the tensor is fetched
    got += list(outcomes)
    assert [None if result is None else result[0].item() for result, _ in got] == [0, 1, None, 3, 4, 5]
    assert [reason for _, reason in got] == [None, None, CRASHED, None, None, None]


@pytest.mark.parametrize("error", [ConnectionError, FileNotFoundError, EOFError, RuntimeError])
def test_an_error_of_the_dataset_is_no_crash(error: type[Exception]) -> None:
    with pytest.raises(error, match="of the dataset"):
        list(each_outcome(_Crashing(error), num_workers=1))
