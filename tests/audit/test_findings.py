"""Slides, cheap features that reveal the class, and what is written."""

from __future__ import annotations

import csv
import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_pipelines.audit import Audit, audit_cohort, kind_named, list_source
from monai_pipelines.report.audit import write_audit
from tests.audit.planted import small_scans
from tests.slides.slide_files import levels, write_slide


def _audit(source: Path) -> Audit:
    kind, listing = list_source(source)
    return audit_cohort(listing, kind_named(kind), num_workers=0)


def _noise(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


def test_slides(tmp_path: Path) -> None:
    for k in range(5):
        write_slide(tmp_path / f"{k}.svs", levels(300, 400, (1, 2), seed=k), mpp=0.5)
    (tmp_path / "again.svs").write_bytes((tmp_path / "0.svs").read_bytes())
    turned = [np.rot90(level).copy() for level in levels(300, 400, (1, 2), seed=1)]
    write_slide(tmp_path / "turned.svs", turned, mpp=0.25)
    (tmp_path / "cut.svs").write_bytes((tmp_path / "2.svs").read_bytes()[:2000])
    audit = _audit(tmp_path)
    assert audit.unit == "slide"
    assert audit.unreadable.keys() == {"cut.svs"}
    assert not audit.unreadable["cut.svs"].startswith("cut.svs")
    assert [group.images for group in audit.exact] == [["0.svs", "again.svs"]]
    assert [sorted(group.images) for group in audit.near] == [["1.svs", "turned.svs"]]
    assert audit.sizes["all"]["width"] == [300, 400, 400]
    assert audit.spacings["all"]["height"] == [0.25, 0.5, 0.5]
    assert audit.file_types["all"] == {"generic-tiff": 7}


@pytest.mark.parametrize(
    ("leak", "features"), [("size", "size"), ("type", "file type"), ("brightness", "gray levels"), (None, None)]
)
def test_what_cheap_features_reveal(tmp_path: Path, leak: str | None, features: str | None) -> None:
    rng = np.random.default_rng(0)
    for k in range(80):
        label = k % 2
        size = (30 + 10 * label if leak == "size" else int(rng.integers(30, 40)), 32)
        picture = _noise(size, k)
        if leak == "brightness" and label:
            picture = picture.point(lambda value: value // 2)
        suffix = "bmp" if leak == "type" and label else "png"
        (tmp_path / "ab"[label]).mkdir(exist_ok=True)
        picture.save(tmp_path / "ab"[label] / f"{k}.{suffix}")
    audit = _audit(tmp_path)
    table = {row["features"]: row for row in audit.shortcuts}
    revealing = [text for text in audit.to_review if "ROC AUC" in text]
    if features:
        assert table[features]["roc_auc"] > 0.99
        assert table[features]["low"] > 0.9
        assert f"ROC AUC of 1.00 from {features} alone" in revealing
    else:
        assert revealing == []
    assert audit.to_fix == []


def test_patients_are_not_split_between_folds(tmp_path: Path) -> None:
    """Each patient has images of one size, of which the label is random: known patients would be recognized."""
    rows = []
    rng = np.random.default_rng(1)
    for patient in range(20):
        label = int(rng.integers(2))
        for k in range(4):
            name = f"{patient}_{k}.png"
            _noise((20 + 3 * patient, 20), 100 * patient + k).save(tmp_path / name)
            rows.append(f"{name},{label},p{patient}")
    (tmp_path / "table.csv").write_text("\n".join(["image,label,patient", *rows]))
    (size,) = [row for row in _audit(tmp_path).shortcuts if row["features"] == "size"]
    assert size["low"] < 0.5 < size["high"]


def test_scanner_and_spacing_of_scans(tmp_path: Path) -> None:
    audit = _audit(small_scans(tmp_path, 24))
    table = {row["features"]: row["roc_auc"] for row in audit.shortcuts}
    assert set(table) == {"scanner", "HU", "all of them"}, "sizes and spacings are the same for all"
    assert audit.scanners["a"]["Phantom Works Plain 16"] == 3
    assert audit.items[0]["scanner"] == "Phantom Works Plain 16"


def test_what_is_written(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    for name in ("a", "b"):
        (data / name).mkdir(parents=True)
        for k in range(6):
            _noise((40, 40), k + 10 * (name == "b")).save(data / name / f"{k}.png")
    (data / "b/copy <i>.png").write_bytes((data / "a/0.png").read_bytes())
    (data / "b/dark.png").write_bytes(b"no image")
    Image.new("L", (40, 40), 7).save(data / "a/flat.png")
    audit = _audit(data)
    page = write_audit(out, audit, "python -m monai_pipelines audit data").read_text("utf-8")
    assert json.loads((out / "audit.json").read_text("utf-8"))["to_fix"] == audit.to_fix
    with (out / "audit.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) == 15
    assert rows["a/0.png"]["equal_to"] == "b/copy <i>.png"
    assert rows["a/1.png"] | {"low": "", "mean": "", "high": ""} == {
        **dict.fromkeys(rows["a/1.png"], ""),
        **{"name": "a/1.png", "split": "all", "class": "a", "verdict": "ok", "size": "40 x 40", "file_type": "png"},
    }
    assert rows["b/dark.png"]["verdict"].startswith("refused: not PNG")
    assert 'data-metric="num_items" data-of="" data-value="15"' in page
    assert 'data-metric="count" data-of="all b" data-value="8"' in page
    assert 'data-note="to-fix"' in page
    assert "copy &lt;i&gt;.png" in page
    assert "<i>" not in page
    assert page.count("data:image/png;base64,") >= 14
    assert "http" not in page.replace("http://www.w3.org", "")


def test_command_for_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = small_scans(tmp_path / "data", 12)
    next((tmp_path / "data/scans/s003").iterdir()).unlink()

    def run(*options: str) -> int:
        arguments = ["monai_pipelines", "audit", str(table), "--out", str(tmp_path / "out"), "--num-workers", "0"]
        monkeypatch.setattr(sys, "argv", [*arguments, *options])
        with pytest.raises(SystemExit) as end:
            import_module("monai_pipelines.__main__").main()
        return int(end.value.code or 0)

    assert run() == 1
    assert "1 unreadable scan." in capsys.readouterr().out.replace("\n", " ")
    assert run("--knob", "uneven=resample") == 0
    assert "resampled" in (tmp_path / "out/audit.csv").read_text("utf-8")
    assert run("--knob", "unevenly=resample") == 1
