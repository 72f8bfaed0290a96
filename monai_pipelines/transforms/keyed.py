"""What most dictionary twins share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform


class EachKeyd(MapTransform):
    """Base of the dictionary twins that put each key's value through one `step`."""

    def __init__(self, keys: KeysCollection, step: Callable[[Any], Any], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = step

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.step(d[key])
        return d
