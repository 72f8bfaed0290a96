"""Fixtures of the tests of reports."""

from __future__ import annotations

import pytest

from monai_pipelines.report import page


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not rendered, which takes most of the time; their content is tested elsewhere."""
    monkeypatch.setattr(page, "png_bytes", lambda figure, dpi: b"\x89PNG")
