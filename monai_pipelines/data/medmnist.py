"""All 2D and 3D sets of MedMNIST, from their ``.npz`` files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from monai.apps.utils import HashCheckError, download_url

from monai_pipelines.atomic import atomic_write
from monai_pipelines.chains import did_you_mean
from monai_pipelines.data.arrays import UNREADABLE, ArrayDataset, channels_first, read_arrays
from monai_pipelines.data.contents import content_hashes
from monai_pipelines.data.split import SPLITS, seen_hashes
from monai_pipelines.errors import CohortError
from monai_pipelines.remote import Place, Source, as_place, local

URL = "https://zenodo.org/records/10519652/files/{file}?download=1"
_KEYS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class MedMNISTInfo:
    """The published facts about one MedMNIST set.

    Attributes:
        flag: its name, such as "pathmnist".
        task: "multi-class", "binary-class", "multi-label" or "ordinal-regression" (trained as multi-class).
        spatial_dims: 2 or 3.
        channels: 1 or 3.
        classes: class names by index.
        md5: checksum of the file by image size in pixels.
    """

    flag: str
    task: str
    spatial_dims: int
    channels: int
    classes: tuple[str, ...]
    md5: dict[int, str]

    @property
    def multilabel(self) -> bool:
        """Whether an image may have any number of labels."""
        return self.task == "multi-label"

    def file(self, size: int = 28) -> str:
        """Name of the published file.

        Raises:
            ValueError: the size is not published.
        """
        if size not in self.md5:
            raise ValueError(f"{self.flag}: size must be {', '.join(map(str, self.md5))} pixels, got {size}")
        return f"{self.flag}.npz" if size == 28 else f"{self.flag}_{size}.npz"


def medmnist_info(flag: str, spatial_dims: int | None = None) -> MedMNISTInfo:
    """The published facts about a MedMNIST set.

    Args:
        flag: its name.
        spatial_dims: 2 or 3, of the sets that the caller can use; None: of any.

    Raises:
        KeyError: no such set; suggests the nearest.
        ValueError: a set of other dimensions.

    Example:
        >>> info = medmnist_info("nodulemnist3d")
        >>> info.task, info.spatial_dims, info.classes
        ('binary-class', 3, ('benign', 'malignant'))

    Reference: Yang et al., MedMNIST v2, Scientific Data 10:41, 2023; facts from medmnist 3.0.2.
    """
    sets = json.loads(Path(__file__).with_name("medmnist.json").read_text("utf-8"))
    if flag not in sets:
        raise KeyError(f"no MedMNIST set {flag!r}{did_you_mean(flag, sets)}; there are {', '.join(sets)}")
    facts = sets[flag]
    if spatial_dims not in (None, facts["spatial_dims"]):
        way = "add the overlay volume.yaml to" if facts["spatial_dims"] == 3 else "leave the overlay volume.yaml out of"
        images = f"its images are {facts['spatial_dims']}D, the network takes {spatial_dims}D"
        raise ValueError(f"{flag}: {images}; {way} --config_file")
    md5 = {int(size): digest for size, digest in facts["md5"].items()}
    return MedMNISTInfo(**{**facts, "flag": flag, "classes": tuple(facts["classes"]), "md5": md5})


@dataclass(frozen=True)
class MedMNIST:
    """One MedMNIST set in memory with its published split.

    Attributes:
        train, validation, test: the images: uint8 (N, C, H, W), or (N, C, X, Y, Z) with the axes as in the file.
        info: the published facts.
        external: whether the test is not that of the set.
    """

    train: ArrayDataset
    validation: ArrayDataset
    test: ArrayDataset
    info: MedMNISTInfo
    external: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    def labels(self, split: str = "train") -> list[Any]:
        return getattr(self, split).labels.tolist()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all images and labels."""
        digest = hashlib.sha256()
        for split in SPLITS:
            dataset = getattr(self, split)
            for array in (dataset.images.numpy(), dataset.labels):
                digest.update(repr((split, array.shape)).encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def split_card(self) -> dict[str, Any]:
        """The split as plain data; see `Cohort.split_card`."""
        seen = seen_hashes(self.train) | seen_hashes(self.validation)
        files = content_hashes(self.train) | content_hashes(self.validation)
        digest = {"data_sha256": self.digest, "seen": sorted(seen), "files": sorted(files)}
        return {"seed": 0, "split_fractions": [], **digest}


def read_medmnist(
    flag: str,
    dataset_dir: Source | None,
    download: bool | str = False,
    size: int = 28,
    test_source: Source | None = None,
) -> MedMNIST:
    """Read a MedMNIST set from ``<flag>.npz`` (or ``<flag>_<size>.npz``) in a folder.

    The images are not changed; the published recipe scales them to [0, 1] and normalizes 2D images with mean 0.5 and
    standard deviation 0.5.

    Args:
        flag: the set, such as "pathmnist" or "organmnist3d".
        dataset_dir: the folder, or its URL; None: only ``test_source``.
        download: fetch a missing file and verify its checksum.
        size: of the images, in pixels: 28, 64, 128 or 224; 3D: 28 or 64.
        test_source: other images with labels, in place of the test images: of `read_arrays`.

    Raises:
        KeyError: no such set.
        FileNotFoundError: no such file; says where to get it and where to put it.
        CohortError: not the arrays, shapes or labels of this set, or a download with another checksum.
        OSError: the download failed.
        ValueError: a size that is not published, or a ``download`` that is neither True nor False.
    """
    if not isinstance(download, bool):
        raise ValueError(f"read_medmnist: download must be True or False, got {download!r}")
    info = medmnist_info(flag)
    test = None if test_source is None else _read_test(test_source, info)
    if test is not None and dataset_dir is None:
        none = ArrayDataset(test.images[:0], np.array(test.labels)[:0])
        return MedMNIST(none, none, test, info, external=True)
    if dataset_dir is None:
        raise ValueError("no data: name dataset_dir, or test_dir for an evaluation")
    name = info.file(size)
    file, url = as_place(dataset_dir) / name, URL.format(file=name)
    if not file.is_file():
        if not download or not isinstance(file, Path):
            raise FileNotFoundError(
                f"{file}: no such file. Put {name} from {url} into {dataset_dir}, or add --download True"
            )
        _download(url, file, info.md5[size])
    arrays = _read_arrays(file, info, size)
    datasets = {}
    for split, key in _KEYS.items():
        images = channels_first(arrays[f"{key}_images"], info.channels)
        names = [f"{key}_{index}" for index in range(len(images))]
        datasets[split] = ArrayDataset(images, arrays[f"{key}_labels"], names)
    if test is not None:
        datasets["test"] = test
    return MedMNIST(**datasets, info=info, external=test is not None)


def _read_test(source: Source, info: MedMNISTInfo) -> ArrayDataset:
    test = read_arrays(source, info.channels, labeled=True)
    labels = np.array(test.labels)
    shape, highest = ((len(info.classes),), 1) if info.multilabel else ((), len(info.classes) - 1)
    if labels.shape[1:] != shape or not np.isin(labels, range(highest + 1)).all():
        wanted = f"0 to {highest}, {('N', *shape)}"
        raise CohortError(source, [f"labels: wanted {wanted}, got {labels.min()} to {labels.max()}, {labels.shape}"])
    return test


def _read_arrays(file: Place, info: MedMNISTInfo, size: int) -> dict[str, np.ndarray]:
    wanted = [f"{key}_{what}" for key in _KEYS.values() for what in ("images", "labels")]
    try:
        with local(file) as path, path.open("rb") as opened:
            archive = np.load(opened, allow_pickle=False)
            names = ", ".join(archive)
            arrays = {name: archive[name] for name in wanted if name in archive}
    except UNREADABLE as error:
        raise CohortError(file, [f"not a NumPy archive of plain arrays ({error}); cut short?"]) from error
    if missing := [name for name in wanted if name not in arrays]:
        raise CohortError(file, [f"no array {name!r}; there are {names}" for name in missing])
    problems: list[str] = []
    shape = (size,) * info.spatial_dims + ((3,) if info.channels == 3 else ())
    num_columns = len(info.classes) if info.multilabel else 1
    for key in _KEYS.values():
        images, labels = arrays[f"{key}_images"], arrays[f"{key}_labels"]
        if images.shape[1:] != shape or images.dtype != np.uint8:
            wanted_shape = ", ".join(("N", *map(str, shape)))
            problems.append(f"{key}_images: wanted uint8 ({wanted_shape}), got {images.dtype} {images.shape}")
        if not info.multilabel and labels.ndim == 1:
            labels = labels[:, None]
        if labels.dtype.kind not in "iu" or labels.shape != (len(images), num_columns):
            got = f"{labels.dtype} {labels.shape}"
            problems.append(f"{key}_labels: wanted integers ({len(images)}, {num_columns}), got {got}")
        elif len(labels) == 0:
            problems.append(f"{key}: no image in it")
        else:
            highest = 1 if info.multilabel else len(info.classes) - 1
            if labels.min() < 0 or labels.max() > highest:
                problems.append(f"{key}_labels: wanted 0 to {highest}, got {labels.min()} to {labels.max()}")
            arrays[f"{key}_labels"] = labels if info.multilabel else labels[:, 0]
    if problems:
        raise CohortError(file, problems)
    return arrays


def _download(url: str, file: Path, md5: str) -> None:
    try:
        with atomic_write(file) as part:  # MONAI copies a finished download, which can be interrupted
            download_url(url, part, hash_val=md5, hash_type="md5", progress=True)
    except HashCheckError as error:
        raise CohortError(url, [f"wanted a file with MD5 {md5}, got another one; try again"]) from error
    except (OSError, RuntimeError) as error:
        raise OSError(f"{url}: {error}; download it by other means and put {file.name} into {file.parent}") from error
