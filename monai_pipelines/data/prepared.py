"""Datasets whose fixed chain runs once, before training, and reports every bad scan."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from copy import copy, deepcopy
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np
import torch
from monai.data import Dataset, MetaTensor
from rich.progress import track
from torch.utils.data import DataLoader

from monai_pipelines.atomic import atomic_write
from monai_pipelines.chains import Chain
from monai_pipelines.data.split import SPLITS, Cohort, Item
from monai_pipelines.errors import CohortError, ScanError

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
Part = TypeVar("Part", bound="UsableItems")


class UsableItems(Dataset):
    """The usable items of a datalist with their results, and the reasons why the others cannot be used.

    Args:
        data: datalist with ``image`` (path).
        transform: the chain.
        outcomes: for each item its result and None, or None and the reason why it cannot be used.
        on_error: "raise" one `CohortError` that lists every bad item, or "skip" them; see ``skipped``.

    Attributes:
        data: the usable items.
        skipped: ``{**item, "skipped": reason}`` for the others.

    Raises:
        CohortError: bad items with "raise"; no usable item.
    """

    def __init__(
        self,
        data: Sequence[Item],
        transform: Chain,
        outcomes: Iterable[tuple[Any, str | None]],
        on_error: OnError = "raise",
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"{type(self).__name__}: on_error must be 'raise' or 'skip', got {on_error!r}")
        judged = [(item, *outcome) for item, outcome in zip(data, outcomes, strict=True)]
        self.skipped: list[Item] = [{**item, "skipped": reason} for item, _, reason in judged if reason]
        self._results = [result for _, result, reason in judged if not reason]
        usable = [item for item, _, reason in judged if not reason]
        if self.skipped and (on_error == "raise" or not usable):
            raise CohortError(f"{len(self.skipped)} of {len(data)} cannot be used", _reasons(self.skipped))
        for item in self.skipped:
            logger.warning("skipped %s: %s", item["image"], item["skipped"])
        super().__init__(usable, transform)

    @property
    def labels(self) -> np.ndarray:
        """Labels of the usable items: (N,) class indices, or (N, C) for multilabel."""
        return np.array([item["label"] for item in self.data])

    def part(self, split: str) -> Self:
        """The items of one ``split``; nothing is prepared again.

        Raises:
            CohortError: none of them is usable.
        """
        part = copy(self)
        part.skipped = [item for item in self.skipped if item["split"] == split]
        indices = [index for index, item in enumerate(self.data) if item["split"] == split]
        part.data, part._results = [self.data[i] for i in indices], [self._results[i] for i in indices]
        if not indices:
            raise CohortError(split, ["no usable item is left", *_reasons(part.skipped)])
        return part


class PreparedDataset(UsableItems):
    """Run a fixed chain over all scans once, keep the results, and report the scans that cannot be used.

    Results are stored in ``cache_dir`` under a key made of the chain's fingerprint and the path, size and time of the
    scan's files, so a changed chain or scan is prepared again. Labels and other columns never come from the cache.
    Differs from `monai.data.PersistentDataset`, whose key ignores the transforms and whose files are not written
    atomically.

    Args:
        data: datalist with ``image`` (path).
        transform: the chain.
        cache_dir: folder for the results; None keeps them in memory.
        outputs: keys of the chain's result that are kept: tensors and arrays.
        on_error: of `UsableItems`, which see also for the attributes and errors.
        num_workers: processes that prepare.
    """

    def __init__(
        self,
        data: Sequence[Item],
        transform: Chain,
        cache_dir: str | PathLike[str] | None = None,
        outputs: Sequence[str] = ("image", "shortcut"),
        on_error: OnError = "raise",
        num_workers: int = 0,
    ) -> None:
        preparation = _Preparation(list(data), transform, Path(cache_dir) if cache_dir else None, tuple(outputs))
        loader = DataLoader(preparation, batch_size=None, num_workers=num_workers, collate_fn=as_is)
        # copied: a tensor in a worker's shared memory keeps a file open
        outcomes = ((deepcopy(result), reason) for result, reason in track(loader, "preparing", total=len(preparation)))
        super().__init__(data, transform, outcomes, on_error)

    def _transform(self, index: int) -> Item:
        result = self._results[index]
        result = torch.load(result, weights_only=True) if isinstance(result, str) else result
        return {**self.data[index], **_unpack(result)}


class Splits(Generic[Part]):
    """A dataset for each split of a cohort, all prepared on first access, so that every bad file is reported at once.

    Args:
        cohort: with the datalists ``train``, ``validation`` (chooses the epoch) and ``test``.
        make: makes a dataset from a datalist.
        training: attributes that the training dataset gets.
    """

    def __init__(self, cohort: Cohort, make: Callable[[list[Item]], Part], **training: Any) -> None:
        self.cohort, self._make, self._training = cohort, make, training

    @cached_property
    def _parts(self) -> dict[str, Part]:
        prepared = self._make([{**item, "split": split} for split in SPLITS for item in getattr(self.cohort, split)])
        parts = {split: prepared.part(split) for split in SPLITS}
        vars(parts["train"]).update(self._training)
        return parts

    @property
    def train(self) -> Part:
        return self._parts["train"]

    @property
    def validation(self) -> Part:
        return self._parts["validation"]

    @property
    def test(self) -> Part:
        return self._parts["test"]


class PreparedSplits(Splits[PreparedDataset]):
    """A `PreparedDataset` for each split of a cohort: ``train``, ``validation`` and ``test``.

    Args:
        cohort: with the datalists ``train``, ``validation`` and ``test``.
        transform, cache_dir, options: of the `PreparedDataset`.
    """

    def __init__(
        self, cohort: Cohort, transform: Chain, cache_dir: str | PathLike[str] | None = None, **options: Any
    ) -> None:
        super().__init__(cohort, partial(PreparedDataset, transform=transform, cache_dir=cache_dir, **options))


class _Preparation(Dataset):
    """Item i: (packed result or path of its cache file, None), or (None, why it cannot be used)."""

    def __init__(
        self, data: Sequence[Item], transform: Chain, cache_dir: Path | None, outputs: tuple[str, ...]
    ) -> None:
        super().__init__(data, transform)
        self.chain, self.cache_dir, self.outputs = transform, cache_dir, outputs
        self.fingerprint = transform.fingerprint()

    def _transform(self, index: int) -> tuple[Any, str | None]:
        image = self.data[index]["image"]
        try:
            if self.cache_dir is None or not Path(image).exists():  # the chain reports what is missing
                return self._prepare(image), None
            file = self.cache_dir / f"{_key(image, self.fingerprint, self.outputs)}.pt"
            result = None if file.exists() else self._prepare(image)
        except (ScanError, OSError) as error:
            return None, why_unusable(error, image)
        except Exception as error:
            error.add_note(f"while preparing {image}")
            raise
        if result is not None:
            with atomic_write(file) as part, part.open("wb") as out:  # not above: a full disk is not a bad scan
                torch.save(result, out)
        return str(file), None

    def _prepare(self, image: str) -> Item:
        result = self.chain({"image": image})
        if missing := [key for key in self.outputs if key not in result]:
            raise KeyError(f"PreparedDataset: the chain gives no {missing}; it gives {sorted(map(str, result))}")
        return {key: _pack(result[key]) for key in self.outputs}


def why_unusable(error: ScanError | OSError, image: str) -> str:
    """The reason given by an error, without the path of the scan."""
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error.strerror or error}"
    part = "" if Path(error.path) == Path(image) else f"{Path(error.path).name}: "
    return part + error.reason


def as_is(fetched: Any) -> Any:
    """A ``collate_fn`` that changes nothing."""
    return fetched


def _pack(value: Any) -> Any:
    """Plain data; of the metadata only a volume's affine is kept."""
    if isinstance(value, dict):
        return {key: _pack(part) for key, part in value.items()}
    if isinstance(value, MetaTensor):
        values = value.as_tensor().contiguous()
        return (values, value.affine) if values.ndim == 4 else values
    return torch.as_tensor(np.asarray(value))


def _unpack(packed: Any) -> Any:
    if isinstance(packed, dict):
        return {key: _unpack(part) for key, part in packed.items()}
    return MetaTensor(packed[0], affine=packed[1]) if isinstance(packed, tuple) else packed


def _reasons(skipped: Sequence[Item]) -> list[str]:
    return [f"{item['image']}: {item['skipped']}" for item in skipped]


def _key(image: str, fingerprint: str, outputs: tuple[str, ...]) -> str:
    """Changes with the chain, the outputs, and the path, size or time of any file of the scan."""
    path = Path(image).resolve()
    return hashlib.sha256(repr((fingerprint, outputs, str(path), file_stats(path))).encode()).hexdigest()[:32]


def file_stats(path: Path) -> list[tuple[str, int, int]]:
    """Name, size in bytes and time in ns of each file of a scan: a file, or a folder of them."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
