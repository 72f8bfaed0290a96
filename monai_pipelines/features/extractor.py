"""The tiles of slides through a frozen network, on one device."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from monai_pipelines.chains import Chain
from monai_pipelines.claims import Claim, is_held, release, release_held, renew
from monai_pipelines.data.slide_table import feature_file
from monai_pipelines.data.workers import CLAIMED, Outcome
from monai_pipelines.features.files import FeatureBag, write_features
from monai_pipelines.features.origin import Origin, Row
from monai_pipelines.features.tile_stream import Message, TileStream
from monai_pipelines.inferers import AutocastInferer
from monai_pipelines.networks import TileBackbone
from monai_pipelines.networks.precision import Precision, used_precision
from monai_pipelines.remote import Place

Dtype = Literal["float32", "float16"]


@dataclass
class _Pending:
    """A slide whose features are not complete yet."""

    bag: FeatureBag
    num_tiles: int
    source: str
    claim: Claim
    start: float = field(default_factory=time.monotonic)
    features: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def num_done(self) -> int:
        return sum(map(len, self.features))


class Extractor:
    """Makes the files of slides on the GPU if there is one; the device is chosen where it first works.

    Args:
        features_dir, chain, backbone, batch_size, precision, dtype: of `extract_features`.
        origin: of the features.
        num_threads: that read, when it is called with a slide.
    """

    def __init__(
        self,
        features_dir: Place,
        chain: Chain,
        backbone: TileBackbone,
        origin: Origin,
        *,
        batch_size: int,
        precision: Precision,
        dtype: Dtype,
        num_threads: int,
    ) -> None:
        self.features_dir, self.chain, self.backbone, self.origin = features_dir, chain, backbone, origin
        self.batch_size, self.asked_precision, self.dtype, self.num_threads = batch_size, precision, dtype, num_threads

    def __call__(self, item: Mapping[str, Any]) -> Outcome:
        """A slide as work of a cluster: (its row, None) or (its row, why it cannot be used)."""
        files = [feature_file(self.features_dir, item["name"])]
        messages = iter(self.stream([item], files, self.num_threads))
        try:
            *_, (_, _, row) = self.extract(messages, files)
        finally:
            release_held(files[0])
        return CLAIMED if row["status"] == "claimed" else (row, row.get("reason"))

    def stream(self, items: Sequence[Mapping[str, Any]], files: Sequence[Place], num_threads: int = 0) -> TileStream:
        return TileStream(items, files, self.chain, self.batch_size, self.origin, os.getpid(), num_threads)

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def precision(self) -> Precision:
        return used_precision(self.asked_precision, self.device.type, gradients=False)

    @cached_property
    def network(self) -> nn.Module:
        return self.backbone.to(self.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def extract(self, messages: Iterable[Message], files: Sequence[Place]) -> Iterator[tuple[Place, float, Row]]:
        """Write the files; yields a file, the share of it that has just been done, and updates for its row.

        The ``status`` of a finished one is done, kept (another process has just made it), skipped, or claimed: another
        process is making it.
        """
        infer, pending = AutocastInferer(self.precision), dict[int, _Pending]()
        for index, kind, content in messages:
            if kind == "slide":
                pending[index] = _Pending(*content)
            elif kind == "tiles":
                slide, row = pending[index], Row()
                with torch.inference_mode():
                    features = infer(content.to(self.device, non_blocking=True), self.network)
                slide.features.append(features.cpu().numpy())
                for other in pending.values():
                    renew(other.claim)
                if slide.num_done == slide.num_tiles:
                    row = self._written(files[index], pending.pop(index))
                yield files[index], len(content) / slide.num_tiles, row
            else:
                begun = pending.pop(index, None)
                done = begun.num_done / begun.num_tiles if begun else 0
                yield files[index], 1 - done, _ended(kind, content)

    def _written(self, file: Place, slide: _Pending) -> Row:
        if not is_held(slide.claim):
            return {"status": "claimed"}
        bag = replace(slide.bag, features=np.concatenate(slide.features))
        attributes = {**self.origin.attributes, "precision": self.precision, "source": slide.source}
        write_features(file, bag, attributes, self.dtype)
        release(file)
        seconds = round(time.monotonic() - slide.start, 2)
        return {"status": "done", "num_tiles": slide.num_tiles, "seconds": seconds}


def _ended(kind: str, content: Any) -> Row:
    """The row of a slide that is not read to its end."""
    if kind == "bad":
        return {"status": "skipped", "reason": content}
    return {"status": kind, "num_tiles": content} if kind == "kept" else {"status": kind}
