"""The pages tell what is there: tables made from their CSV, files and links that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from monai_pipelines.declared import list_declared

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "FAQ.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("bundles/*/docs/README.md"))]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_and_pictures_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert (page.parent / link).exists(), f"{_name(page)}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_named_configs_exist(page: Path) -> None:
    folder = page.parents[1] if page.parent.name == "docs" else ROOT / "bundles" / "lung_ct_classification"
    for config in set(re.findall(r"configs/\w+\.yaml", page.read_text("utf-8"))):
        assert (folder / config).is_file(), f"{_name(page)}: {config}"


@pytest.mark.parametrize("bundle", list_declared("bundles"))
def test_result_tables_are_made_from_the_csv(bundle: str) -> None:
    seeds = _benchmark("bundle_seeds")
    text = (seeds.docs(bundle) / "README.md").read_text("utf-8")
    table = text.partition(seeds.START)[2].partition(seeds.END)[0].strip()
    assert table == seeds.table(seeds.read_results(bundle)), f"{bundle}: run benchmarks/bundle_seeds.py {bundle}"


def test_imbalance_table_is_made_from_its_csv() -> None:
    imbalance = _benchmark("imbalance")
    table = imbalance.PAGE.read_text("utf-8").partition(imbalance.START)[2].partition(imbalance.END)[0].strip()
    assert table == imbalance.table(imbalance.read_results())
