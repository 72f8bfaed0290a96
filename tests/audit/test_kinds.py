"""What a source holds is seen from its files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom.data import get_testdata_file

from monai_pipelines.audit import kind_named, list_source
from monai_pipelines.phantoms.dicom import write_dicom_series
from tests.slides.slide_files import levels, write_slide


def _fill(folder: Path, kind: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 200, (64, 64, 6)).astype(np.int16)
    if kind == "series":
        names = ["p1/s1", "p2/s1"]
        for name in names:
            write_dicom_series(folder / name, noise, np.diag([-1.0, -1, 3, 1]), patient_id=name)
    elif kind == "nifti":
        names = ["a.nii.gz", "sub/b.nii"]
        (folder / "sub").mkdir()
        for name in names:
            nib.save(nib.Nifti1Image(noise, np.eye(4)), folder / name)
    elif kind == "slide":
        names = ["a.svs", "b.tif"]
        for seed, name in enumerate(names):
            write_slide(folder / name, levels(300, 400, (1, 2), seed))
    else:
        names = ["x/a.png", "x/b.png", "y/c.tif"]
        for k, name in enumerate(names):
            (folder / name).parent.mkdir(exist_ok=True)
            if name.endswith("tif"):
                tifffile.imwrite(folder / name, noise[..., k].astype(np.uint8))
            else:
                Image.fromarray(noise[..., k].astype(np.uint8)).save(folder / name)
    return names


@pytest.mark.parametrize(
    ("content", "kind"), [("series", "scan"), ("nifti", "scan"), ("slide", "slide"), ("image", "image")]
)
@pytest.mark.parametrize("source", ["folder", "labeled", "unlabeled"])
def test_kind_of_a_source(tmp_path: Path, content: str, kind: str, source: str) -> None:
    names = _fill(tmp_path, content)
    if source != "folder":
        rows = [f"{name},{'ab'[k % 2]}" if source == "labeled" else name for k, name in enumerate(names)]
        (tmp_path / "table.csv").write_text("\n".join(["image,label" if source == "labeled" else "image", *rows]))
    found, listing = list_source(tmp_path)
    assert found == kind
    assert [item["name"] for item in listing.items] == names
    labels = (
        ("x", "y") if content == "image" and source == "folder" else ("a", "b") if source == "labeled" else ("all",)
    )
    assert listing.classes == labels


def test_one_slice_is_an_image_and_an_x_ray_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1").write_bytes(Path(get_testdata_file("examples_palette.dcm")).read_bytes())
    assert list_source(tmp_path)[0] == "image"
    (tmp_path / "table.csv").write_text(f"image,label\n{get_testdata_file('CT_small.dcm')},0\na/1,1\n")
    assert list_source(tmp_path)[0] == "image"
    assert list_source(tmp_path, kind="scan")[0] == "scan"


def test_arguments_of_load_ct_are_for_scans() -> None:
    assert kind_named("scan", tilt="correct").name == "scan"
    with pytest.raises(ValueError, match="the reader of slides has no argument 'tilt'"):
        kind_named("slide", tilt="correct")
    with pytest.raises(ValueError, match=r"LoadCT has no argument 'tilted' .did you mean 'tilt'"):
        kind_named("scan", tilted=True)


def test_mpp_of_a_table_is_used(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", levels(300, 400, (1, 2)))
    (tmp_path / "table.csv").write_text("image,label,mpp\na.svs,0,0.25\na.svs,1,7\n")
    kind, listing = list_source(tmp_path)
    assert (kind, listing.items[0]["mpp"]) == ("slide", 0.25)
    assert any("mpp wants" in problem for problem in listing.problems)
