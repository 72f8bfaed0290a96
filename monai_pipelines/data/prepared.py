"""Datasets whose fixed chain runs once, before training, and reports every bad scan."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np
import torch
from monai.data import Dataset, MetaTensor

from monai_pipelines import processes
from monai_pipelines.chains import Chain
from monai_pipelines.claims import DEADLY, ClaimedError, DeadlyError, claimed, is_held, release
from monai_pipelines.data.cache import Cache, Storage, no_space
from monai_pipelines.data.overlap import repeated
from monai_pipelines.data.progress import RunRecord
from monai_pipelines.data.shards import share_of
from monai_pipelines.data.split import SPLITS, Cohort, Item
from monai_pipelines.data.workers import CLAIMED, CRASHED, Outcome, each_outcome
from monai_pipelines.errors import CohortError, ScanError
from monai_pipelines.privacy import failure
from monai_pipelines.remote import Place, Remote, ScratchError, Source, as_place

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
Part = TypeVar("Part", bound="UsableItems")


class UsableItems(Dataset):
    """The usable items of a datalist with their results, and the reasons why the others cannot be used.

    Items with a ``split`` are first compared by their files: the same file in several splits, or with several labels,
    is an error before anything is prepared, or skipped (`monai_pipelines.data.overlap.repeated`).

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
        repeats = repeated(data) if all("split" in item for item in data) else {}
        if repeats and on_error == "raise":
            problems = [f"{data[index]['name']}: {reason}" for index, reason in repeats.items()]
            raise CohortError(f"{len(repeats)} of {len(data)} cannot be used", problems)
        judged: list[tuple[Item, Any, str | None]] = [
            (item, None, repeats[index]) if index in repeats else (item, *outcome)
            for index, (item, outcome) in enumerate(zip(data, outcomes, strict=True))
        ]
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
        """The items of one ``split``, none if there are none; nothing is prepared again.

        Raises:
            CohortError: none of them is usable.
        """
        part = copy(self)
        part.skipped = [item for item in self.skipped if item["split"] == split]
        indices = [index for index, item in enumerate(self.data) if item["split"] == split]
        part.data, part._results = [self.data[i] for i in indices], [self._results[i] for i in indices]
        if part.skipped and not indices:
            raise CohortError(split, ["no usable item is left", *_reasons(part.skipped)])
        return part


class PreparedDataset(UsableItems):
    """Run a fixed chain over all scans once, keep the results, and report the scans that cannot be used.

    Results are stored in ``cache_dir`` under a key made of the chain's fingerprint and the path, size and time of the
    scan's files (of those at a URL the ETag, if there is one), so a changed chain or scan is prepared again, and so is
    a damaged entry. Labels and other columns never come from the cache. A scan is unusable whatever its chain raises,
    except for an ImportError or a full scratch folder, and also if it crashes its worker process.
    Differs from `monai.data.PersistentDataset`, whose key ignores the transforms, and whose files are neither written
    atomically nor checked.

    Args:
        data: datalist with ``image`` (path, or `Remote` where it is at a URL).
        transform: the chain.
        cache_dir: folder for the results, or its URL; None keeps them in memory.
        storage: of the cached results; see `Cache`.
        outputs: keys of the chain's result that are kept: tensors and arrays.
        on_error: of `UsableItems`, which see also for the attributes and errors.
        num_workers: processes that prepare.
        scheduler: address of a Dask scheduler whose workers prepare instead; see
            `monai_pipelines.data.cluster.on_cluster`. Needs a ``cache_dir``.
        shard: "i/n": only this share of ``data``, see `share_of`.
    """

    def __init__(
        self,
        data: Sequence[Item],
        transform: Chain,
        cache_dir: Source | None = None,
        outputs: Sequence[str] = ("image", "shortcut"),
        on_error: OnError = "raise",
        num_workers: int = 0,
        storage: Storage = "float32",
        scheduler: str | None = None,
        shard: str | None = None,
    ) -> None:
        if scheduler and not cache_dir:
            raise ValueError(f"{type(self).__name__}: with a scheduler wanted a cache_dir for the results, got none")
        cache = Cache(cache_dir, storage) if cache_dir else None
        self._preparation = _Preparation(transform, cache, tuple(outputs))
        outcomes = self._preparation.outcomes(data, num_workers, scheduler, shard)
        super().__init__(share_of(data, shard), transform, outcomes, on_error)
        verdicts = [verdict for _, verdict in self._results]
        if any(verdict not in ("", "ok") for verdict in verdicts):
            self.data = [{**item, "verdict": v} for item, v in zip(self.data, verdicts, strict=True)]
        self._results = [result for result, _ in self._results]

    def _transform(self, index: int) -> Item:
        result = self._results[index]
        if cache := self._preparation.cache:
            result = self._preparation.cached(cache, self.data[index]["image"], result)
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
        items = [{**item, "split": split} for split in SPLITS for item in getattr(self.cohort, split)]
        with processes.one_before_others():
            prepared = self._make(items)
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

    def __init__(self, cohort: Cohort, transform: Chain, cache_dir: Source | None = None, **options: Any) -> None:
        super().__init__(cohort, partial(PreparedDataset, transform=transform, cache_dir=cache_dir, **options))


class _Preparation:
    """Of an item ((packed result or its cache file, verdict), None), or (None, why it cannot be used)."""

    def __init__(self, transform: Chain, cache: Cache | None, outputs: tuple[str, ...]) -> None:
        self.chain, self.cache, self.outputs = transform, cache, outputs
        self.fingerprint = transform.fingerprint()

    def outcomes(
        self, data: Sequence[Item], num_workers: int, scheduler: str | None, shard: str | None
    ) -> Iterator[Outcome]:
        """Outcomes of all items of the shard in order."""
        items, deadly, record = share_of(data, shard), list[Item](), None
        if self.cache:
            names = [item.get("name") or f"item {index}" for index, item in enumerate(data)]
            made_by = (self.fingerprint, self.outputs, self.cache.storage)
            record = RunRecord(self.cache.folder, names, made_by, shard)
        with record or nullcontext():
            for index, outcome in enumerate(each_outcome(self, items, "preparing", num_workers, scheduler, record)):
                yield outcome
                if self.cache and not index and outcome[0] and isinstance(file := outcome[0][0], Path):
                    self._check_space(self.cache, items, file.stat().st_size)
                if outcome[1] in (DEADLY, CRASHED):
                    deadly.append(items[index])
        for item in deadly:
            if self.cache and as_place(item["image"]).exists():
                release(self._file(self.cache, item["image"]))

    def _file(self, cache: Cache, image: str | Remote) -> Place:
        return cache.file(image, self.fingerprint, self.outputs)

    def _check_space(self, cache: Cache, items: Sequence[Item], entry_bytes: int) -> None:
        """An error before the others are prepared, if those that are not in the cache will not fit."""
        if cache.has_space(entry_bytes * (len(items) - 1)):
            return
        wanted = entry_bytes * sum(cache.note(self._file(cache, item["image"])) is None for item in items)
        if not cache.has_space(wanted):
            raise no_space(cache.folder, wanted)

    def __call__(self, item: Mapping[str, Any]) -> Outcome:
        image, file = item["image"], None
        try:
            if self.cache and as_place(image).exists():  # the chain reports what is missing
                file = self._file(self.cache, image)
        except Exception as error:
            return None, why_unusable(error, image)
        if self.cache is None or file is None:
            return self._made(image)
        verdict = self.cache.note(file)
        if verdict is not None:
            return (file, verdict), None
        try:
            with claimed(file) as claim:
                verdict = self.cache.note(file)  # again: another process may just have made it
                if verdict is not None:
                    return (file, verdict), None
                if file.exists():
                    logger.warning("%s: damaged, made again", file)
                result, reason = self._made(image)
                if reason or not is_held(claim):
                    return (None, reason) if reason else CLAIMED
                self.cache.write(file, *result)
                return (file, result[1]), None
        except ClaimedError:
            return CLAIMED
        except DeadlyError:
            return None, DEADLY

    def _made(self, image: str | Remote) -> Outcome:
        try:
            result = self.chain({"image": image})
        except Exception as error:
            return None, why_unusable(error, image)
        return self._kept(result), None

    def cached(self, cache: Cache, image: str | Remote, file: Place) -> Item:
        """A result from the cache, made again if it is missing or damaged."""
        result = cache.read(file)
        if result is None:
            logger.warning("%s: missing or damaged, made again", file)
            try:
                result, verdict = self._kept(self.chain({"image": image}))
            except Exception as error:
                raise ScanError(image, why_unusable(error, image)) from None
            cache.write(file, result, verdict)
        return result

    def _kept(self, result: Item) -> tuple[Item, str]:
        missing = [key for key in self.outputs if key not in result]
        if missing:
            raise KeyError(f"PreparedDataset: the chain gives no {missing}; it gives {sorted(map(str, result))}")
        verdict = getattr(result[self.outputs[0]], "meta", {}).get("verdict", "")
        return {key: _pack(result[key]) for key in self.outputs}, str(verdict)


def why_unusable(error: Exception, image: str | Remote) -> str:
    """The reason given by an error, or by what MONAI wrapped in it, without the path of the scan.

    Of any error but a `ScanError` only `failure`: a decoder's text may quote the header.

    Raises:
        ImportError: the error says that a package is missing, which is no reason to leave out the scan.
        ScratchError: nor is a scratch folder that is full.
    """
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, ImportError | ScratchError):
        raise error
    if isinstance(error, ScanError):
        is_same = error.path == str(image) or os.path.abspath(error.path) == os.path.abspath(str(image))
        part = "" if is_same else f"{Path(error.path).name}: "
        return part + error.reason
    return failure(error)


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
