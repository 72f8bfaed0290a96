"""The compiled kernels where numba cannot keep what it compiled."""

from __future__ import annotations

import importlib
from typing import Any

import numba.core.caching
import numpy as np
import pytest

from monai_pipelines.transforms.ct import kernels


def test_no_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installation that nobody may write to, without a home."""

    def no_locator(*args: Any, **options: Any) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    with monkeypatch.context() as patched:
        patched.setattr(numba.core.caching.FunctionCache, "__init__", no_locator)
        importlib.reload(kernels)
        mean = np.zeros((1, 1, 1), np.float32)
        kernels.block_mean(np.arange(8, dtype=np.int16).reshape(2, 2, 2), mean, (2, 2, 2), 0, 1)
    importlib.reload(kernels)
    assert mean.item() == 3.5
