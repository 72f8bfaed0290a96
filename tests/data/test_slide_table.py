"""Tables and folders of slides, with resolution, annotation and features."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_pipelines.data import find_slides, read_slides
from monai_pipelines.data.slide_table import slide_source
from monai_pipelines.errors import CohortError

CLASSES = ["normal", "tumour"]


def _table(folder: Path, rows: list[str], columns: str = "image,label,mpp,annotation") -> Path:
    (folder / "table.csv").write_text("\n".join([columns, *rows]), encoding="utf-8")
    return folder / "table.csv"


def _slides(folder: Path, num: int = 6) -> list[str]:
    names = [f"slide {number}.svs" for number in range(num)]
    for name in names:
        (folder / name).touch()
    return names


def test_columns(tmp_path: Path) -> None:
    (tmp_path / "b.geojson").touch()
    rows = [f"{name},{n % 2}," for n, name in enumerate(_slides(tmp_path))]
    rows[1] = "slide 1.svs,tumour, 0.25 ,b.geojson"
    cohort = read_slides(_table(tmp_path, rows), CLASSES, seed=1)
    items = {item["name"]: item for item in cohort.train + cohort.validation + cohort.test}
    assert items["slide 1.svs"] == {
        "image": str(tmp_path / "slide 1.svs"),
        "name": "slide 1.svs",
        "label": 1,
        "patient": "slide 1.svs",
        "mpp": 0.25,
        "annotation": str(tmp_path / "b.geojson"),
    }
    assert not {"mpp", "annotation"} & items["slide 0.svs"].keys()


def test_a_slide_with_features_may_be_missing(tmp_path: Path) -> None:
    names = [f"site/{name}" for name in ("a.svs", "b.mrxs", "c.ndpi", "d.tif", "e", "f.svs")]
    table = _table(tmp_path, [f"{name},{n % 2},," for n, name in enumerate(names)])
    features = tmp_path / "features"
    (features / "site").mkdir(parents=True)
    for stem in "abcde":
        (features / "site" / f"{stem}.h5").touch()
    with pytest.raises(CohortError) as caught:
        read_slides(table, CLASSES, features_dir=features)
    assert [line for line in caught.value.problems if "no such file" in line] == [
        "line 7: site/f.svs: no such file or folder"
    ]
    (features / "site" / "f.h5").touch()
    assert len(read_slides(table, CLASSES, features_dir=features).train) == 2
    with pytest.raises(CohortError, match="6 problem"):
        read_slides(table, CLASSES)


def test_all_problems_at_once(tmp_path: Path) -> None:
    rows = [f"{name},{n % 2},," for n, name in enumerate(_slides(tmp_path))]
    rows[0], rows[1] = "slide 0.svs,0,20x,", "slide 1.svs,1,,gone.geojson"
    rows.append("gone.svs,1,,")
    with pytest.raises(CohortError) as caught:
        read_slides(_table(tmp_path, rows), CLASSES)
    assert caught.value.problems == [
        "line 8: gone.svs: no such file or folder",
        "slide 0.svs: mpp wants a number of um per pixel, 0.1 to 2, or nothing, got '20x'",
        "slide 1.svs: annotation gone.geojson: no such file",
    ]


@pytest.mark.parametrize("mpp", ["20x", "250", "0.01", "nan", "inf", "-0.5"])
def test_implausible_mpp_is_an_error_of_both_readers(tmp_path: Path, mpp: str) -> None:
    rows = [f"{name},{n % 2},{mpp if n < 2 else ''}" for n, name in enumerate(_slides(tmp_path))]
    table = _table(tmp_path, rows, "image,label,mpp")
    for read in (find_slides, read_slides):
        with pytest.raises(CohortError) as caught:
            read(table)
        assert [line.split(":")[0] for line in caught.value.problems] == ["slide 0.svs", "slide 1.svs"]
        assert repr(mpp) in caught.value.problems[0]


def test_source_depends_on_every_file_of_a_slide(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a.mrxs", "a/Data0000.dat"):
        (tmp_path / name).write_text("pixels")
    item = {"image": str(tmp_path / "a.mrxs")}
    before = slide_source(item)
    assert slide_source({**item, "mpp": ""}) == before
    assert slide_source({**item, "mpp": 0.5}) == slide_source({**item, "mpp": "0.5"}) != before
    (tmp_path / "a" / "Data0000.dat").write_text("other pixels")
    assert slide_source(item) != before
