"""Images in memory as one array, and how items become batches."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.utils import list_data_collate
from torch import Tensor
from torch.utils.data import Dataset

from monai_pipelines.errors import CohortError
from monai_pipelines.remote import Place, Source, as_place, local
from monai_pipelines.transforms import MeasureImage
from monai_pipelines.walk import is_clutter

UNREADABLE = (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)  # what np.load raises
_SUFFIXES = (".npy", ".npz")


class ArrayDataset(Dataset):
    """Images of one size in memory, fetched a batch at a time by one gather.

    Args:
        images: (N, C, H, W) or (N, C, X, Y, Z) uint8.
        labels: (N,) class indices, or (N, C) 0 and 1 for multilabel; None: unlabeled.
        names: of the images; None: their indices.

    Attributes:
        data: ``name`` and ``label`` of every image; there are no patients.
        labels: (N,) int64, or (N, C) float32, or None.
        skipped: empty, as in `PreparedDataset`.

    Raises:
        ValueError: images of another type or shape, or another number of labels or names.

    Example:
        >>> dataset = ArrayDataset(torch.zeros(4, 3, 28, 28, dtype=torch.uint8), [0, 1, 1, 0])
        >>> batch = dataset.__getitems__([2, 0])
        >>> batch["image"].shape, batch["label"]
        (torch.Size([2, 3, 28, 28]), tensor([1, 0]))
    """

    def __init__(self, images: Tensor, labels: Any, names: Sequence[str] | None = None) -> None:
        names = [str(index) for index in range(len(images))] if names is None else list(names)
        if images.dtype != torch.uint8 or images.ndim not in (4, 5):
            raise ValueError(
                "ArrayDataset: images must be uint8 (N, C, H, W) or (N, C, X, Y, Z), got "
                f"{images.dtype} {tuple(images.shape)}"
            )
        labels = None if labels is None else np.asarray(labels)
        shape = (len(images),) if labels is None else labels.shape
        if not len(images) == shape[0] == len(names) or len(shape) > 2:
            raise ValueError(
                f"ArrayDataset: {len(images)} images want as many labels, (N,) or (N, C), and names, got "
                f"{shape} and {len(names)}"
            )
        self.images = images
        self.data: list[dict[str, Any]] = [{"name": name} for name in names]
        self.labels = None
        if labels is not None:
            self.labels = labels.astype(np.float32 if labels.ndim == 2 else np.int64)
            for item, label in zip(self.data, self.labels.tolist(), strict=True):
                item["label"] = label
        self.skipped: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        shortcut = MeasureImage()(image.flatten(2) if image.ndim == 4 else image)  # positions do not matter to it
        del shortcut["size and file type"]  # the same for all
        return {**self.data[index], "image": image, "shortcut": shortcut}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        rows = torch.as_tensor(indices)
        batch = {"image": self.images.index_select(0, rows), "name": [self.data[index]["name"] for index in indices]}
        if self.labels is not None:
            batch["label"] = torch.from_numpy(self.labels).index_select(0, rows)
        return batch


def read_arrays(source: Source, channels: int, labeled: bool = False) -> ArrayDataset:
    """Images from one array: a ``.npy``, or a ``.npz`` with ``images`` or ``test_images``.

    Args:
        source: the file, or its URL, or a folder with one such file: uint8 (N, H, W) or (N, X, Y, Z), with three
            channels (N, H, W, 3) or (N, X, Y, Z, 3), as in MedMNIST.
        channels: 1 or 3.
        labeled: whether the ``.npz`` must have ``labels`` or ``test_labels``, too: (N,), (N, 1), or (N, C) of 0 and 1;
            without, the dataset has no labels.

    Raises:
        CohortError: no such file or array, or an array of another type, shape or number of channels.
    """
    path = as_place(source)
    files: list[Place] = [path]
    if isinstance(path, Path) and path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and not is_clutter(p.name))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CohortError(source, [f"wanted one .npy or .npz in the folder, got {names}; name the file"])
    if not files or not files[0].is_file() or files[0].suffix not in _SUFFIXES:
        raise CohortError(source, ["no such array; wanted a .npy, or an .npz with images or test_images"])
    images, labels = _read_array(files[0], labeled)
    spatial_dims, last = images.ndim - (1 if channels == 1 else 2), images.shape[-1:]
    fits = last == (3,) if channels == 3 else spatial_dims == 2 or last not in ((1,), (3,))  # channels, not slices
    if spatial_dims not in (2, 3) or images.dtype != np.uint8 or not fits:
        wanted = "(N, H, W) or (N, X, Y, Z)" if channels == 1 else "(N, H, W, 3) or (N, X, Y, Z, 3)"
        problem = f"wanted uint8 {wanted} for {channels} channel(s), got {images.dtype} {images.shape}"
        raise CohortError(files[0], [problem])
    if labels is not None and (labels.dtype.kind not in "iu" or len(labels) != len(images)):
        wanted = f"integers for {len(images)} images"
        raise CohortError(files[0], [f"labels: wanted {wanted}, got {labels.dtype} {labels.shape}"])
    return ArrayDataset(channels_first(images, channels), labels)


def _read_array(file: Place, labeled: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Images, and their labels if wanted."""
    try:
        with local(file) as path, path.open("rb") as opened:
            content = np.load(opened, allow_pickle=False)
            if isinstance(content, np.ndarray):
                content = {"images": content}
            for prefix in ("", "test_"):
                if f"{prefix}images" in content and not labeled:
                    return content[f"{prefix}images"], None
                if f"{prefix}images" in content and f"{prefix}labels" in content:
                    labels = content[f"{prefix}labels"]
                    return content[f"{prefix}images"], labels[:, 0] if labels.shape[1:] == (1,) else labels
    except UNREADABLE as error:
        raise CohortError(file, [f"not a NumPy file of plain arrays ({error}); cut short?"]) from error
    wanted = "images with labels, or test_images with test_labels" if labeled else "images nor test_images"
    raise CohortError(file, [f"holds neither {wanted}, but {', '.join(content)}"])


def channels_first(images: np.ndarray, channels: int) -> Tensor:
    """(N, ..., 3) as (N, 3, ...), and (N, ...) of one channel as (N, 1, ...)."""
    array = torch.from_numpy(images)
    return array.movedim(-1, 1).contiguous() if channels == 3 else array.unsqueeze(1)


def collate_batches(fetched: Any) -> Any:
    """The default ``collate_fn``: batches are not changed, lists of items are collated by MONAI.

    Lists of labels become rows (B, C), whereas MONAI alone makes C columns of them.
    """
    if isinstance(fetched, dict):
        return fetched
    return list_data_collate(
        [
            {**item, "label": torch.tensor(item["label"])} if isinstance(item.get("label"), list) else item
            for item in fetched
        ]
    )
