"""Other data for the test: all of it, with other class names, beside the training data or alone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_pipelines.data import (
    ArrayDataset,
    Cohort,
    read_cohort,
    read_detection_cohort,
    read_images,
    read_medmnist,
    read_slides,
)
from monai_pipelines.data.contents import content_hash, content_hashes
from monai_pipelines.errors import CohortError
from monai_pipelines.runs.trained import check_split

RENAME = {"NORMAL": "normal", "VIRUS": "pneumonia", "BACTERIA": "pneumonia"}


def _fill(folder: Path, *names: str, content: str = "") -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content}{name}")
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return _fill(tmp_path / "data", *(f"{c}/{k}.png" for c in ("normal", "pneumonia") for k in range(10)))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Generic names, some of them as in training."""
    names = [f"{c}/{k}.png" for c in ("NORMAL", "VIRUS", "BACTERIA") for k in range(3)]
    return _fill(tmp_path / "other", *names, content="other ")


def test_all_of_other_data_are_the_test(trained: Path, other: Path) -> None:
    classes = ["normal", "pneumonia"]
    alone = read_images(None, classes, test_source=other, rename=RENAME)
    assert (alone.train, alone.validation, alone.external) == ([], [], True)
    assert sorted(alone.labels("test")) == [0] * 3 + [1] * 6
    beside = read_images(trained, classes, test_source=other, rename=RENAME)
    assert [len(beside.train), len(beside.validation), len(beside.test)] == [16, 4, 9]
    assert beside.test == alone.test
    assert read_images(other, classes, fractions=(0, 0, 1), rename=RENAME).test == alone.test


def test_only_one_class_of_other_data_is_enough(tmp_path: Path) -> None:
    other = _fill(tmp_path / "other", "pneumonia/a.png")
    assert read_images(None, ["normal", "pneumonia"], test_source=other).labels("test") == [1]
    with pytest.raises(CohortError, match="no folder for class 'normal'"):
        read_images(other, ["normal", "pneumonia"])


def test_unknown_classes_say_how_they_are_mapped(other: Path) -> None:
    with pytest.raises(CohortError) as error:
        read_images(None, ["normal", "pneumonia"], test_source=other, rename={"NORMAL": "normal", "VIRUS": "pneumonia"})
    assert error.value.problems == [
        "folder 'BACTERIA' is none of the classes normal, pneumonia",
        "to train with the names that the data have, add --classes \"['NORMAL','BACTERIA','VIRUS']\"",
        "classes of other names are mapped by rename, as {'theirs': 'yours'} (evaluate --map theirs=yours)",
    ]


def test_a_split_with_a_test_alone_is_for_evaluation(tmp_path: Path) -> None:
    data = _fill(tmp_path, "test/a/1.png", "test/b/1.png")
    cohort = read_images(data)
    assert (len(cohort.train), len(cohort.validation), len(cohort.test)) == (0, 0, 2)
    (tmp_path / "table.csv").write_text("image,label,split\ntest/a/1.png,a,test\ntest/b/1.png,b,test\n")
    assert len(read_cohort(tmp_path / "table.csv").test) == 2


def test_test_images_of_the_training_data_are_left_out(
    tmp_path: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = _fill(
        tmp_path / "data", *(f"{s}/{c}/{k}.png" for s in ("train", "test") for c in ("a", "b") for k in range(4))
    )
    cohort = read_images(data, test_source=other, rename={"NORMAL": "a", "VIRUS": "a", "BACTERIA": "b"})
    assert {item["name"][:6] for item in [*cohort.train, *cohort.validation]} == {"train/"}
    assert [len(cohort.train), len(cohort.validation), len(cohort.test)] == [6, 2, 9]
    assert "its test images are left out, other data are the test: 8" in caplog.text


def test_names_in_both_stay_apart(trained: Path, tmp_path: Path) -> None:
    other = shutil.copytree(trained, tmp_path / "elsewhere")
    cohort = read_images(trained, test_source=other)
    assert all(item["name"].startswith("elsewhere/") and item["patient"] == item["name"] for item in cohort.test)


def test_a_pattern_that_finds_nobody_elsewhere_is_not_used(
    tmp_path: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"patient_pattern": r"(person\d+)_", "rename": RENAME, "classes": ["normal", "pneumonia"]}
    cohort = read_images(None, test_source=other, **options)  # type: ignore[arg-type]
    assert {item["patient"] for item in cohort.test} == {item["name"] for item in cohort.test}
    assert "finds no patient in it: every image counts as a different one" in caplog.text
    named = _fill(tmp_path / "named", "normal/person1_a.png", "normal/person1_b.png")
    cohort = read_images(None, test_source=named, **options)  # type: ignore[arg-type]
    assert {item["patient"] for item in cohort.test} == {"person1"}


def test_tables_and_slides(tmp_path: Path) -> None:
    for folder in ("data", "other"):
        _fill(tmp_path / folder, *(f"{k}.tif" for k in range(8)), content=folder)
    rows = "\n".join(f"{k}.tif,{('healthy', 'ill')[k % 2]}" for k in range(8))
    (tmp_path / "data" / "table.csv").write_text(f"image,label\n{rows}\n")
    (tmp_path / "other" / "table.csv").write_text("image,label,site\n0.tif,H,x\n1.tif,I,y\n")
    options = {"test_source": tmp_path / "other", "rename": {"H": "healthy", "I": "ill"}}
    for read in (read_cohort, read_slides):
        for source in (None, tmp_path / "data", tmp_path / "data" / "table.csv"):
            cohort = read(source, ["healthy", "ill"], **options)
            assert (cohort.labels("test"), [item["site"] for item in cohort.test]) == ([0, 1], ["x", "y"])
            assert len(cohort.train) == (0 if source is None else 6)


def test_boxes(tmp_path: Path) -> None:
    for folder in ("data", "other"):
        _fill(tmp_path / folder, *(f"{k}.png" for k in range(12)), content=folder)
        rows = "\n".join(f"{k}.png,{'nodule' if folder == 'data' else 'Nodulus'},1,2,3,4" for k in range(8))
        (tmp_path / folder / "boxes.csv").write_text(f"image,class,x,y,width,height\n{rows}\n")
    options = {"classes": ["nodule"], "check_inside": False, "rename": {"Nodulus": "nodule"}}
    for source in (None, tmp_path / "data"):
        cohort = read_detection_cohort(source, test_source=tmp_path / "other", **options)  # type: ignore[arg-type]
        assert (len(cohort.test), sum(len(item["boxes"]) for item in cohort.test)) == (12, 8)
        assert len(cohort.train) == (0 if source is None else 10)
    (tmp_path / "other" / "boxes.csv").rename(tmp_path / "elsewhere.csv")
    options["boxes"] = tmp_path / "elsewhere.csv"
    cohort = read_detection_cohort(None, test_source=tmp_path / "other", **options)  # type: ignore[arg-type]
    assert sum(len(item["boxes"]) for item in cohort.test) == 8


def test_arrays(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=[0, 1, 1, 0])
    read = read_medmnist("pneumoniamnist", None, test_source=tmp_path / "own.npz")
    assert (len(read.train), read.labels("test"), read.external) == (0, [0, 1, 1, 0], True)
    np.savez(tmp_path / "own.npz", images=images, labels=[0, 1, 2, 0])
    with pytest.raises(CohortError, match=r"labels: wanted 0 to 1, \('N',\), got 0 to 2"):
        read_medmnist("pneumoniamnist", None, test_source=tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", images=images)
    with pytest.raises(CohortError, match="neither images with labels"):
        read_medmnist("pneumoniamnist", None, test_source=tmp_path / "own.npz")


# ---- seen in training


def _external(source: Path) -> Cohort:
    return read_images(None, ["normal", "pneumonia"], test_source=source)


def test_equal_contents_are_an_error_whatever_their_names(trained: Path, tmp_path: Path) -> None:
    card = read_images(trained).split_card
    item = read_images(trained).train[0]
    copied = tmp_path / "other" / "normal" / "new.png"
    copied.parent.mkdir(parents=True)
    shutil.copy(item["image"], copied)
    (copied.parent / "really_new.png").write_text("new")
    with pytest.raises(ValueError, match=r"^1 of 2 test images have the contents of images seen in training"):
        check_split(card, _external(tmp_path / "other"))


def test_equal_names_alone_are_a_warning(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    card = read_images(trained).split_card
    names = [f"normal/{k}.png" for k in range(10)]
    other = _fill(tmp_path / "other", *names, content="other ")
    cohort = read_images(trained)
    num = len({item["name"] for item in [*cohort.train, *cohort.validation]} & {*names})
    with caplog.at_level(logging.WARNING):
        check_split(card, _external(other))
    assert f"{2 * num} names or patients of the test data are also names in training" in caplog.text


def test_hashes_follow_the_content(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, 1 << 20, dtype=np.uint8).tobytes()
    for name, content in {"a/1": large, "a/2": b"x", "b/2": large, "b/1": b"x", "c/1": large[:-1]}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b") != content_hash(tmp_path / "c")
    changed = bytearray(large)
    changed[len(large) // 3 : len(large) // 3 + (1 << 17)] = bytes(1 << 17)
    (tmp_path / "c" / "1").write_bytes(changed)
    assert content_hash(tmp_path / "c" / "1") != content_hash(tmp_path / "a" / "1")
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    images[1] = 1
    assert len(content_hashes(ArrayDataset(images, None))) == 2
