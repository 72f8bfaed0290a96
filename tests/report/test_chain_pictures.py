"""`show --picture --boxes`: boxes are drawn where the lesions are, after every step."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.figure
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from monai_pipelines.data import read_image_boxes
from monai_pipelines.errors import CohortError
from monai_pipelines.report.chains import draw_chain


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    figures: list[Any] = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, file: figures.append(self))
    return figures


def _bright(axis: Any) -> list[float]:
    """Left, bottom, right, top of what is bright in an image, on the axes."""
    [image] = axis.images
    values = np.asarray(image.get_array())
    rows, columns = np.nonzero(values > (values.min() + values.max()) / 2)
    left, right, bottom, top = image.get_extent()
    if image.origin == "upper":
        bottom, top = top, bottom
    x = left + (right - left) * np.array([columns.min(), columns.max() + 1]) / values.shape[1]
    y = bottom + (top - bottom) * np.array([rows.min(), rows.max() + 1]) / values.shape[0]
    return [min(x), min(y), max(x), max(y)]


def _rectangles(axis: Any) -> list[list[float]]:
    boxes = [path.get_extents() for collection in axis.collections for path in collection.get_paths()]
    return [[box.xmin, box.ymin, box.xmax, box.ymax] for box in boxes]


def test_boxes_of_an_oblique_scan(tmp_path: Path, drawn: list[Any]) -> None:
    a, b = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]) @ np.diag([-1.0, -1.2, 3])
    affine[:3, 3] = [60, 80, -40]
    shape = (90, 80, 40)
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]
    center, radius = affine[:3, :3] @ [30, 50, 15] + affine[:3, 3], 12
    hu = np.where(np.linalg.norm(at - center, axis=-1) < radius, 300, -900).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "p1.nii.gz")
    row = ",".join(f"{v:.3f}" for v in [*center * [-1, -1, 1], 2 * radius])
    (tmp_path / "boxes.csv").write_text(f"image,x_mm,y_mm,z_mm,diameter_mm,space\np1,{row},LPS\np2,,,,,\n")
    draw_chain("lung_ct_detection", tmp_path / "p1.nii.gz", "unused", tmp_path / "boxes.csv")
    [figure] = drawn
    assert len(figure.axes) == 8
    for axis in figure.axes:
        [box] = _rectangles(axis)
        np.testing.assert_allclose(box, _bright(axis), atol=3.1)


def test_boxes_of_an_image(tmp_path: Path, drawn: list[Any]) -> None:
    pixels = np.full((120, 200), 40, np.uint8)
    pixels[30:70, 120:180] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("image,x,y,width,height\na.png,120,30,60,40\nb.png,0,0,9,9\n")
    draw_chain("xray_detection", tmp_path / "a.png", "unused", tmp_path / "boxes.csv", size=[256, 256])
    for axis in drawn[0].axes:
        [box] = _rectangles(axis)
        np.testing.assert_allclose(box, _bright(axis), atol=1)
    draw_chain("image2d", tmp_path / "a.png", "unused")
    assert not any(map(_rectangles, drawn[1].axes))


def test_command(tmp_path: Path) -> None:
    main = import_module("monai_pipelines.__main__").app
    Image.new("L", (60, 40)).save(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("image,x,y,width,height\na.png,10,20,30,10\n")
    arguments = ["show", "xray_detection", "--boxes", str(tmp_path / "boxes.csv")]
    assert CliRunner().invoke(main, arguments).exit_code == 2
    arguments += ["--input", str(tmp_path / "a.png"), "--picture", str(tmp_path / "out.png")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out.png") as picture:
        colors = np.asarray(picture.convert("RGB")).astype(int)
    assert (colors[..., 0] - colors[..., 2] > 100).sum() > 100


def test_names_of_images(tmp_path: Path) -> None:
    file = tmp_path / "boxes.csv"
    rows = ["a/x.png,1,0,2,2", "b/x.png,2,0,2,2", "y,3,0,2,2", "z.png,,,,"]
    file.write_text("\n".join(["image,x,y,width,height", *rows]))
    assert read_image_boxes("any/b/x.png", file).tolist() == [[0, 2, 2, 4]]
    assert read_image_boxes("any/y.png", file).tolist() == [[0, 3, 2, 5]]
    assert read_image_boxes("z.png", file).shape == (0, 4)
    with pytest.raises(CohortError, match=r"x.png may be a/x.png or b/x.png"):
        read_image_boxes("c/x.png", file)
    with pytest.raises(CohortError, match=r"does not name any/zz.png.*z.png"):
        read_image_boxes("any/zz.png", file)
    file.write_text("image,x,y,width,height\na.png,1,1,0,5\n")
    with pytest.raises(CohortError, match="a box of size 0 in x"):
        read_image_boxes("a.png", file)


def test_boxes_on_slices_of_real_scans(shared_data: Path) -> None:
    for patient, series in (("A0001", "series-2"), ("A0002", "series-3")):
        boxes = read_image_boxes(shared_data / "ct" / patient / series, shared_data / "ct/annotation" / patient)
        assert boxes.shape == (1, 6)
        sides = boxes[0, 3:] - boxes[0, :3]
        assert ((sides > 30) & (sides < 150)).all()
