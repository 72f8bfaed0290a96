"""Sizes as steps take them."""

from __future__ import annotations

from collections.abc import Sequence

from monai.utils import ensure_tuple_rep

_AXES = {2: "(H, W) in pixels", 3: "(X, Y, Z) in voxels"}


def checked_size(name: str, size: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A size along each of 2 or 3 axes, from as many or from one number.

    Args:
        name: of step and argument, for the error.
        size: 1 or more.
        dims: number of axes.

    Raises:
        ValueError: another number of sizes, or one below 1.

    Example:
        >>> checked_size("ResampleCT: size", 64, 3)
        (64, 64, 64)
    """
    try:
        sizes = tuple(int(n) for n in ensure_tuple_rep(size, dims))
    except ValueError:
        sizes = ()
    if min(sizes, default=0) < 1:
        raise ValueError(f"{name} must be {_AXES[dims]}, or one number, got {size}")
    return sizes
