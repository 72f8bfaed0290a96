"""Finds the declared chains and bundles (YAML) in a checkout or an installed wheel."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Literal

Kind = Literal["transforms", "bundles"]


def declared_path(kind: Kind) -> Path:
    """Folder of the declared chains or bundles, wherever this package runs from.

    A wheel carries them in `monai_pipelines/_declared/`; in a checkout they stand beside the package.
    A user's `transforms` or `bundles` folder beside an installed wheel or in the working directory is never used.

    Args:
        kind: "transforms" (chains) or "bundles".

    Raises:
        FileNotFoundError: neither exists.

    Example:
        >>> (declared_path("transforms") / "lung_ct.yaml").is_file()
        True
    """
    package = Path(__file__).resolve().parent
    in_wheel, in_checkout = package / "_declared" / kind, package.parent / kind
    if in_wheel.is_dir():
        return in_wheel
    if in_checkout.is_dir() and (package.parent / "pyproject.toml").is_file():
        return in_checkout
    raise FileNotFoundError(
        f"declared_path: wanted {in_wheel} (wheel) or {in_checkout} (checkout), found neither; "
        "install monai_pipelines with pip or keep the package inside its checkout"
    )


def list_declared(kind: Kind) -> list[str]:
    """Names of the declared chains (for `load_chain`) or bundles, sorted.

    Args:
        kind: "transforms" (chains) or "bundles".

    Example:
        >>> "lung_ct" in list_declared("transforms")
        True
    """
    folder = declared_path(kind)
    if kind == "transforms":
        return sorted(path.stem for path in folder.glob("*.yaml"))
    return sorted(path.parent.name for path in folder.glob("*/configs"))


def find_bundle(name: str) -> Path:
    """Folder of a bundle of this package.

    Raises:
        FileNotFoundError: no such bundle; lists those there are.
    """
    names = list_declared("bundles")
    if name not in names:
        raise FileNotFoundError(f"no bundle {name!r}; there are {', '.join(names)}")
    return declared_path("bundles") / name


def in_installed_package(path: str | PathLike[str]) -> bool:
    """Whether a path is inside the package as a wheel installs it, where nothing may be written."""
    package = Path(__file__).resolve().parent
    return (package / "_declared").is_dir() and Path(path).resolve().is_relative_to(package)
