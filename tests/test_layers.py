"""The rules of the house: imports point one way, files stay small, configs hold no code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "monai_pipelines"
LAYERS = (  # bottom to top; a module imports from its own layer or below
    {"errors", "declared", "versions", "atomic", "claims", "walk", "privacy", "processes", "remarks", "remote"},
    {"probabilities", "slides", "metrics"},
    {"transforms", "losses", "inferers", "phantoms", "networks"},
    {"detection"},
    {"chains"},
    {"model"},
    {"data"},
    {"audit"},
    {"features"},
    {"runs"},
    {"report"},
    {"handlers"},
    {"explain"},
    {"engines"},
    {"commands"},
    {"__init__", "__main__"},
)
HEIGHT = {module: height for height, layer in enumerate(LAYERS) for module in layer}

SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))
EVERYWHERE = SOURCES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))
CONFIGS = sorted(path for folder in ("transforms", "bundles") for path in (ROOT / folder).rglob("*.yaml"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _part(path: Path) -> str:
    """The part of the package a file belongs to: `ct.py` in `transforms/` -> transforms."""
    return path.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]


def _modules(tree: ast.AST, package: tuple[str, ...] = ()) -> Iterator[str]:
    """Dotted names of everything imported, also inside functions; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield from (".".join((*above, *filter(None, [node.module]), alias.name)) for alias in node.names)


def _imported_parts(source: str, package: tuple[str, ...] = (PACKAGE,)) -> set[str]:
    """Parts of this package that a source imports; a name of the package itself stands for `__init__`."""
    parts = set()
    for module in _modules(ast.parse(source), package):
        first, _, rest = module.partition(".")
        if first == PACKAGE and rest != "__version__":
            part = rest.split(".")[0]
            parts.add(part if part in HEIGHT else "__init__")
    return parts


def test_imported_parts_are_seen() -> None:
    source = (
        "import numpy\nfrom monai_pipelines import load_chain, errors\n"
        "def f():\n    from ..data.table import read\n    import monai_pipelines.chains as c\n"
    )
    assert _imported_parts(source, (PACKAGE, "report")) == {"__init__", "errors", "data", "chains"}


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_imports_point_down(path: Path) -> None:
    part = _part(path)
    assert part in HEIGHT, f"{_name(path)}: give {part!r} a place in LAYERS"
    imported = _imported_parts(path.read_text("utf-8"), path.relative_to(ROOT).parent.parts)
    above = sorted(other for other in imported - {part} if HEIGHT[other] > HEIGHT[part])
    assert not above, f"{_name(path)}: {part} stands below {above}"


@pytest.mark.parametrize("path", EVERYWHERE, ids=_name)
def test_nobody_imports_main_or_torchvision(path: Path) -> None:
    source = path.read_text("utf-8")
    package = path.relative_to(ROOT).parent.parts
    assert "__main__" not in _imported_parts(source, package)
    assert not [module for module in _modules(ast.parse(source), package) if module.split(".")[0] == "torchvision"]


@pytest.mark.parametrize("path", EVERYWHERE, ids=_name)
def test_files_stay_small_and_say_what_they_hold(path: Path) -> None:
    assert path.stem not in {"utils", "helpers"}
    assert len(path.read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_package_never_prints_or_asserts(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        assert not isinstance(node, ast.Assert), f"{_name(path)}:{node.lineno}: raise an error instead"
        prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        assert not prints, f"{_name(path)}:{node.lineno}: log or raise instead"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (text for item in value.items() for text in _texts(list(item)))
    elif isinstance(value, list):
        yield from (text for item in value for text in _texts(item))
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("path", CONFIGS, ids=_name)
def test_configs_hold_no_lambda(path: Path) -> None:
    assert not [text for text in _texts(yaml.safe_load(path.read_text("utf-8"))) if re.search(r"\blambda\b", text)]


def test_command_line_and_phantoms_start_without_torch() -> None:
    code = "import sys, monai_pipelines.__main__, monai_pipelines.phantoms; print(*{'monai', 'torch'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("\n", 0), result.stderr


def test_tests_of_a_file_run_in_one_worker(request: pytest.FixtureRequest) -> None:
    """Otherwise every worker makes the fixtures of a module, such as the demo runs."""
    if not hasattr(request.config, "workerinput"):
        pytest.skip("in one process")
    assert "@" in request.node.nodeid
