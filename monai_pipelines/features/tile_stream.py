"""The tiles of slides in batches, read by processes that may crash, or by threads."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from itertools import chain as joined
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from monai_pipelines.chains import Chain
from monai_pipelines.claims import DEADLY, Claim, ClaimedError, DeadlyError, release, renewed, take
from monai_pipelines.data.prepared import why_unusable
from monai_pipelines.data.slide_table import slide_source
from monai_pipelines.data.workers import CRASHED, WorkerCrashed, as_is, each_until_crash
from monai_pipelines.features.files import FeatureBag
from monai_pipelines.features.origin import Origin
from monai_pipelines.remote import Place
from monai_pipelines.slides import Tiles, close_slides

Item = Mapping[str, Any]
Message = tuple[int, str, Any]


class TileStream(IterableDataset):
    """Claims slides one after the other and reads their tiles.

    Of each slide come messages (index, kind, content): "slide" with a bag still without features, its number of tiles,
    its source (`slide_source`) and the claim, and then "tiles" with each batch, until all have come or it is "bad" with
    the reason. Or there is only one: "bad", "kept" with the number of tiles of the file that another process has just
    made, or "claimed" if it is making it.

    Args:
        items: datalist of slides.
        files: of their features; their folders exist.
        chain: slide -> tiles.
        batch_size: tiles.
        origin: of the features.
        owner: process that makes the files and then releases their claims.
        num_threads: that read ahead; 0: a batch is read when it is asked for.
    """

    def __init__(
        self,
        items: Sequence[Item],
        files: Sequence[Place],
        chain: Chain,
        batch_size: int,
        origin: Origin,
        owner: int,
        num_threads: int = 0,
    ) -> None:
        self.items, self.files, self.batch_size, self.origin = items, files, batch_size, origin
        self.owner, self.num_threads = owner, num_threads
        self.indices = tuple(range(len(items)))
        copied = deepcopy(chain)  # the caller's random state stays as it is
        self.plan, self.read = copied.until("tiles"), copied.since("tiles")

    def __iter__(self) -> Iterator[Message]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in self.indices[first::step]:
            item, file = self.items[index], self.files[index]
            try:
                claim = take(file, self.owner)
            except ClaimedError:
                yield index, "claimed", None
                continue
            except DeadlyError:
                yield index, "bad", DEADLY
                continue
            try:
                with renewed(claim):
                    yield from self._slide(index, item, file, claim)
            except Exception as error:
                release(file)
                yield index, "bad", why_unusable(error, item["image"])
            finally:
                close_slides()

    def _slide(self, index: int, item: Item, file: Place, claim: Claim) -> Iterator[Message]:
        if num_tiles := self.origin.num_tiles_made(file, item):
            release(file)
            yield index, "kept", num_tiles
            return
        if isinstance(self.plan, Randomizable):
            self.plan.set_random_state(seed=zlib.crc32(item["name"].encode()))
        planned = self.plan({"image": item["image"], "mpp": item.get("mpp")})
        source = slide_source(item)
        tiles, tissue = planned["image"], planned["tissue"]
        bag = FeatureBag(
            features=np.empty((0, 0), np.float32),
            coords=tiles.coords,
            level0_px=tiles.size.level0_px,
            tile_px=tiles.size.tile_px,
            mpp=tiles.size.mpp,
            slide_mpp=tiles.slide.mpp,
            slide_size=tiles.slide.size,
            thumbnail=tissue.meta["thumbnail"],
            tissue=tissue[0].numpy().astype(np.uint8),
            downsample=float(tissue.meta["downsample"]),
        )
        yield index, "slide", (bag, len(tiles), source, claim)
        for batch in self._batches(tiles):
            yield index, "tiles", batch

    def _batches(self, tiles: Tiles) -> Iterator[Tensor]:
        parts = (tiles[start : start + self.batch_size] for start in range(0, len(tiles), self.batch_size))
        if not self.num_threads:
            yield from map(self._batch, parts)
            return
        ahead = deque[Future[Tensor]]()
        with ThreadPoolExecutor(self.num_threads) as pool:
            for part in parts:
                ahead.append(pool.submit(self._batch, part))
                if len(ahead) > 2 * self.num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _batch(self, part: Tiles) -> Tensor:
        return torch.as_tensor(self.read(part)).as_subclass(torch.Tensor)


def read_messages(stream: TileStream, num_workers: int, pin_memory: bool) -> Generator[Message]:
    """The messages about all slides; those in progress when a worker process crashes start again, each alone."""
    left = list(range(len(stream.items)))
    while left:
        planned = tuple(left)
        yield from _until_crash(stream, planned, left, num_workers, pin_memory)
        first_of_worker = [[i for i in planned[k::num_workers] if i in left][:1] for k in range(num_workers)]
        for index in joined.from_iterable(first_of_worker):
            yield from _until_crash(stream, (index,), left, 1, pin_memory)
            if index in left:
                left.remove(index)
                yield index, "bad", CRASHED


def _until_crash(
    stream: TileStream, planned: tuple[int, ...], left: list[int], num_workers: int, pin_memory: bool
) -> Iterator[Message]:
    """The messages about some slides until a worker process crashes; takes finished ones off `left`."""
    stream.indices, num_tiles = planned, dict[int, int]()
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers, collate_fn=as_is, pin_memory=pin_memory)
    try:
        for index, kind, content in each_until_crash(loader):
            yield index, kind, content
            if kind == "slide":
                num_tiles[index] = content[1]
            elif kind == "tiles":
                num_tiles[index] -= len(content)
            if not num_tiles.get(index):
                left.remove(index)
    except WorkerCrashed:
        return
