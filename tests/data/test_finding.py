"""Inputs to be classified: rows of a table, one file, or everything of a kind in a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.data import find_images, find_scans, find_slides
from monai_pipelines.errors import CohortError

Find = Callable[[Path], list[dict[str, Any]]]
EVERY = pytest.mark.parametrize(
    ("find", "one"), [(find_scans, "a scan"), (find_images, "an image"), (find_slides, "a slide")]
)


def _fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def _names(find: Find, folder: Path) -> list[str]:
    items = find(folder)
    assert [item["image"] for item in items] == [str(folder / item["name"]) for item in items]
    return [item["name"] for item in items]


@EVERY
def test_table_and_single_file(tmp_path: Path, find: Find, one: str) -> None:
    table = _fill(tmp_path, "b/a.tif") / "table.csv"
    table.write_text("image,label,mpp\n b/a.tif ,x,\nlost.tif,,\n")
    assert find(table) == [{"image": str(tmp_path / name), "name": name} for name in ("b/a.tif", "lost.tif")]
    assert find(tmp_path / "b/a.tif") == [{"image": str(tmp_path / "b/a.tif"), "name": "a.tif"}]


@EVERY
def test_nothing_to_classify(tmp_path: Path, find: Find, one: str) -> None:
    kind = one.split()[1]
    with pytest.raises(FileNotFoundError, match=f"lost: no such .* wanted a CSV table, a folder of {kind}s, or {one}"):
        find(tmp_path / "lost")
    with pytest.raises(CohortError, match=f"no {kind} in it: wanted "):
        find(_fill(tmp_path, "readme.txt"))
    table = tmp_path / "table.csv"
    for text, problem in (("image,site\na,x\n,y\n", "line 3: no image"), ("scan\na\n", "no column 'image'")):
        table.write_text(text)
        with pytest.raises(CohortError, match=problem):
            find(table)


def test_scans_in_a_folder(tmp_path: Path) -> None:
    """Only notes, tables and data files of volumes are ignored."""
    _fill(tmp_path, "p2/ct/1.dcm", "p2/ct/2.dcm", "p1/IM0001", "p1/.DS_Store", "x.nii.gz", "deep/er/y.MHA")
    _fill(tmp_path, "table.csv", "notes/readme.txt", "v/a.mhd", "v/a.raw", "mixed/b.nii", "mixed/b.json", "mixed/1.dcm")
    wanted = ["deep/er/y.MHA", "mixed", "mixed/b.nii", "p1", "p2/ct", "v/a.mhd", "x.nii.gz"]
    assert _names(find_scans, tmp_path) == wanted


def test_images_in_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _fill(tmp_path, "b/2.png", "a.dcm", "b/c/1.JPG", "b/notes.txt", ".hidden.png")
    assert _names(find_images, tmp_path) == ["a.dcm", "b/2.png", "b/c/1.JPG"]
    assert ".txt (1)" in caplog.text


def test_slides_in_a_folder(tmp_path: Path) -> None:
    _fill(
        tmp_path, "a.SVS", "deep/b.mrxs", "deep/b/Slidedat.ini", "deep/b/Data0000.dat", "series/1.dcm", "series/2.dcm"
    )
    _fill(tmp_path, "c.tiff", ".d.svs", "masks/a.png", "table.txt")
    assert _names(find_slides, tmp_path) == ["a.SVS", "c.tiff", "deep/b.mrxs", "series"]


def test_slides_beside_clutter_and_links(tmp_path: Path) -> None:
    """Thumbnails of file servers are no slides; links are followed, but not in circles, and broken ones are listed."""
    _fill(tmp_path, "in/a.svs", "in/@eaDir/a.svs", "in/__MACOSX/b.svs", "in/._c.svs", "in/#recycle/d.svs")
    _fill(tmp_path, "out/far.svs", "out/series/1.dcm", "in/.hidden/e.svs")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "lost.svs").symlink_to(tmp_path / "gone.svs")
    assert _names(find_slides, tmp_path / "in") == ["a.svs", "linked/far.svs", "linked/series", "lost.svs"]


@pytest.mark.parametrize("find", [find_scans, find_slides])
def test_a_folder_that_is_one_series(tmp_path: Path, find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    series = _fill(tmp_path / "series", "1.dcm", "2.dcm")
    assert find(series) == [{"image": str(series), "name": "series"}]
    monkeypatch.chdir(series)
    assert find(Path(".")) == [{"image": ".", "name": "series"}]


def test_mpp_of_a_table_of_slides(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("image,label,mpp\na.svs,tumour, 0.250\nb.svs,,\n")
    assert find_slides(tmp_path / "table.csv") == [
        {"image": str(tmp_path / "a.svs"), "name": "a.svs", "mpp": 0.25},
        {"image": str(tmp_path / "b.svs"), "name": "b.svs"},
    ]
