from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from monai.transforms import Randomizable

if TYPE_CHECKING:
    from distributed import LocalCluster

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker for each file, or for each part of it that says so."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Weights and draws that a test leaves to chance are the same in every run."""
    torch.manual_seed(0)
    Randomizable.R.seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real files beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real files: ../shared/data is not there")
    return SHARED_DATA


@pytest.fixture(scope="module")
def two_workers() -> Iterator[LocalCluster]:
    """A Dask cluster on this machine."""
    from tests.cluster import small_cluster

    with small_cluster() as running:
        yield running
