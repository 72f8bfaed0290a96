"""The declared chains and bundles are found wherever the package runs from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from monai_pipelines.declared import list_declared

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = "bundles/lung_ct_classification"
LEFT_BEHIND = ("models/model.pt", "models/model.ts", "eval/metrics.json", "runs/report.html", "configs/old.onnx")

PROBE = """
import json, site, sys
if len(sys.argv) > 1:
    site.addsitedir(sys.argv[1])
from monai_pipelines import __file__
from monai_pipelines.declared import declared_path, list_declared
print(json.dumps({
    "file": __file__,
    "chains": list_declared("transforms"),
    "bundles": list_declared("bundles"),
    "bundles_path": str(declared_path("bundles")),
}))
"""


def _build(source: Path, kind: str, target: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(target)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def _contents(wheel: Path) -> set[str]:
    return {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout in which runs have left their files."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    for name in ("monai_pipelines", "transforms", "bundles"):
        shutil.copytree(ROOT / name, copy / name, ignore=_left_behind_here)
    for name in LEFT_BEHIND:
        (copy / BUNDLE / name).parent.mkdir(exist_ok=True)
        (copy / BUNDLE / name).touch()
    return copy


def _left_behind_here(folder: str, names: list[str]) -> set[str]:
    runs = {"models", "eval", "runs", "outputs", "logs"} if Path(folder).parent == ROOT / "bundles" else set()
    return {name for name in names if name in runs | {"__pycache__"} or name.endswith((".pt", ".ts", ".onnx"))}


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(checkout, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as site-packages is after `pip install monai_pipelines-*.whl`."""
    site_packages = tmp_path_factory.mktemp("site-packages")
    with ZipFile(wheel) as archive:
        archive.extractall(site_packages)
    return site_packages


@pytest.fixture(scope="module")
def installed_editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as site-packages is after `pip install -e .`: what the build backend hands pip, unpacked."""
    site_packages = tmp_path_factory.mktemp("editable")
    code = "import sys; from hatchling.build import build_editable; build_editable(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(site_packages)], cwd=ROOT, check=True, capture_output=True)
    (built,) = site_packages.glob("*.whl")
    with ZipFile(built) as archive:
        archive.extractall(site_packages)
    return site_packages


def _probe(cwd: Path, *first: Path, editable: Path | None = None) -> dict:
    """Ask a new Python in `cwd`."""
    result = _python(cwd, *first, arguments=["-c", PROBE, *([str(editable)] if editable else [])])
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def _python(cwd: Path, *first: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A new Python; -S keeps .pth files out, so no install of this project in site-packages is seen."""
    paths = [*first, *{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run([sys.executable, "-S", *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def _check(found: dict, home: Path) -> None:
    """The package lies under `home` and brings the same chains and bundles as this one."""
    assert Path(found["file"]).is_relative_to(home)
    assert Path(found["bundles_path"]).is_relative_to(home)
    assert found["chains"] == list_declared("transforms")
    assert found["bundles"] == list_declared("bundles")


def test_wheel_holds_every_file_and_nothing_that_runs_left(checkout: Path, wheel: Path) -> None:
    wanted = {path.relative_to(checkout).as_posix() for path in checkout.rglob("*") if path.is_file()}
    wanted -= {"pyproject.toml", "README.md", "LICENSE", ".gitignore"} | {f"{BUNDLE}/{name}" for name in LEFT_BEHIND}
    declared = {name for name in wanted if not name.startswith("monai_pipelines/")}
    assert _contents(wheel) == wanted - declared | {f"monai_pipelines/_declared/{name}" for name in declared}
    assert {"monai_pipelines/py.typed", "monai_pipelines/_declared/transforms/lung_ct.yaml"} <= _contents(wheel)


def test_sdist_builds_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(_build(checkout, "sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = (path.parent for path in tmp_path.glob("*/pyproject.toml"))
    assert _contents(_build(source, "wheel", tmp_path / "wheel")) == _contents(wheel)


@pytest.mark.slow
def test_checkout_without_install() -> None:
    _check(_probe(ROOT), ROOT)


@pytest.mark.slow
def test_editable_install(installed_editable: Path, tmp_path: Path) -> None:
    _check(_probe(tmp_path, editable=installed_editable), ROOT)


@pytest.mark.slow
def test_inside_a_bundle(installed_editable: Path) -> None:
    _check(_probe(ROOT / BUNDLE, editable=installed_editable), ROOT)


@pytest.mark.slow
def test_wheel_elsewhere(installed_wheel: Path, tmp_path: Path) -> None:
    _check(_probe(tmp_path, installed_wheel), installed_wheel)


@pytest.mark.slow
def test_a_bundle_of_the_wheel_runs_elsewhere_and_writes_nothing_into_the_package(
    installed_wheel: Path, tmp_path: Path
) -> None:
    options = ["--config_file", "configs/train.yaml", "--dataset_dir", "no_data"]
    inside = installed_wheel / "monai_pipelines" / "_declared" / BUNDLE
    refused = _python(inside, installed_wheel, arguments=["-m", "monai.bundle", "run", *options])
    assert refused.stderr.endswith(
        "\noutput_dir output is in the installed package: name another with --output_dir FOLDER\n"
    )
    named = ["-m", "monai_pipelines", "run", "--bundle_root", Path(BUNDLE).name, *options]
    started = _python(tmp_path, installed_wheel, arguments=named)
    assert re.search(r"error: no_data.table\.csv: 1 problem\(s\)\n  - no such table", started.stderr)


@pytest.mark.slow
def test_wheel_beside_users_own_transforms(wheel: Path, tmp_path: Path) -> None:
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (tmp_path / "transforms.py").write_text("raise RuntimeError('not ours')\n")
    (tmp_path / "bundles").mkdir()
    (tmp_path / "pyproject.toml").touch()
    _check(_probe(tmp_path), tmp_path)
