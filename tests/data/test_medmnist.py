"""MedMNIST: shapes of every set, problems of a file, and the download."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_pipelines.data import MedMNIST, medmnist, medmnist_info, read_medmnist
from monai_pipelines.data.contents import content_hashes
from monai_pipelines.errors import CohortError

FLAGS_2D = ("pathmnist", "chestmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist", "breastmnist",
            "bloodmnist", "tissuemnist", "organamnist", "organcmnist", "organsmnist")  # fmt: skip
FLAGS_3D = ("organmnist3d", "nodulemnist3d", "adrenalmnist3d", "fracturemnist3d", "vesselmnist3d", "synapsemnist3d")
RGB = ("pathmnist", "dermamnist", "retinamnist", "bloodmnist")
NUM_CLASSES = (9, 14, 7, 4, 2, 5, 2, 8, 8, 11, 11, 11, 11, 2, 2, 3, 2, 2)
NUMBERS = {"train": 6, "val": 4, "test": 5}


def _arrays(flag: str, size: int = 28) -> dict[str, np.ndarray]:
    """In the layout of the published files."""
    random = np.random.default_rng(len(flag))
    info = medmnist_info(flag)
    shape = (size,) * 3 if flag in FLAGS_3D else ((size, size, 3) if flag in RGB else (size, size))
    arrays = {}
    for split, number in NUMBERS.items():
        arrays[f"{split}_images"] = random.integers(0, 256, (number, *shape), dtype=np.uint8)
        if flag == "chestmnist":
            arrays[f"{split}_labels"] = random.integers(0, 2, (number, 14), dtype=np.uint8)
        else:
            arrays[f"{split}_labels"] = random.integers(0, len(info.classes), (number, 1), dtype=np.uint8)
    return arrays


def _write(folder: Path, flag: str, size: int = 28, **changes: Any) -> dict[str, np.ndarray]:
    arrays = {**_arrays(flag, size), **changes}
    name = f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz"
    np.savez_compressed(folder / name, **{k: v for k, v in arrays.items() if v is not None})
    return arrays


def _check(read: MedMNIST, arrays: dict[str, np.ndarray]) -> None:
    for split, key in (("train", "train"), ("validation", "val"), ("test", "test")):
        dataset, raw = getattr(read, split), arrays[f"{key}_images"]
        labels = arrays[f"{key}_labels"]
        for number in range(len(raw)):
            image = dataset[number]["image"].numpy()
            wanted = raw[number].transpose(2, 0, 1) if read.info.channels == 3 else raw[number][None]
            np.testing.assert_array_equal(image, wanted)
            wanted_label = labels[number].tolist() if read.info.multilabel else int(labels[number, 0])
            assert dataset.data[number]["label"] == wanted_label
        assert read.labels(split) == dataset.labels.tolist()
        assert dataset.images.is_contiguous()


@pytest.mark.parametrize("flag", [*FLAGS_2D, *FLAGS_3D])
def test_every_set(tmp_path: Path, flag: str) -> None:
    arrays = _write(tmp_path, flag)
    read = read_medmnist(flag, tmp_path)
    _check(read, arrays)
    assert read.train.images.shape[1:] == (read.info.channels, *(28,) * read.info.spatial_dims)
    names = [item["name"] for split in (read.train, read.validation, read.test) for item in split.data]
    assert len(set(names)) == sum(NUMBERS.values())
    assert read.classes == read.info.classes


def test_published_facts() -> None:
    facts = [medmnist_info(flag) for flag in (*FLAGS_2D, *FLAGS_3D)]
    assert tuple(len(info.classes) for info in facts) == NUM_CLASSES
    assert [info.flag for info in facts if info.spatial_dims == 3] == list(FLAGS_3D)
    assert [info.flag for info in facts if info.channels == 3] == list(RGB)
    assert [info.flag for info in facts if info.multilabel] == ["chestmnist"]
    assert {info.flag: info.task for info in facts}["retinamnist"] == "ordinal-regression"
    assert [info.flag for info in facts if info.task == "binary-class"] == [
        "pneumoniamnist", "breastmnist", "nodulemnist3d", "adrenalmnist3d", "vesselmnist3d", "synapsemnist3d"
    ]  # fmt: skip
    for info in facts:
        assert tuple(info.md5) == ((28, 64) if info.spatial_dims == 3 else (28, 64, 128, 224))
    checksums = [md5 for info in facts for md5 in info.md5.values()]
    assert len(checksums) == len(set(checksums)) == 60
    assert all(len(md5) == 32 and set(md5) <= set("0123456789abcdef") for md5 in checksums)
    with pytest.raises(KeyError, match=r"no MedMNIST set 'pathminst' \(did you mean 'pathmnist'\?\)"):
        medmnist_info("pathminst")


@pytest.mark.parametrize(("flag", "size"), [("pathmnist", 64), ("organmnist3d", 64), ("breastmnist", 224)])
def test_larger_sizes(tmp_path: Path, flag: str, size: int) -> None:
    arrays = _write(tmp_path, flag, size)
    _check(read_medmnist(flag, tmp_path, size=size), arrays)
    with pytest.raises(FileNotFoundError, match=f"{flag}.npz: no such file"):
        read_medmnist(flag, tmp_path)
    with pytest.raises(ValueError, match=f"{flag}: size must be 28, 64"):
        read_medmnist(flag, tmp_path, size=32)


def test_labels_of_one_dimension(tmp_path: Path) -> None:
    arrays = _arrays("breastmnist")
    flat = {f"{split}_labels": arrays[f"{split}_labels"][:, 0] for split in NUMBERS}
    _write(tmp_path, "breastmnist", **flat)
    _check(read_medmnist("breastmnist", tmp_path), arrays)


def test_digest_depends_on_the_content(tmp_path: Path) -> None:
    digests = []
    for number, change in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        images = _arrays("breastmnist")["val_images"]
        images[0, 0, 0] = change
        _write(folder, "breastmnist", val_images=images)
        digests.append(read_medmnist("breastmnist", folder).digest)
    assert digests[0] == digests[1] != digests[2]


def test_split_card(tmp_path: Path) -> None:
    _write(tmp_path, "breastmnist")
    read = read_medmnist("breastmnist", tmp_path)
    names = [*(f"train_{k}" for k in range(6)), *(f"val_{k}" for k in range(4))]
    seen = sorted(hashlib.sha256(f"name:{name}".encode()).hexdigest()[:16] for name in names)
    files = sorted(content_hashes(read.train) | content_hashes(read.validation))
    assert len(files) == 10
    digests = {"data_sha256": read.digest, "seen": seen, "files": files}
    assert read.split_card == {"seed": 0, "split_fractions": [], **digests}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        read_medmnist("pathmnist", tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'pathmnist.npz'}: no such file. Put pathmnist.npz from "
        f"https://zenodo.org/records/10519652/files/pathmnist.npz?download=1 into {tmp_path}, or add --download True"
    )


def test_all_problems_of_a_file_at_once(tmp_path: Path) -> None:
    arrays = _arrays("pathmnist")
    _write(
        tmp_path,
        "pathmnist",
        train_images=arrays["train_images"][..., 0],
        val_images=arrays["val_images"].astype(np.float32),
        val_labels=np.full((4, 1), 9),
        test_labels=np.zeros((5, 2), int),
    )
    with pytest.raises(CohortError) as error:
        read_medmnist("pathmnist", tmp_path)
    assert error.value.problems == [
        "train_images: wanted uint8 (N, 28, 28, 3), got uint8 (6, 28, 28)",
        "val_images: wanted uint8 (N, 28, 28, 3), got float32 (4, 28, 28, 3)",
        "val_labels: wanted 0 to 8, got 9 to 9",
        "test_labels: wanted integers (5, 1), got int64 (5, 2)",
    ]
    _write(tmp_path, "pathmnist", val_labels=None, test_images=None)
    with pytest.raises(CohortError) as error:
        read_medmnist("pathmnist", tmp_path)
    assert [problem.partition(";")[0] for problem in error.value.problems] == [
        "no array 'val_labels'",
        "no array 'test_images'",
    ]
    _write(tmp_path, "pathmnist", val_images=arrays["val_images"][:0], val_labels=arrays["val_labels"][:0])
    with pytest.raises(CohortError, match="val: no image in it"):
        read_medmnist("pathmnist", tmp_path)


def test_files_that_are_not_plain_archives(tmp_path: Path) -> None:
    file = tmp_path / "pathmnist.npz"
    _write(tmp_path, "pathmnist")
    file.write_bytes(file.read_bytes()[:3000])
    for content in (file.read_bytes(), b"", b"<html>not found</html>"):
        file.write_bytes(content)
        with pytest.raises(CohortError, match="not a NumPy archive of plain arrays"):
            read_medmnist("pathmnist", tmp_path)
    _write(tmp_path, "pathmnist", train_labels=np.array([["pickled"], [None]], dtype=object))
    with pytest.raises(CohortError, match="not a NumPy archive of plain arrays"):
        read_medmnist("pathmnist", tmp_path)
    np.save(file.with_suffix(".npy"), np.zeros(3))
    file.with_suffix(".npy").rename(file)
    with pytest.raises(CohortError, match="not a NumPy archive of plain arrays"):
        read_medmnist("pathmnist", tmp_path)


# ---- download


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the server, with one set."""
    folder = tmp_path / "server"
    folder.mkdir()
    _write(folder, "breastmnist")
    info = medmnist_info("breastmnist")
    info.md5[28] = hashlib.md5((folder / "breastmnist.npz").read_bytes()).hexdigest()
    monkeypatch.setattr(medmnist, "medmnist_info", lambda flag: info)
    monkeypatch.setattr(medmnist, "URL", f"{folder.as_uri()}/{{file}}")
    return folder


def test_downloaded_once_on_request(tmp_path: Path, server: Path) -> None:
    folder = tmp_path / "new" / "data"
    with pytest.raises(FileNotFoundError):
        read_medmnist("breastmnist", folder)
    _check(read_medmnist("breastmnist", folder, download=True), _arrays("breastmnist"))
    (server / "breastmnist.npz").unlink()
    _check(read_medmnist("breastmnist", folder, download=True), _arrays("breastmnist"))
    assert [file.name for file in folder.iterdir()] == ["breastmnist.npz"]


def test_a_failed_download_leaves_nothing(tmp_path: Path, server: Path) -> None:
    file = server / "breastmnist.npz"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CohortError, match="wanted a file with MD5 "):
        read_medmnist("breastmnist", tmp_path / "data", download=True)
    file.unlink()
    with pytest.raises(OSError, match=r"No such file.*; download it by other means and put breastmnist.npz into"):
        read_medmnist("breastmnist", tmp_path / "data", download=True)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("download", ["yes", "true", "", "1", 1, None])
def test_download_is_true_or_false(tmp_path: Path, download: Any) -> None:
    with pytest.raises(ValueError, match="download must be True or False, got"):
        read_medmnist("breastmnist", tmp_path, download)


@pytest.mark.parametrize(("download", "num_calls"), [(True, 1), (False, 0)])
def test_download_only_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool, num_calls: int
) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(medmnist, "_download", lambda url, file, md5: calls.append(file))
    with pytest.raises(FileNotFoundError):
        read_medmnist("breastmnist", tmp_path, download, size=64)
    assert calls == [tmp_path / "breastmnist_64.npz"] * num_calls
