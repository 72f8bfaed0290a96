"""Slides as bags of features, and batches of unequal bags."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import numpy as np
import torch
from monai.engines import PrepareBatch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from monai_pipelines.chains import Chain
from monai_pipelines.data.prepared import OnError, Splits, UsableItems
from monai_pipelines.data.shards import share_of
from monai_pipelines.data.slide_table import feature_file
from monai_pipelines.data.split import Cohort, Item
from monai_pipelines.features.extraction import extract_features
from monai_pipelines.features.files import read_features
from monai_pipelines.networks import TileBackbone
from monai_pipelines.remote import Place, Source


def pad_bags(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of unequal bags: zero-padded to the longest, with a mask of the tiles.

    Args:
        items: with ``bag`` (n, ...), where n may differ, and optionally ``label``, ``name`` and ``patient``; other keys
            are ignored.

    Returns:
        ``bag`` (B, N, ...), ``mask`` (B, N) bool, True for tiles, ``label`` (B,) or (B, C), and the lists ``name`` and
        ``patient``.

    Raises:
        ValueError: tiles of different shape, features of different length, or bags of different dtype.

    Example:
        >>> batch = pad_bags([{"bag": torch.ones(2, 4), "label": 1}, {"bag": torch.ones(3, 4), "label": 0}])
        >>> batch["bag"].shape, batch["mask"][0], batch["label"]
        (torch.Size([2, 3, 4]), tensor([ True,  True, False]), tensor([1, 0]))
    """
    bags = [item["bag"] for item in items]
    shapes = {tuple(bag.shape[1:]) for bag in bags}
    if len(shapes) > 1:
        raise ValueError(f"pad_bags: wanted bags of tiles (or features) of one shape, got {sorted(shapes)}")
    dtypes = {str(bag.dtype) for bag in bags}
    if len(dtypes) > 1:
        raise ValueError(f"pad_bags: wanted bags of one dtype, got {', '.join(sorted(dtypes))}")
    bag = pad_sequence(bags, batch_first=True)
    mask = torch.arange(bag.shape[1]) < torch.tensor([len(tiles) for tiles in bags])[:, None]
    batch: dict[str, Any] = {"bag": bag, "mask": mask}
    if all("label" in item for item in items):
        batch["label"] = torch.tensor([item["label"] for item in items])
    for key in ("name", "patient"):
        if all(key in item for item in items):
            batch[key] = [item[key] for item in items]
    return batch


class PrepareBags(PrepareBatch):
    """Move a batch of `pad_bags` to the device: (bag, label, (), {"mask": mask}).

    Args:
        use_mask: False gives (bag, label), for networks without a mask, such as MONAI's `MILModel`.

    Raises:
        ValueError: bags of different length in a batch without a mask.
    """

    def __init__(self, use_mask: bool = True) -> None:
        self.use_mask = use_mask

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        bag = batchdata["bag"].to(device=device, non_blocking=non_blocking, **kwargs)
        label, mask = batchdata.get("label"), batchdata["mask"]
        label = None if label is None else label.to(device=device, non_blocking=non_blocking)
        if self.use_mask:
            return bag, label, (), {"mask": mask.to(device=device, non_blocking=non_blocking)}
        if not mask.all():
            lengths = sorted(set(mask.sum(1).tolist()))
            raise ValueError(
                f"PrepareBags: a network without a mask wants bags of one length, got {lengths} tiles "
                "(use batch_size 1, or the same number of tiles for every slide)"
            )
        return bag, label


class FeatureBags(UsableItems):
    """Slides as bags of features, which are extracted if they are missing.

    An item of ``data`` gets ``bag`` (N, D) float32, ``coords`` (N, 2) int64 numpy, ``level0_px``, ``tile_px``, ``mpp``,
    ``slide_mpp``, and, outside batches, the thumbnail as ``image`` (3, h, w) uint8, its ``downsample``, and the
    ``shortcut`` that a network has to beat. For files of other tools the thumbnail is white, and the number of tiles is
    the only shortcut.

    Args:
        data: datalist with ``image`` (path of the slide) and ``name``.
        chain, backbone, options: of `extract_features`.
        features_dir: folder of the files, or its URL; None: a temporary one, deleted with the dataset.
        max_tiles: maximum number of tiles in a bag, drawn from torch's generator on each access; None: all.
        on_error: of `UsableItems`, which see also for the attributes.
        shard: "i/n": only this share of ``data``, see `share_of`.

    Raises:
        CohortError: bad slides with "raise"; no usable slide; see also `extract_features`.
    """

    collate = staticmethod(pad_bags)

    def __init__(
        self,
        data: Sequence[Item],
        chain: Chain,
        backbone: TileBackbone,
        features_dir: Source | None = None,
        max_tiles: int | None = None,
        on_error: OnError = "raise",
        shard: str | None = None,
        **options: Any,
    ) -> None:
        if max_tiles is not None and max_tiles < 1:
            raise ValueError(f"FeatureBags: max_tiles must be 1 or more, or None for all, got {max_tiles}")
        self.max_tiles = max_tiles
        if features_dir is None:
            if options.get("scheduler"):
                raise ValueError("FeatureBags: with a scheduler wanted a features_dir for the files, got none")
            self._temporary = _TemporaryFolder()
            features_dir = self._temporary.path

        def outcomes() -> Iterator[tuple[Place, str | None]]:
            for row in extract_features(data, features_dir, chain, backbone, shard=shard, **options):
                yield feature_file(features_dir, row["name"]), row["reason"] or None

        super().__init__(share_of(data, shard), chain, outcomes(), on_error)

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        return [self._item(index, pictures=False) for index in indices]

    def _transform(self, index: int) -> Item:
        return self._item(index, pictures=True)

    def _item(self, index: int, pictures: bool) -> Item:
        bag = read_features(self._results[index], pictures)
        num_tiles = len(bag.features)
        chosen: Any = slice(None)
        if self.max_tiles is not None and num_tiles > self.max_tiles:
            chosen = torch.randperm(num_tiles)[: self.max_tiles].sort().values.numpy()
        item = {
            **self.data[index],
            "bag": torch.from_numpy(bag.features[chosen]),
            "coords": None if bag.coords is None else bag.coords[chosen],
            **{key: getattr(bag, key) for key in ("level0_px", "tile_px", "mpp", "slide_mpp")},
        }
        if not pictures:
            return item
        if bag.thumbnail is None or bag.tissue is None or not (bag.downsample and bag.slide_mpp and bag.slide_size):
            white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
            number = torch.tensor([num_tiles], dtype=torch.float32).log()
            return {**item, "image": white, "downsample": None, "shortcut": {"number of tiles": number}}
        shortcut = measure_slide(bag.thumbnail, bag.tissue, bag.downsample, bag.slide_mpp, bag.slide_size, num_tiles)
        image = torch.from_numpy(bag.thumbnail).permute(2, 0, 1)
        return {**item, "image": image, "downsample": bag.downsample, "shortcut": shortcut}


class _TemporaryFolder:
    """Deleted with the last dataset that refers to it, by the process that made it."""

    def __init__(self) -> None:
        self.path = mkdtemp(prefix="features-")
        finalize(self, _remove, self.path, os.getpid())


def _remove(folder: str, made_by: int) -> None:
    if os.getpid() == made_by:  # not a worker
        shutil.rmtree(folder, ignore_errors=True)


class FeatureSplits(Splits[FeatureBags]):
    """`FeatureBags` for each split of a cohort: ``train``, ``validation`` and ``test``.

    Args:
        cohort: with the datalists ``train``, ``validation`` and ``test``.
        max_tiles: of a bag in training; validation and test have all.
        options: of the `FeatureBags`.
    """

    def __init__(self, cohort: Cohort, max_tiles: int | None = None, **options: Any) -> None:
        super().__init__(cohort, partial(FeatureBags, **options), max_tiles=max_tiles)


def measure_slide(
    thumbnail: NDArray[np.uint8],
    tissue: NDArray[np.uint8],
    downsample: float,
    slide_mpp: float,
    slide_size: Sequence[int],
    num_tiles: int,
) -> dict[str, Tensor]:
    """Measurements of a slide without its tiles: the shortcuts that a network has to beat.

    Args:
        thumbnail: (h, w, 3) uint8.
        tissue: (h, w), not 0 on tissue.
        downsample: pixels of level 0 per pixel of the thumbnail.
        slide_mpp: um per pixel of level 0.
        slide_size: width and height of level 0, pixels.
        num_tiles: of the slide.

    Returns:
        float32 by name of the shortcut: "tissue color" (6,), mean and standard deviation of red, green and blue in
        [0, 1]; "amount of tissue" (2,), logarithms of mm2 and of the number of tiles; "scanner" (3,), um per pixel and
        logarithms of width and height.

    Example:
        >>> picture = np.full((10, 10, 3), 128, dtype=np.uint8)
        >>> measured = measure_slide(picture, np.ones((10, 10)), 200.0, 0.5, (2000, 2000), 1)
        >>> measured["amount of tissue"].round(decimals=3)
        tensor([0., 0.])
    """
    colors = thumbnail[tissue > 0] / 255
    area_mm2 = len(colors) * (downsample * slide_mpp / 1000) ** 2
    measured = {
        "tissue color": [*colors.mean(0), *colors.std(0)],
        "amount of tissue": [np.log(area_mm2), np.log(num_tiles)],
        "scanner": [slide_mpp, *np.log(slide_size)],
    }
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in measured.items()}
