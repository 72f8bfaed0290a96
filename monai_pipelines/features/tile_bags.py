"""Slides as bags of tiles drawn from them, for networks that are trained end to end."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Self

import torch
from monai.transforms import Randomizable

from monai_pipelines.chains import Chain
from monai_pipelines.data.cache import Cache
from monai_pipelines.data.prepared import OnError, Splits, UsableItems, why_unusable
from monai_pipelines.data.split import Cohort, Item
from monai_pipelines.data.workers import each_outcome
from monai_pipelines.features.bags import measure_slide, pad_bags
from monai_pipelines.remote import Source, as_place
from monai_pipelines.slides import Tiles, TileSize, open_slide

logger = logging.getLogger(__name__)


class TileBags(UsableItems):
    """Slides as bags of tiles, which are listed once, but drawn and read on each access.

    An item of ``data`` gets ``bag`` (n, 3, H, W) uint8, ``coords`` (n, 2) int64 numpy, ``level0_px``, ``tile_px``,
    ``mpp``, ``slide_mpp``, and, outside batches, the thumbnail as ``image`` (3, h, w) uint8, its ``downsample``, and
    the ``shortcut`` that a network has to beat.

    Args:
        data: datalist: ``image`` (path of the slide), ``name``, and ``mpp`` where the slide has none.
        chain: slide -> tiles, with the steps of ``slide_tiles``: before "sample" it lists, then it draws and reads.
        cache_dir: folder for the lists; None keeps them in memory.
        on_error: of `UsableItems`, which see also for the attributes and errors.
        num_workers: processes that list.
        redraw: draw new tiles on each access, for training; otherwise they depend only on the slide's name.
    """

    collate = staticmethod(pad_bags)

    def __init__(
        self,
        data: Sequence[Item],
        chain: Chain,
        cache_dir: Source | None = None,
        on_error: OnError = "raise",
        num_workers: int = 0,
        redraw: bool = False,
    ) -> None:
        copied = deepcopy(chain)  # the caller's random state stays as it is
        lists = _TileLists(copied.until("sample"), Cache(cache_dir) if cache_dir else None)
        self.lists, self.draw, self.redraw = lists, copied.since("sample"), redraw
        outcomes = each_outcome(lists, data, "listing tiles", num_workers)
        super().__init__(data, chain, outcomes, on_error)

    def part(self, split: str) -> Self:
        """The items of one ``split``, with a random state of its own; nothing is listed again."""
        part = super().part(split)
        part.draw = deepcopy(self.draw)
        return part

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        return [self._item(index) for index in indices]

    def _item(self, index: int) -> Item:
        item, tiles = self.data[index], self._results[index]
        if not self.redraw and isinstance(self.draw, Randomizable):
            self.draw.set_random_state(seed=zlib.crc32(item["name"].encode()))
        bag = self.draw(tiles)
        meta = {key: bag.meta[key] for key in ("coords", "level0_px", "tile_px", "mpp", "slide_mpp")}
        return {**item, "bag": bag.as_tensor(), **meta}

    def _transform(self, index: int) -> Item:
        slide, num_tiles = self._results[index].slide, len(self._results[index])
        tissue = self.lists.plan(self.data[index])["tissue"]
        thumbnail, downsample = tissue.meta["thumbnail"], float(tissue.meta["downsample"])
        return {
            **self._item(index),
            "image": torch.from_numpy(thumbnail).permute(2, 0, 1),
            "downsample": downsample,
            "shortcut": measure_slide(thumbnail, tissue[0].numpy(), downsample, slide.mpp, slide.size, num_tiles),
        }


class TileSplits(Splits[TileBags]):
    """`TileBags` for each split of a cohort; those of ``train`` draw new tiles on each access.

    Args:
        cohort: with the datalists ``train``, ``validation`` and ``test``.
        options: of the `TileBags`: ``chain``, ``cache_dir``, ``on_error``, ``num_workers``.
    """

    def __init__(self, cohort: Cohort, **options: Any) -> None:
        super().__init__(cohort, partial(TileBags, **options), redraw=True)


class _TileLists:
    """Of an item (all tiles of the slide, None), or (None, why it cannot be used)."""

    def __init__(self, chain: Chain, cache: Cache | None) -> None:
        self.chain, self.cache = chain, cache
        self.fingerprint = chain.fingerprint()

    def plan(self, item: Mapping[str, Any]) -> Item:
        return self.chain({"image": item["image"], "mpp": item.get("mpp")})

    def __call__(self, item: Mapping[str, Any]) -> tuple[Tiles | None, str | None]:
        image = item["image"]
        file = listed = None
        try:
            if self.cache and as_place(image).exists():  # the chain reports what is missing
                file = self.cache.file(image, self.fingerprint, str(item.get("mpp") or ""))
                listed = self.cache.read(file)
                if listed is None and file.exists():
                    logger.warning("%s is damaged: the tiles are listed again", file)
            if listed is not None:
                slide = open_slide(image, listed["slide_mpp"])
                return Tiles(slide, listed["coords"].numpy(), TileSize(*listed["size"])), None
            tiles: Tiles = self.plan(item)["image"]
        except Exception as error:
            return None, why_unusable(error, image)
        if self.cache and file:
            listed = {"coords": torch.from_numpy(tiles.coords), "size": list(tiles.size), "slide_mpp": tiles.slide.mpp}
            self.cache.write(file, listed)
        return tiles, None
