"""Shares of the items of a run."""

from __future__ import annotations

import pytest

from monai_pipelines.data.shards import share_of


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 20])
def test_shares_are_all_items_once(num_shards: int) -> None:
    shares = [share_of(range(11), f"{shard}/{num_shards}") for shard in range(1, num_shards + 1)]
    assert sorted(item for share in shares for item in share) == list(range(11))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_without_shards() -> None:
    assert share_of("abc", None) == ["a", "b", "c"]


@pytest.mark.parametrize("wrong", ["0/3", "4/3", "1/0", "1", "a/b", "1/3/5", "-1/3", ""])
def test_wrong_shards(wrong: str) -> None:
    with pytest.raises(ValueError, match="shard wants i/n"):
        share_of("abc", wrong)
