from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real files beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real files: ../shared/data is not there")
    return SHARED_DATA
