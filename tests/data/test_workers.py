"""Outcomes from worker processes, of which one crashes at an unlucky moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch

from monai_pipelines.data.workers import CRASHED, Outcome, each_outcome

ITEMS = [{"index": index} for index in range(6)]


def _crashing(item: Mapping[str, Any], error: type[Exception] | None = None) -> Outcome:
    if item["index"] == 2:
        if error is not None:
            raise error("of the work")
        os.kill(os.getpid(), signal.SIGSEGV)
    return torch.full((2,), item["index"]), None


def test_tensors_that_die_with_their_worker_are_made_again() -> None:
    outcomes = each_outcome(_crashing, ITEMS, "crashing", num_workers=1)
    got = [next(outcomes)]
    time.sleep(1)  # tensor 1 is announced, and the worker crashes at 2 before the tensor is fetched
    got += list(outcomes)
    assert [None if result is None else result[0].item() for result, _ in got] == [0, 1, None, 3, 4, 5]
    assert [reason for _, reason in got] == [None, None, CRASHED, None, None, None]


@pytest.mark.parametrize("error", [ConnectionError, FileNotFoundError, EOFError, RuntimeError])
def test_an_error_of_the_work_is_no_crash(error: type[Exception]) -> None:
    with pytest.raises(error, match="of the work"):
        list(each_outcome(partial(_crashing, error=error), ITEMS, "crashing", num_workers=1))
