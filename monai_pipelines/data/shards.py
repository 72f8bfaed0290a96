"""Shares of the items of a run, for the jobs of an array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def share_of(items: Sequence[T], shard: str | None) -> list[T]:
    """Every n-th item: those of job i of n together are all items, each once, as long as their order is the same.

    Args:
        items: of the whole run.
        shard: "i/n", from 1/n to n/n; None: all items.

    Raises:
        ValueError: not of this form.

    Example:
        >>> share_of("abcde", "2/3")
        ['b', 'e']
    """
    if shard is None:
        return list(items)
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"shard wants i/n, from 1/n to n/n, as 2/8 for the second of eight jobs, got {shard!r}")
    return list(items[int(match[1]) - 1 :: int(match[2])])
