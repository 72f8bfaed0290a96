"""MedMNIST: every 2D and 3D set, from its ``.npz`` file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import wrap_file

from monai_pipelines.chains import did_you_mean
from monai_pipelines.data.arrays import UNREADABLE, ArrayDataset, channels_first
from monai_pipelines.data.split import SPLITS
from monai_pipelines.errors import CohortError

logger = logging.getLogger(__name__)

URL = "https://zenodo.org/records/10519652/files/{file}?download=1"
_KEYS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class MedMNISTInfo:
    """What is published about one MedMNIST set.

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
        """Whether an image may have several labels, or none."""
        return self.task == "multi-label"

    def file(self, size: int = 28) -> str:
        """Name of the published file.

        Raises:
            ValueError: the size is not published.
        """
        if size not in self.md5:
            raise ValueError(f"{self.flag} is published with {', '.join(map(str, self.md5))} pixels, not {size}")
        return f"{self.flag}.npz" if size == 28 else f"{self.flag}_{size}.npz"


def medmnist_info(flag: str) -> MedMNISTInfo:
    """What is published about a MedMNIST set.

    Raises:
        KeyError: no such set; names the nearest.

    Example:
        >>> info = medmnist_info("nodulemnist3d")
        >>> info.task, info.spatial_dims, info.classes
        ('binary-class', 3, ('benign', 'malignant'))

    Reference: Yang et al., MedMNIST v2, Scientific Data 10:41, 2023; the facts are those of medmnist 3.0.2.
    """
    sets = json.loads(Path(__file__).with_name("medmnist.json").read_text("utf-8"))
    if flag not in sets:
        raise KeyError(f"no MedMNIST set {flag!r}{did_you_mean(flag, sets)}; there are {', '.join(sets)}")
    facts = sets[flag]
    md5 = {int(size): digest for size, digest in facts["md5"].items()}
    return MedMNISTInfo(**{**facts, "flag": flag, "classes": tuple(facts["classes"]), "md5": md5})


@dataclass(frozen=True)
class MedMNIST:
    """One MedMNIST set in memory, as it is split by its makers.

    Attributes:
        train, validation, test: the images: uint8 (N, C, H, W), or (N, C, X, Y, Z) in the array's own order.
        info: what is published about the set.
    """

    train: ArrayDataset
    validation: ArrayDataset
    test: ArrayDataset
    info: MedMNISTInfo

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by index."""
        return self.info.classes

    def labels(self, split: str = "train") -> list[Any]:
        """Label of every image of a split."""
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


def read_medmnist(
    flag: str,
    dataset_dir: str | PathLike[str],
    download: bool | str = False,
    size: int = 28,
    transform: Any | None = None,
) -> MedMNIST:
    """Read a MedMNIST set from ``<flag>.npz`` (or ``<flag>_<size>.npz``) in a folder.

    The images stay as they are; the published recipe scales 2D images to [0, 1] and normalises them with mean 0.5 and
    standard deviation 0.5, and scales 3D images to [0, 1].

    Args:
        flag: the set, such as "pathmnist" or "organmnist3d".
        dataset_dir: the folder.
        download: fetch the file if it is not there; its checksum is verified. The command line gives "true" or "false".
        size: of the images, in pixels: 28, 64, 128 or 224; 3D: 28 or 64.
        transform: the chain that finishes the images; see `ArrayDataset`.

    Returns:
        the set; all of it lies in memory.

    Raises:
        KeyError: no such set.
        FileNotFoundError: the file is not there; says where it is to be had and where to put it.
        CohortError: not the arrays, shapes or labels of this set, or a download with another checksum.
        ValueError: a size that is not published, or a ``download`` that is neither true nor false.
    """
    if str(download).lower() not in ("true", "false"):
        raise ValueError(f"read_medmnist: download must be true or false, got {download!r}")
    info = medmnist_info(flag)
    name = info.file(size)
    file, url = Path(dataset_dir) / name, URL.format(file=name)
    if not file.is_file():
        if str(download).lower() == "false":
            raise FileNotFoundError(
                f"{file}: no such file. Put {name} from {url} into {dataset_dir}, "
                "or let it be fetched with --download true"
            )
        _fetch(url, file, info.md5[size])
    arrays = _read_arrays(file, info, size)
    datasets = {}
    for split, key in _KEYS.items():
        images = channels_first(arrays[f"{key}_images"], info.channels)
        names = [f"{key}_{number}" for number in range(len(images))]
        datasets[split] = ArrayDataset(images, arrays[f"{key}_labels"], names, transform)
    return MedMNIST(**datasets, info=info)


def _read_arrays(file: Path, info: MedMNISTInfo, size: int) -> dict[str, np.ndarray]:
    wanted = [f"{key}_{what}" for key in _KEYS.values() for what in ("images", "labels")]
    try:
        with file.open("rb") as opened:
            archive = np.load(opened, allow_pickle=False)
            missing = [name for name in wanted if name not in archive]
            if missing:
                raise CohortError(file, [f"no array {name!r}; there are {', '.join(archive)}" for name in missing])
            arrays = {name: archive[name] for name in wanted}
    except UNREADABLE as error:
        if isinstance(error, CohortError):
            raise
        raise CohortError(file, [f"not a NumPy archive of plain arrays ({error}); cut short?"]) from error
    problems: list[str] = []
    shape = (size,) * info.spatial_dims + ((3,) if info.channels == 3 else ())
    num_columns = len(info.classes) if info.multilabel else 1
    for key in _KEYS.values():
        images, labels = arrays[f"{key}_images"], arrays[f"{key}_labels"]
        if images.shape[1:] != shape or images.dtype != np.uint8:
            told = ", ".join(("N", *map(str, shape)))
            problems.append(f"{key}_images: wanted uint8 ({told}), got {images.dtype} {images.shape}")
        if not info.multilabel and labels.ndim == 1:
            labels = labels[:, None]
        if labels.dtype.kind not in "iu" or labels.shape != (len(images), num_columns):
            told = f"({len(images)}, {num_columns})"
            problems.append(f"{key}_labels: wanted integers {told}, got {labels.dtype} {labels.shape}")
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


def _fetch(url: str, file: Path, md5: str) -> None:
    """Into a file beside it first: what stands under the name is whole and has the checksum."""
    logger.info("fetching %s", url)
    file.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.md5(usedforsecurity=False)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as out:
            total = int(response.headers.get("Content-Length") or 0)
            with wrap_file(response, total, description=file.name) as body:
                while block := body.read(1 << 20):
                    digest.update(block)
                    out.write(block)
        if digest.hexdigest() != md5:
            raise CohortError(url, [f"wanted a file with MD5 {md5}, got {digest.hexdigest()}; try again"])
        os.replace(part, file)
    except OSError as error:
        raise OSError(f"{url}: {error}; fetch it by other means and put {file.name} into {file.parent}") from error
    finally:
        part.unlink(missing_ok=True)
