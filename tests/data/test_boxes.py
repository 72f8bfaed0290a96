"""Detection cohorts: boxes of every form, assigned to images, checked all at once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from monai_pipelines.data import Cohort, read_detection_cohort
from monai_pipelines.data.box_files import read_boxes
from monai_pipelines.data.box_scans import image_size, scan_grid
from monai_pipelines.errors import CohortError
from monai_pipelines.phantoms import write_dicom_series

SPLITS = ("train", "validation", "test")


def _images(folder: Path, num: int = 12, size: tuple[int, int] = (80, 60)) -> Path:
    """Empty images of width and height `size` and a table of them, two for each patient."""
    (folder / "images").mkdir()
    rows = ["image,patient"]
    for number in range(num):
        Image.new("L", size).save(folder / f"images/x{number}.png")
        rows.append(f"images/x{number}.png,p{number // 2}")
    (folder / "table.csv").write_text("\n".join(rows))
    return folder / "table.csv"


def _boxes(folder: Path, *rows: str, head: str = "image,class,x,y,width,height") -> None:
    (folder / "boxes.csv").write_text("\n".join([head, *rows]))


HALF = [f"images/x{number}.png,nodule,10,20,5,4" for number in range(6)]


def _items(cohort: Cohort) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for split in SPLITS for item in getattr(cohort, split)}


def test_items(tmp_path: Path) -> None:
    table = _images(tmp_path, 24)
    nodules = [f"images/x{number}.png,nodule,10,20,5,4" for number in range(12)]
    masses = [f"x{number},mass,1,2,30,40" for number in (12, 14, 16)]
    rows = [*nodules, *masses, "x0,mass,1,2,30,40", "x3.png,mass,0,0,80,60", "x23.png,,,,,"]
    _boxes(tmp_path, *(f"{row},{'yes' if 'x3.png,mass' in row else ''}" for row in rows),
           head="image,class,x,y,width,height,ignore")  # fmt: skip
    cohort = read_detection_cohort(table)
    assert cohort.classes == ("mass", "nodule")
    items = _items(cohort)
    assert items["images/x0.png"]["boxes"].tolist() == [[20, 10, 24, 15], [2, 1, 42, 31]]
    assert items["images/x0.png"]["box_labels"].tolist() == [1, 0]
    assert items["images/x0.png"]["label"] == [1, 1]
    assert items["images/x3.png"]["box_ignore"].tolist() == [False, True]
    assert items["images/x3.png"]["label"] == [0, 1]
    for name in ("images/x18.png", "images/x23.png"):
        assert items[name]["boxes"].shape == (0, 4)
        assert items[name]["box_labels"].dtype == np.int64
        assert items[name]["label"] == [0, 0]
    for split in SPLITS:
        patients = {item["patient"]: any(item["label"]) for item in getattr(cohort, split)}
        assert set(patients.values()) == {True, False}, "patients with and without lesions in every split"
    assert len({p for split in SPLITS for p in {i["patient"] for i in getattr(cohort, split)}}) == 12


def test_digest_depends_on_the_boxes(tmp_path: Path) -> None:
    table = _images(tmp_path)
    _boxes(tmp_path, *HALF)
    first, again = (read_detection_cohort(table, seed=seed).digest for seed in (0, 1))
    _boxes(tmp_path, *HALF[:-1], HALF[-1].replace("10", "11"))
    assert first == again != read_detection_cohort(table).digest


def test_one_class_and_a_folder_of_images(tmp_path: Path) -> None:
    _images(tmp_path)
    _boxes(tmp_path, *HALF, "x0,mass,1,2,30,40")
    (tmp_path / "table.csv").unlink()
    cohort = read_detection_cohort(tmp_path, one_class="finding", patient_pattern=r"x(\d)")
    assert cohort.classes == ("finding",)
    assert _items(cohort)["images/x0.png"]["box_labels"].tolist() == [0, 0]
    assert _items(cohort)["images/x10.png"]["patient"] == "1"


def test_all_problems_at_once(tmp_path: Path) -> None:
    table = _images(tmp_path)
    table.write_text(table.read_text() + "\nimages/gone.png,p1")
    faults = [
        "images/x7.png,nodule,75,20,10,4", "x0,nodul,1,2,3,4", "x1,nodul,1,2,3,4", "x1,nodule,10,20,0,4",
        "x2,nodule,30,20,-5,4", "x3,nodule,a,inf,5,4", "y9.png,nodule,1,2,3,4", "y9.png,nodule,5,2,3,4",
        ",nodule,1,2,3,4", "x4,,1,2,3,4", HALF[0],
    ]  # fmt: skip
    _boxes(tmp_path, *HALF, *faults)
    with pytest.raises(CohortError) as caught:
        read_detection_cohort(table, classes=["nodule", "mass"])
    listed = "\n".join(caught.value.problems)
    for problem in (
        "line 14: images/gone.png: no such file or folder",
        "boxes.csv line 8: images/x7.png: box outside the image (20, 75, 24, 85; the image: 80 x 60 pixels); drawn on",
        "boxes.csv line 9 and 1 more: unknown class 'nodul' (did you mean 'nodule'?), wanted one of nodule, mass",
        "boxes.csv line 11: x1: a box of size 0 in x (at 10)",
        "boxes.csv line 12: x2: inverted in x: from 30 to 25; swap them",
        "boxes.csv line 13: x3: x: wanted a number, got 'a'",
        "boxes.csv line 13: x3: y: wanted a number, got 'inf'",
        "boxes.csv line 14 and 1 more: no image of the source is named y9.png",
        "boxes.csv line 16: no image",
        "boxes.csv line 17: x4: no class",
        "boxes.csv line 18: images/x0.png: the same box as in boxes.csv line 2; remove one",
    ):
        assert listed.count(problem) == 1, (problem, listed)
    assert len(caught.value.problems) == 11


def test_an_ambiguous_name(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        Image.new("L", (30, 30)).save(tmp_path / folder / "x.png")
    (tmp_path / "table.csv").write_text("image\na/x.png\nb/x.png")
    _boxes(tmp_path, "x.png,nodule,1,2,3,4")
    with pytest.raises(CohortError, match=r"line 2: x.png may be a/x.png or b/x.png; name it as the table does"):
        read_detection_cohort(tmp_path)


@pytest.mark.parametrize(
    ("head", "row", "problem"),
    [
        (
            "image,class,left,top",
            "x0,nodule,1,2",
            r"wanted the columns x_min, .* got no box; the columns are image, class",
        ),
        ("image,x_min,y_min,x_max,y_max,x,y,width,height", "x0" + ",1" * 8, "more than one form of box"),
        ("image,x_mm,y_mm,z_mm,diameter_mm", "x0,1,2,3,4", "boxes in mm without their space"),
        ("image,x_mm,y_mm,z_mm,diameter_mm,space", "x0,1,2,3,4,LSP", "space: wanted RAS or LPS, got 'LSP'"),
        ("image,x_min,y_min,x_max,y_max,ignore", "x0,1,2,3,4,maybe", "ignore: wanted 1 or 0, got 'maybe'"),
        ("image,x_min,ymin,x_max,y_max", "x0,1,2,3,4", "did you mean 'y_min'"),
    ],
)
def test_columns(head: str, row: str, problem: str, tmp_path: Path) -> None:
    _images(tmp_path)
    _boxes(tmp_path, row, head=head)
    with pytest.raises(CohortError, match=problem):
        read_detection_cohort(tmp_path)


def test_no_boxes_beside_the_table(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no boxes: wanted boxes.csv, boxes.json, boxes beside the table"):
        read_detection_cohort(_images(tmp_path))
    with pytest.raises(CohortError, match="no such file or folder; wanted boxes as CSV, COCO JSON or Pascal VOC XML"):
        read_boxes(tmp_path / "nothing.csv")
    with pytest.raises(CohortError, match="wanted boxes as CSV, COCO JSON, or Pascal VOC XML"):
        read_boxes(tmp_path / "images/x0.png")
    with pytest.raises(ValueError, match="space must be RAS or LPS, got 'lps'"):
        read_boxes(tmp_path, space="lps")


# ---- world boxes


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("image,x_mm,y_mm,z_mm,diameter_mm,space", "a,10,-20,30,8,ras"),
        ("image,x_mm,y_mm,z_mm,diameter_mm,space", "a,-10,20,30,8,LPS"),
        ("image,x_min_mm,y_min_mm,z_min_mm,x_max_mm,y_max_mm,z_max_mm,space", "a,6,-24,26,14,-16,34,RAS"),
        ("image,x_min_mm,y_min_mm,z_min_mm,x_max_mm,y_max_mm,z_max_mm,space", "a,-14,16,26,-6,24,34,LPS"),
    ],
)
def test_world_boxes(head: str, row: str, tmp_path: Path) -> None:
    _boxes(tmp_path, row, head=head)
    table = read_boxes(tmp_path / "boxes.csv")
    assert (table.dims, table.classes) == (3, ["lesion"])
    assert table.rows[0].box == (6, -24, 26, 14, -16, 34)


def test_annotations_of_luna16(tmp_path: Path) -> None:
    file = tmp_path / "annotations.csv"
    file.write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3.6.1.4.1,-128.7,-175.3,-298.4,5.6\n")
    [row] = read_boxes(file).rows
    assert row.image == "1.3.6.1.4.1"
    np.testing.assert_allclose(row.box, [125.9, 172.5, -301.2, 131.5, 178.1, -295.6])


def test_world_boxes_must_lie_in_their_scan(tmp_path: Path) -> None:
    """A box in LPS that is called RAS lies elsewhere."""
    affine = nib.affines.from_matvec(np.diag([2.0, 2, 3]), [50, 60, -40])
    for name in "abcdef":
        nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.int16), affine), tmp_path / f"{name}.nii.gz")
    head = "image,x_mm,y_mm,z_mm,diameter_mm,space"
    (tmp_path / "table.csv").write_text("image\n" + "\n".join(f"{name}.nii.gz" for name in "abcdef"))
    _boxes(tmp_path, *(f"{name},-60,-70,-35,30,LPS" for name in "abc"), head=head)
    cohort = read_detection_cohort(tmp_path)
    assert {len(item["boxes"]) for item in cohort.test} == {0, 1}
    assert _items(cohort)["a.nii.gz"]["boxes"].tolist() == [[45, 55, -50, 75, 85, -20]]
    _boxes(tmp_path, *(f"{name},-60,-70,-35,30,RAS" for name in "abc"), head=head)
    with pytest.raises(
        CohortError, match=r"line 2: a.nii.gz: box outside the image .*RAS mm 50 to 88.*LPS and RAS mixed"
    ):
        read_detection_cohort(tmp_path)
    assert read_detection_cohort(tmp_path, check_inside=False).classes == ("lesion",)


# ---- COCO


def _coco(folder: Path, **parts: Any) -> None:
    content = {
        "images": [{"id": k, "file_name": f"x{k}.png", "height": 60, "width": 80} for k in range(12)],
        "categories": [{"id": 7, "name": "nodule"}, {"id": 3, "name": "mass"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": (7, 3)[k % 2], "bbox": [10, 20, 5, 4.5], "iscrowd": int(k == 5)}
            for k in range(10)
        ],
    }
    (folder / "boxes.json").write_text(json.dumps({**content, **parts}))


def test_coco(tmp_path: Path) -> None:
    table = _images(tmp_path)
    _coco(tmp_path)
    cohort = read_detection_cohort(table)
    assert cohort.classes == ("nodule", "mass")
    items = _items(cohort)
    assert items["images/x1.png"]["boxes"].tolist() == [[20, 10, 24.5, 15]]
    assert [items[f"images/x{k}.png"]["box_labels"].tolist() for k in (0, 1, 11)] == [[0], [1], []]
    assert items["images/x5.png"]["box_ignore"].tolist() == [True]


def test_coco_problems(tmp_path: Path) -> None:
    table = _images(tmp_path)
    _coco(tmp_path, annotations=[{"image_id": 99, "category_id": 1, "bbox": [1, 2, 3]}, 5], images=[{"id": 1}])
    with pytest.raises(CohortError) as caught:
        read_detection_cohort(table)
    listed = "\n".join(caught.value.problems)
    for problem in (
        "image no. 0: wanted an id and a file_name",
        "boxes.json annotation no. 0: image_id 99 is in no image",
        "boxes.json annotation no. 0: category_id 1 is in no category",
        "boxes.json annotation no. 0: bbox: wanted four numbers",
        "boxes.json annotation no. 1: image_id None is in no image",
    ):
        assert listed.count(problem) == 1, listed
    _coco(tmp_path, images=[{"id": k, "file_name": f"x{k}.png", "height": 600, "width": 800} for k in range(12)])
    with pytest.raises(CohortError, match=r"x0.png: 80 x 60 pixels, but boxes were drawn on 800 x 600 pixels"):
        read_detection_cohort(table)
    for text in ("{", "[]", '{"images": []}'):
        (tmp_path / "boxes.json").write_text(text)
        with pytest.raises(CohortError, match=r"not JSON|wanted COCO: an object with the lists images"):
            read_detection_cohort(table)


# ---- Pascal VOC

VOC = """<annotation><filename>{image}</filename><size><width>80</width><height>60</height></size>
{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><Difficult>{difficult}</Difficult>
<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>15</xmax><ymax>24</ymax></bndbox></object>"""


def _voc(folder: Path, image: str, name: str = "nodule", difficult: int = 0, stem: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    objects = OBJECT.format(name=name, difficult=difficult) if name else ""
    (folder / f"{stem or image}.xml").write_text(VOC.format(image=image, objects=objects))


def test_voc(tmp_path: Path) -> None:
    table = _images(tmp_path)
    for number in range(8):
        _voc(tmp_path / "boxes", f"x{number}.png", "nodule" if number < 7 else "", int(number == 6), f"{number}")
    items = _items(read_detection_cohort(table))
    assert items["images/x0.png"]["boxes"].tolist() == [[20, 10, 24, 15]], "pixels 11 to 15, counted from 1"
    assert items["images/x6.png"]["box_ignore"].tolist() == [True]
    assert len(items["images/x7.png"]["boxes"]) == 0


def test_voc_problems(tmp_path: Path) -> None:
    table = _images(tmp_path)
    for number in range(6):
        _voc(tmp_path / "boxes", f"x{number}.png", stem=f"{number}")
    bomb = '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    for name, text in {
        "bomb": bomb,
        "cut": "<annotation><object>",
        "other": "<html/>",
        "large": "<annotation>" + " " * 2**20,
        "empty": "<annotation><filename>x7.png</filename><object><bndbox/></object></annotation>",
    }.items():
        (tmp_path / f"boxes/{name}.xml").write_text(text)
    with pytest.raises(CohortError) as caught:
        read_detection_cohort(table)
    assert sorted(problem.split(" (")[0] for problem in caught.value.problems) == [
        "bomb.xml: declares a DOCTYPE or entities; export it without",
        "cut.xml: not XML",
        "empty.xml object 1: no class",
        "empty.xml object 1: wanted <bndbox> with the numbers xmin, ymin, xmax, ymax",
        "large.xml: more than 1 MB: not one image's boxes",
        "other.xml: wanted Pascal VOC with the root <annotation>",
    ]
    with pytest.raises(CohortError, match=r"no .xml in the folder"):
        read_boxes(tmp_path / "images")


def _series(folder: Path, name: str, num: int = 10) -> list[str]:
    """A scan of slices 4 mm apart; returns their UIDs from the lowest one up."""
    affine = nib.affines.from_matvec(np.diag([-2.0, -2, 4]), [80, 60, -100])
    hu = np.zeros((80, 60, num), np.int16)
    write_dicom_series(folder / name, hu, affine, patient_id=name, scan_id=name)
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in (folder / name).iterdir()]
    return [str(h.SOPInstanceUID) for h in sorted(headers, key=lambda h: h.ImagePositionPatient[2])]


def test_boxes_on_slices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uids = {name: _series(tmp_path, name) for name in "abcdef"}
    for name in "abc":
        for k in (2, 3, 5, 9):  # one slice in between is forgotten; the last is another lesion
            _voc(tmp_path / "boxes", uids[name][k])
    _voc(tmp_path / "boxes", "1.2.3.4.5.6")
    (tmp_path / "table.csv").write_text("image\n" + "\n".join("abcdef"))
    with caplog.at_level(logging.WARNING):
        items = _items(read_detection_cohort(tmp_path))
    assert "boxes on slices of series that are not in the source are left out: 1" in caplog.text
    # columns 10..15 from x = 80 + 1 mm, rows 20..24 from y = 60 + 1 mm, slices 2..5 from z = -100 - 2 mm
    expected = [[51, 13, -94, 61, 21, -78], [51, 13, -66, 61, 21, -62]]
    np.testing.assert_allclose(np.array(sorted(items["a"]["boxes"].tolist())), sorted(expected), atol=1e-4)
    assert items["d"]["boxes"].shape == (0, 6)


def test_slices_of_no_scan(tmp_path: Path) -> None:
    uids = {name: _series(tmp_path, name, 3) for name in "abcdef"}
    for name in "abc":
        (tmp_path / "boxes").mkdir(exist_ok=True)
        _voc(tmp_path / "boxes" / name, uids[name][1])
    _voc(tmp_path / "boxes" / "other", "1.2.3.4.5.6")
    (tmp_path / "table.csv").write_text("image\n" + "\n".join("abcdef"))
    with pytest.raises(
        CohortError, match=r"other/1.2.3.4.5.6.xml object 1: no image of the source is named 1.2.3.4.5.6"
    ):
        read_detection_cohort(tmp_path)


def test_size_of_an_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (80, 60)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (80, 60)).save(tmp_path / "plain.png")
    (tmp_path / "none.png").write_text("text")
    assert [image_size(tmp_path / name) for name in ("turned.jpg", "plain.png", "none.png")] == [
        (80, 60),
        (60, 80),
        None,
    ]


def test_what_operating_systems_put_beside_boxes_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(VOC.format(image="a.png", objects=""))
    (tmp_path / "__MACOSX").mkdir()
    for name in ("._a.xml", "__MACOSX/b.xml"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    table = read_boxes(tmp_path)
    assert (table.problems, table.without) == ([], [("a.xml", "a.png")])


def test_headers_are_read_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """nibabel and MetaImage report what they repair."""
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4))
    image.header["pixdim"][1] = -1
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    (tmp_path / "b.mhd").write_text("NDims = 3\nDimSize = 4 5\n")
    assert scan_grid(tmp_path / "a.nii") is not None
    assert scan_grid(tmp_path / "b.mhd") is None
    assert capfd.readouterr() == ("", "")
