"""Slides as bags of tiles drawn from them, for networks that are trained end to end."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from monai_pipelines.atomic import atomic_write
from monai_pipelines.chains import Chain
from monai_pipelines.data.prepared import OnError, Splits, UsableItems, as_is, why_unusable
from monai_pipelines.data.slide_table import slide_source
from monai_pipelines.data.split import Cohort, Item
from monai_pipelines.errors import ScanError
from monai_pipelines.features.bags import measure_slide, pad_bags
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
        cache_dir: str | PathLike[str] | None = None,
        on_error: OnError = "raise",
        num_workers: int = 0,
        redraw: bool = False,
    ) -> None:
        copied = deepcopy(chain)  # the caller's random state stays as it is
        lists = _TileLists(data, copied.until("sample"), Path(cache_dir) if cache_dir else None)
        loader = DataLoader(lists, batch_size=None, num_workers=num_workers, collate_fn=as_is)
        self.lists, self.draw, self.redraw = lists, copied.since("sample"), redraw
        super().__init__(data, chain, track(loader, "listing tiles", total=len(data)), on_error)

    def part(self, split: str) -> Self:
        """The items of one ``split``, with a random state of its own; nothing is listed again."""
        part = super().part(split)
        part.draw = deepcopy(self.draw)
        return part

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        return [self._item(index) for index in indices]

    def _item(self, index: int) -> Item:
        item, tiles = self.data[index], self._results[index]
        if not self.redraw:
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


class _TileLists(Dataset):
    """Item i: (all tiles of the slide, None), or (None, why it cannot be used)."""

    def __init__(self, data: Sequence[Mapping[str, Any]], chain: Chain, cache_dir: Path | None) -> None:
        self.data, self.chain, self.cache_dir = list(data), chain, cache_dir
        self.fingerprint = chain.fingerprint()
        if cache_dir:
            cache_dir.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.data)

    def plan(self, item: Mapping[str, Any]) -> Item:
        return self.chain({"image": item["image"], "mpp": item.get("mpp")})

    def __getitem__(self, index: int) -> tuple[Tiles | None, str | None]:
        item = self.data[index]
        try:
            file = self._file(item)
            if file is not None and (cached := _load(file)) is not None:
                coords, size, slide_mpp = cached
                return Tiles(open_slide(item["image"], slide_mpp), coords, size), None
            tiles: Tiles = self.plan(item)["image"]
        except (ScanError, OSError) as error:
            return None, why_unusable(error, item["image"])
        except Exception as error:
            error.add_note(f"while listing the tiles of {item['image']}")
            raise
        if file is not None:
            listed = {"coords": torch.from_numpy(tiles.coords), "size": list(tiles.size), "slide_mpp": tiles.slide.mpp}
            with atomic_write(file) as part, part.open("wb") as out:
                torch.save(listed, out)
        return tiles, None

    def _file(self, item: Mapping[str, Any]) -> Path | None:
        path = Path(item["image"])
        if self.cache_dir is None or not path.exists():  # the chain reports what is missing
            return None
        key = repr((self.fingerprint, str(path.resolve()), slide_source(item)))
        return self.cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.pt"


def _load(file: Path) -> tuple[NDArray[np.int64], TileSize, float] | None:
    """Coordinates, tile size and um per pixel of a slide; None if there is no list or it is damaged."""
    if not file.exists():
        return None
    try:
        listed = torch.load(file, weights_only=True)
        return listed["coords"].numpy(), TileSize(*listed["size"]), listed["slide_mpp"]
    except Exception:  # what a damaged pickle raises depends on the damage
        logger.warning("%s is damaged: the tiles are listed again", file)
        return None
