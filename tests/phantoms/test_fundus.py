from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_pipelines.phantoms import FundusPhoto, fundus_photo, write_fundus_cohort
from monai_pipelines.phantoms.retina import Camera
from tests.phantoms.written_files import read_rows

SMALL = {"size": 96, "progress": False}


def _pair(seed: int) -> tuple[FundusPhoto, FundusPhoto]:
    healthy, diseased = (fundus_photo(seed, diseased=diseased, size=200) for diseased in (False, True))
    return healthy, diseased


def _far_from(photo: FundusPhoto) -> np.ndarray:
    """Distance of every pixel from the nearest lesion's border."""
    rows, columns = np.mgrid[: len(photo.rgb), : len(photo.rgb)]
    return np.min([np.hypot(rows - one.y, columns - one.x) - one.radius for one in photo.lesions], axis=0)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fundus_cohort(tmp_path_factory.mktemp("fundus"), 6, seed=3, num_workers=1, **SMALL)


def test_both_eyes_of_a_patient_are_in_one_class(cohort: Path) -> None:
    assert sorted(path.name for path in cohort.iterdir()) == ["disease", "lesions.csv", "normal"]
    eyes = {name: sorted(path.stem for path in (cohort / name).glob("*.jpeg")) for name in ("disease", "normal")}
    patients = {name: [stem.split("_") for stem in stems] for name, stems in eyes.items()}
    for stems in patients.values():
        assert [side for _, side in stems] == ["left", "right"] * 3
    assert {p for p, _ in patients["disease"]}.isdisjoint(p for p, _ in patients["normal"])
    with Image.open(next(cohort.glob("normal/*"))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (96, 96))


def test_only_diseased_eyes_have_lesions(cohort: Path) -> None:
    rows = read_rows(cohort / "lesions.csv")
    assert list(rows[0]) == ["image", "kind", "x", "y", "radius"]
    assert {row["image"] for row in rows} == {f"disease/{path.name}" for path in (cohort / "disease").iterdir()}
    assert {row["kind"] for row in rows} >= {"microaneurysm", "haemorrhage", "exudate"}
    assert all(0 <= float(row["x"]) < 96 and 0 <= float(row["y"]) < 96 for row in rows)


@pytest.mark.parametrize("seed", range(4))
def test_classes_differ_by_the_lesions_only(seed: int) -> None:
    healthy, diseased = _pair(seed)
    assert healthy.lesions == []
    assert (healthy.disc, healthy.macula) == (diseased.disc, diseased.macula)
    change = np.abs(healthy.rgb.astype(int) - diseased.rgb).max(axis=2)
    far = _far_from(diseased)
    assert change[far < 0].mean() > 10
    assert (change[far > 0.5 * max(one.radius for one in diseased.lesions) + 4] == 0).all()


def test_hemorrhages_are_dark_and_exudates_bright() -> None:
    greens: dict[str, list[float]] = {}
    for seed in range(8):
        healthy, diseased = _pair(seed)
        green = diseased.rgb[..., 1].astype(int) - healthy.rgb[..., 1]
        for one in diseased.lesions:
            greens.setdefault(one.kind, []).append(green[round(one.y), round(one.x)])
    assert np.mean(greens["haemorrhage"]) < -15
    assert np.mean(greens["exudate"]) > 15
    assert np.mean(greens["haemorrhage"]) < np.mean(greens["microaneurysm"]) < 0


def test_disc_is_bright_and_on_the_nasal_side() -> None:
    for seed in range(6):
        for left in (False, True):
            photo = fundus_photo(seed, diseased=False, left=left, size=200)
            x, y, radius = photo.disc
            assert (x < photo.macula[0]) == left
            rows, columns = np.mgrid[:200, :200]
            lit = photo.rgb.sum(axis=2) > 0
            off = np.hypot(rows - y, columns - x)
            green = photo.rgb[..., 1].astype(float)
            disc, around = (off < 0.8 * radius) & lit, (off > 1.5 * radius) & (off < 3 * radius) & lit
            assert green[disc].mean() > green[around].mean() + 8


def test_black_outside_the_cameras_field() -> None:
    rows, columns = np.mgrid[:100, :100].astype(float)
    camera = Camera(0.5, 0.4, False, np.ones(3), 0.5, 3.0)
    photo = fundus_photo(0, diseased=True, size=100, camera=camera)
    lit = photo.rgb.any(axis=2)
    wanted = (np.hypot(rows - 49.5, columns - 49.5) < 49.5) & (np.abs(rows - 49.5) < 40)
    assert not lit[np.hypot(rows - 49.5, columns - 49.5) > 51].any()
    assert not lit[np.abs(rows - 49.5) > 41].any()
    assert lit[wanted].mean() > 0.99


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_patients must be at least 2, one per class, got 1"):
        write_fundus_cohort(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="size must be at least 64 pixels, got 32"):
        write_fundus_cohort(tmp_path / "a", 2, size=32)
    assert not (tmp_path / "a").exists()
