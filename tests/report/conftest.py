"""Fixtures of the tests of reports."""

from __future__ import annotations

import pytest

from monai_pipelines.report import detection_results, page


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not rendered, which takes most of the time; their content is tested elsewhere."""
    monkeypatch.setattr(page, "png_bytes", lambda figure, dpi: b"\x89PNG")


@pytest.fixture(scope="module")
def few_resamples():
    """Intervals of a detector's metrics rest on few resamples, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection_results, "NUM_RESAMPLES", 50)
        yield
