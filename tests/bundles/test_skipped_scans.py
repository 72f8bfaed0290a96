"""Damaged scans in a training: skipped or an error, and neither names a patient (`tests/personal_data.py`)."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from tests.bundles.conftest import Start, bundle_of, demo_of, options, run_command
from tests.personal_data import MARKER, UID_ROOT, find_in_folder, find_markers, put

NAME = "lung_ct_classification"
DAMAGED = {
    "RescaleSlope": f"1.0{MARKER}",
    "ImageOrientationPatient": f"{MARKER}\\\\0",
    "PixelSpacing": UID_ROOT,
    "RescaleType": MARKER,
}

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group(NAME)]


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The demo's scans, four of them damaged in every slice."""
    data = shutil.copytree(demo_of(NAME).data, tmp_path / "data")
    scans = sorted(path for path in (data / "scans").iterdir())
    for scan, (tag, value) in zip(scans[::3], DAMAGED.items(), strict=False):
        for file in scan.iterdir():
            put(file, tag, value.encode())
    return data


def test_skipped(
    damaged: Path, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bundle, run = bundle_of(NAME), tmp_path / "run"
    settings = {
        "dataset_dir": str(damaged),
        "output_dir": str(run),
        "on_error": "skip",
        "max_epochs": 1,
        "explain": None,
    }
    for run_id in ("run", "evaluate"):
        start(bundle, "train", "demo", run_id=run_id, **settings).run()
    written = (run / "evaluation.json").read_text() + (run / "report.html").read_text()
    assert all(f"{tag}: wanted" in written for tag in DAMAGED)
    assert len(list((run / "cache").glob("*.entry"))) == len(list((damaged / "scans").iterdir())) - len(DAMAGED)
    assert json.loads((run / "run.json").read_text())["chain"]["name"] == "lung_ct"
    out = capfd.readouterr()
    assert "skipped" in caplog.text
    assert find_markers((caplog.text + out.out + out.err).encode(), "output") == []
    assert find_in_folder(run) == []


def test_raised(damaged: Path, tmp_path: Path) -> None:
    """The traceback too (`run_command`)."""
    bundle = bundle_of(NAME)
    arguments = ["--config_file", str(bundle.config("train", "demo")), "--bundle_root", str(bundle.root)]
    result = run_command(tmp_path, "run", *arguments, *options(bundle, damaged, tmp_path / "run"), check=False)
    assert result.returncode == 1
    lines = result.stderr.rpartition("\nerror: ")[2].strip().splitlines()
    assert len(lines) == 1 + len(DAMAGED)
    assert all(any(f"{tag}: wanted" in line for line in lines) for tag in DAMAGED)
