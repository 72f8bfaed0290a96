"""What most dictionary twins share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform


class EachKeyd(MapTransform):
    """Base of the dictionary twins that pass each key's value, and the mask at `mask_key`, through one `step`.

    The result replaces the value, or goes to `out_key`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        step: Callable[..., Any],
        allow_missing_keys: bool = False,
        mask_key: str | None = None,
        out_key: str | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step, self.mask_key, self.out_key = step, mask_key, out_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            mask = () if self.mask_key is None else (d[self.mask_key],)
            d[self.out_key or key] = self.step(d[key], *mask)
        return d
