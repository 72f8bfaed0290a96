"""Random states of a process as plain data, so that a training can continue with the very next draw."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable

States = dict[str, Any]


def randomizables(*holders: Any) -> list[Randomizable]:
    """The random transforms that objects, their attributes and the lists among them hold, in a fixed order."""
    return list(_randomizables(holders, set()))


def _randomizables(holder: Any, seen: set[int]) -> Iterator[Randomizable]:
    if id(holder) in seen or isinstance(holder, type | torch.Tensor | torch.nn.Module):
        return
    seen.add(id(holder))
    if isinstance(holder, Randomizable):
        yield holder
    for part in holder if isinstance(holder, list | tuple) else getattr(holder, "__dict__", {}).values():
        yield from _randomizables(part, seen)


def random_states(transforms: Sequence[Randomizable], device: torch.device) -> States:
    """States of Python, NumPy, torch, the device and transforms."""
    return {
        "python": random.getstate(),
        "numpy": _plain(np.random.get_state()),  # noqa: NPY002  # MONAI's global state
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "transforms": [_plain(transform.R.get_state()) for transform in transforms],
    }


def set_random_states(states: States, transforms: Sequence[Randomizable], device: torch.device) -> None:
    """Restore what `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(_numpy(states["numpy"]))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["device"] is not None:
        torch.cuda.set_rng_state(states["device"], device)
    for transform, state in zip(transforms, states["transforms"], strict=True):
        transform.R.set_state(_numpy(state))


def _plain(state: Any) -> list[Any]:
    name, keys, *rest = state
    return [name, torch.from_numpy(keys.astype(np.int64)), *rest]


def _numpy(state: Any) -> tuple[Any, ...]:
    name, keys, *rest = state
    return (name, keys.numpy().astype(np.uint32), *rest)
