"""Patients and equal images in more than one split."""

from __future__ import annotations

import json
import os
from itertools import count
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from monai_pipelines.data import ArrayDataset, audit_splits, find_images, overlap, patients_known
from monai_pipelines.data.prepared import UsableItems
from monai_pipelines.errors import CohortError


def _write(file: Path, content: bytes) -> dict[str, str]:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return {"image": str(file), "name": file.name, "patient": f"patient {file.name}"}


def _equal(splits):
    return audit_splits(splits)["equal_files_in_several_splits"]


def test_patients_in_several_splits_are_counted_not_named():
    def items(split, *patients):
        return [{"name": f"{split}{k}", "patient": patient} for k, patient in enumerate(patients)]

    splits = {
        "train": items("a", "Jane", "Jane", "Jo"),
        "validation": items("b", "Jo", "Jim"),
        "test": items("c", "Jo"),
    }
    audit = audit_splits(splits)
    assert audit["patients_in_several_splits"] == 1
    assert audit["checked"] == "patients of 6 images; 6 images without files not compared"
    assert "J" not in json.dumps(audit)
    unknown = {"train": [{"name": "a", "patient": "a"}], "test": [{"name": "b"}]}
    assert audit_splits(unknown)["patients_in_several_splits"] is None


@pytest.mark.parametrize("nobody", [None, ""])
def test_unknown_patients_are_not_one_patient(nobody):
    train, test = [{"name": "a", "patient": nobody}, {"name": "b", "patient": "p"}], [{"name": "c", "patient": nobody}]
    assert audit_splits({"train": train, "test": test})["patients_in_several_splits"] == 0
    assert audit_splits({"train": train[:1], "test": test})["patients_in_several_splits"] is None


def test_patients_are_known_if_one_is_not_the_name_of_its_image():
    alone = [{"name": "a", "patient": "a"}, {"name": "b", "image": "/x/b.png"}, {"image": "c", "patient": "c"}]
    assert not patients_known([])
    assert not patients_known(alone)
    assert patients_known([*alone, {"image": "d", "patient": "c"}])


def test_empty_files_are_not_equal(tmp_path):
    for name in ("empty 1", "empty 2"):
        (tmp_path / name).mkdir()
    _write(tmp_path / "hidden" / ".DS_Store", b"of a Mac")
    nothing = [_write(tmp_path / name, b"") for name in ("a.png", "b.png")]
    folders = [{"image": str(tmp_path / name), "name": name} for name in ("empty 1", "empty 2", "hidden")]
    audit = audit_splits({"train": [nothing[0], folders[0]], "test": [nothing[1], *folders[1:]]})
    assert audit["equal_files_in_several_splits"] == []
    assert audit["checked"] == "patients of 5 images; 5 images without files not compared"


def test_equal_files_in_several_splits(tmp_path):
    """Found under any name; equal files within one split and different files of the same size are not."""
    image = os.urandom(10_000)
    other = image[:-1] + bytes([image[-1] ^ 1])
    splits = {
        "train": [_write(tmp_path / "a.png", image), _write(tmp_path / "b.png", image), _write(tmp_path / "c", b"one")],
        "validation": [_write(tmp_path / "d.png", other), _write(tmp_path / "e", b"two")],
        "test": [_write(tmp_path / "f.png", image), _write(tmp_path / "g", b"2"), _write(tmp_path / "h", b"2")],
    }
    audit = audit_splits(splits)
    assert audit["equal_files_in_several_splits"] == [
        {"images": ["a.png", "b.png", "f.png"], "splits": ["train", "test"]}
    ]
    assert audit["checked"] == "patients of 8 images; files of 8 images"
    assert audit == json.loads(json.dumps(audit)), "plain data"


def test_one_file_listed_in_two_splits_is_found(tmp_path):
    item = _write(tmp_path / "a.png", b"image")
    assert _equal({"train": [item], "test": [item]}) == [{"images": ["a.png", "a.png"], "splits": ["train", "test"]}]


def test_only_candidates_are_read_completely(tmp_path, monkeypatch):
    block = os.urandom(overlap.BLOCK)
    contents = [block, os.urandom(len(block)), block * 4, block[::-1] * 4, *(bytes(k) for k in range(20))]
    items = [_write(tmp_path / str(k), content) for k, content in enumerate(contents)]
    read = count()
    digest = overlap._digest
    monkeypatch.setattr(overlap, "_digest", lambda source: (next(read), digest(source))[1])
    assert _equal({"train": items[::2], "test": items[1::2]}) == []
    assert next(read) == 0
    assert len(_equal({"train": items, "test": items[:2]})) == 2
    assert next(read) == 1 + 4


def test_all_files_of_a_series_are_compared(tmp_path):
    def series(name, *slices):
        for file, content in slices:
            _write(tmp_path / name / file, content)
        return {"image": str(tmp_path / name), "name": name}

    first = series("first", ("1.dcm", b"aaaa"), ("2.dcm", b"bbbb"))
    renamed = series("renamed", ("x.dcm", b"bbbb"), ("y.dcm", b"aaaa"), (".DS_Store", b"of a Mac"))
    longer = series("longer", ("1.dcm", b"aaaa"), ("2.dcm", b"bbbb"), ("3.dcm", b"cccc"))
    other = series("other", ("1.dcm", b"aaaa"), ("2.dcm", b"bbbc"))
    assert _equal({"train": [first, longer], "test": [renamed, other]}) == [
        {"images": ["first", "renamed"], "splits": ["train", "test"]}
    ]


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".mha", ".nrrd", ".nii"])
def test_detached_headers_are_not_compared(tmp_path, suffix):
    """The headers of different scans of one size differ only in the name of the data file."""
    rng = np.random.default_rng(0)
    voxels = [rng.integers(0, 100, (4, 5, 6)).astype(np.int16) for _ in range(2)]
    items = []
    for name, volume in (("a", voxels[0]), ("b", voxels[0]), ("c", voxels[1])):
        (tmp_path / name).mkdir()
        file = tmp_path / name / f"scan{suffix}"
        if suffix == ".nii":
            nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), file)
        else:
            sitk.WriteImage(sitk.GetImageFromArray(volume), str(file))
        items.append({"image": str(file), "name": name})
    a, b, c = items
    assert _equal({"train": [a], "test": [b, c]}) == [{"images": ["a", "b"], "splits": ["train", "test"]}]


def test_folder_of_a_slide_is_compared(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        _write(tmp_path / f"{name}.mrxs", b"preview")
        _write(tmp_path / name / "Data0.dat", content)
    a, b, c = ({"image": str(tmp_path / f"{name}.mrxs"), "name": name} for name in "abc")
    assert _equal({"train": [a, c], "test": [b]}) == [{"images": ["a", "b"], "splits": ["train", "test"]}]


def test_missing_images_are_counted(tmp_path):
    """Features may replace a slide."""
    gone = {"image": str(tmp_path / "gone.svs"), "name": "gone.svs", "patient": "p"}
    here = _write(tmp_path / "here.svs", b"slide")
    audit = audit_splits({"train": [gone, here], "test": [gone]})
    assert audit["equal_files_in_several_splits"] == []
    assert audit["checked"].endswith("; files of 1 image; 2 images without files not compared")


def test_pixels_in_memory_are_compared():
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    images[7] = images[2]
    images[8] = images[3]
    images[8, 2, 7, 7] += 1
    parts = {
        split: ArrayDataset(images[start : start + 3], [0] * 3, [f"{split}_{k}" for k in range(3)])
        for split, start in (("train", 0), ("val", 3), ("test", 6))
    }
    assert audit_splits(parts) == {
        "patients_in_several_splits": None,
        "equal_files_in_several_splits": [{"images": ["train_2", "test_1"], "splits": ["train", "test"]}],
        "num_skipped": {"train": 0, "val": 0, "test": 0},
        "checked": "pixels of 9 images",
    }
    volumes = ArrayDataset(torch.zeros(2, 1, 4, 4, 4, dtype=torch.uint8), [0, 1])
    assert len(_equal({"train": volumes, "test": volumes})) == 1


def test_skipped_images_are_counted_and_not_compared(tmp_path):
    items = [_write(tmp_path / name, b"image") for name in ("a", "b")]
    train = UsableItems(items, None, [(1, None), (None, "cut short")], on_error="skip")
    audit = audit_splits({"train": train, "test": [items[1]]})
    assert audit["num_skipped"] == {"train": 1, "test": 0}
    assert audit["equal_files_in_several_splits"] == [{"images": ["a", "b"], "splits": ["train", "test"]}]
    assert audit["checked"] == "patients of 2 images; files of 2 images"


def test_real_images_are_different(shared_data):
    parts = {split: find_images(shared_data / "chest_xray" / split) for split in ("train", "test")}
    assert _equal(parts) == []
    again = {**parts, "again": parts["test"][:3]}
    assert len(_equal(again)) == 3


def _labeled(file, content, label, split):
    return {**_write(file, content), "label": label, "split": split}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_equal_files_stop_a_training_before_anything_is_read(tmp_path, on_error):
    """Of equal files the test set's is used, unless their labels differ."""
    items = [
        _labeled(tmp_path / "a", b"1", 0, "train"),
        _labeled(tmp_path / "b", b"1", 0, "validation"),
        _labeled(tmp_path / "c", b"1", 0, "test"),
        _labeled(tmp_path / "d", b"2", 0, "train"),
        _labeled(tmp_path / "e", b"2", 1, "train"),
        _labeled(tmp_path / "f", b"3", 0, "train"),
        _labeled(tmp_path / "g", b"3", 0, "train"),
        _labeled(tmp_path / "h", b"4", [0.0, 1.0], "test"),
    ]
    reasons = {
        "a": "same file as c, which is in test; remove one",
        "b": "same file as c, which is in test; remove one",
        "d": "same file as e, which has another label; correct or remove one",
        "e": "same file as d, which has another label; correct or remove one",
    }
    outcomes = iter([(k, None) for k in range(len(items))])
    if on_error == "raise":
        with pytest.raises(CohortError, match="4 of 8 cannot be used") as error:
            UsableItems(items, None, outcomes)
        assert error.value.problems == [f"{name}: {reason}" for name, reason in reasons.items()]
        assert next(outcomes) == (0, None), "nothing was prepared"
        return
    part = UsableItems(items, None, outcomes, on_error="skip")
    assert {item["name"]: item["skipped"] for item in part.skipped} == reasons
    assert [item["name"] for item in part.data] == ["c", "f", "g", "h"]
    assert part._results == [2, 5, 6, 7]
