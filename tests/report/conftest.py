"""What tests of reports share."""

from __future__ import annotations

import pytest

from monai_pipelines.report import page


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are made and not drawn, which takes most of the time; what they show is tested elsewhere."""
    monkeypatch.setattr(page, "png_bytes", lambda figure, dpi: b"\x89PNG")
