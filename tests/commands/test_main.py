"""The command line: what it prints, draws and writes, and how it tells errors."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor
from PIL import Image

from monai_pipelines import load_chain
from monai_pipelines.chains import chain_file
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.phantoms import write_lung_ct_cohort
from monai_pipelines.report import chains as drawing

ROOT = declared_path("bundles").parent
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `python -m monai_pipelines ARGUMENTS` in this process: exit status, what it printed, what it complained."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["monai_pipelines", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setenv("TERMINAL_WIDTH", "300")
        with pytest.raises(SystemExit) as end:
            import_module("monai_pipelines.__main__").main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = write_lung_ct_cohort(
        tmp_path_factory.mktemp("scan") / "data", 2, matrix=64, slice_mm=8, num_workers=1, progress=False
    )
    return next((table.parent / "scans").iterdir())


# ---- show


def test_show_lists_all(command: Command) -> None:
    status, out, _ = command("show")
    assert status == 0
    for name in list_declared("transforms"):
        assert name in out
        assert ", ".join(load_chain(name).step_names) in out
    for name in list_declared("bundles"):
        assert name in out
        for config in (declared_path("bundles") / name / "configs").glob("*.yaml"):
            assert config.name in out


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


@pytest.mark.parametrize("name", list_declared("transforms"))
def test_show_chain(command: Command, name: str) -> None:
    status, out, _ = command("show", name)
    assert status == 0
    chain = load_chain(name)
    description = chain.describe()
    rows = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    for knob, value in description["knobs"].items():
        assert _text(value) in [row[2].strip() for row in rows if row[1].strip() == knob]
    for step, arguments in description["steps"].items():
        where = [row for row in rows if row[1].strip() == step][-1]  # a step may be called as a knob is
        assert where[2].strip() == arguments.pop("_target_").rpartition(".")[2]
        for argument, value in arguments.items():
            assert argument == "allow_missing_keys" or f"{argument}={_text(value)}" in where[3]
    assert chain.fingerprint() in out
    comments = re.findall(r"^\w+:.*?  # *(.*)$", chain_file(name).read_text(), re.MULTILINE)
    assert len(comments) >= 5
    assert not [comment for comment in comments if comment[:8] not in out]


@pytest.mark.parametrize("name", list_declared("bundles"))
def test_show_bundle_tells_its_own_numbers(command: Command, name: str) -> None:
    status, out, _ = command("show", name)
    assert status == 0
    for knob in ("max_epochs", "learning_rate", "batch_size", "seed"):
        assert f"│ {knob} " in out
    chains = {
        "lung_ct": "lung_ct",
        "chest_xray": "xray",
        "fundus": "fundus",
        "colorectal_histology": "histology_tile",
        "histology_slide": "slide_tiles",
        "lung_nodule_ct_detection": "lung_ct_detection",
        "chest_xray_detection": "xray_detection",
    }
    chain = chains.get(name.removesuffix("_classification"), "image2d")
    assert re.search(f" (chain|preprocessing): {chain}, fingerprint", out)
    if name == "lung_ct_classification":
        assert "masking=air" in out, "as the bundle has it, not as the chain has it by default"
    assert command("show", declared_path("bundles") / name)[1] == out


def test_show_users_own_chain(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        "low: -5   # HU [lowest]\nplain: 3\nsteps:\n"
        '  window: {_target_: monai_pipelines.transforms.WindowHUd, keys: image, window_hu: ["@low", 7]}\n'
    )
    status, out, _ = command("show", file)
    assert status == 0
    assert "window_hu=[-5, 7]" in out
    assert "HU [lowest]" in out
    assert "│ plain │" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["show", "lung_tc"],
            "no chain or bundle 'lung_tc' (did you mean 'lung_ct'?); chains: augment_ct, augment_image2d",
        ),
        (
            ["show", "nosuch"],
            "xray, xray_detection; bundles: chest_xray_classification, chest_xray_detection, colorectal_histology_",
        ),
        (["show", "lung_ct_clasification"], "no chain or bundle 'lung_ct_clasification' (did you mean 'lung_ct_class"),
        (["show", "lung_ct", "--input", "lost", "--picture", "a.png"], "lost: no such file or folder"),
        (
            ["show", "own.yaml", "--input", "lost", "--picture", "a.png"],
            "starts with WindowHUd, not with a file; draw one that loads, such as lung_ct or image2d",
        ),
        (["show", "augment_ct", "--input", "lost", "--picture", "a.png"], "lost: no such file or folder"),
        (
            ["show", "augment_image2d", "--input", "s", "--picture", "a.png", "--boxes", "b.csv"],
            "places no boxes; draw them with lung_ct_detection or xray_detection",
        ),
        (["show", "lung_ct", "--input", "s", "--picture", "a.png", "--knob", "sise=9"], "did you mean 'size'?"),
        (["phantoms", "lung-ct", "new", "--lesion-mm", "40", "20"], "lesion_mm must rise"),
        (["phantoms", "lung-ct", "."], "must be new or empty"),
    ],
)
def test_errors_are_told_in_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    (tmp_path / "own.yaml").write_text(
        "steps:\n  window: {_target_: monai_pipelines.transforms.WindowHUd, keys: image}\n"
    )
    status, out, err = command(*arguments)
    assert status == 1
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def _raised(first: BaseException) -> RuntimeError:
    outer, inner = RuntimeError("Failed to instantiate"), RuntimeError("applying transform")
    outer.__cause__, inner.__cause__ = inner, first
    return outer


def test_what_monai_wraps_is_told_in_one_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise _raised(first)

    monkeypatch.setattr(drawing, "show_one", fail)
    first: BaseException = ValueError("a file that cannot be read")
    first.__cause__ = IndexError("deep inside")
    assert command("show", "lung_ct") == (1, "", "error: a file that cannot be read\n")
    first = ZeroDivisionError("a fault of the program")
    with pytest.raises(RuntimeError, match="Failed to instantiate"):
        command("show", "lung_ct")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "lung_ct", "--input", "scan"], "--picture FILE and --input SCAN go together"),
        (["show", "lung_ct", "--picture", "a.png"], "--picture FILE and --input SCAN go together"),
        (["show", "lung_ct", "--input", "s", "--picture", "a.png", "--knob", "masking"], "wants name=value"),
        (["shwo"], "No such command 'shwo'"),
        (["phantoms", "lung-ct", "new", "--patients", "1"], "'--patients': Input should be greater than or equal to 2"),
    ],
)
def test_wrong_usage_is_told_without_a_traceback(command: Command, arguments: list[str], message: str) -> None:
    status, _, err = command(*arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("argument", "printed"), [("--help", "phantoms"), ("show", "lung_ct")])
def test_light_commands_import_neither_torch_nor_monai_nor_numpy(argument: str, printed: str) -> None:
    code = (
        f"import sys, runpy; sys.argv[1:] = ['{argument}']\n"
        "try: runpy.run_module('monai_pipelines', run_name='__main__')\n"
        "finally: print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert printed in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_errors_of_the_real_command_have_no_traceback() -> None:
    command = [sys.executable, "-m", "monai_pipelines", "show", "lung_tc"]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: no chain or bundle 'lung_tc'")


# ---- pictures


def test_picture_of_a_chain(command: Command, scan: Path, tmp_path: Path) -> None:
    file = tmp_path / "chain.png"
    status, out, _ = command("show", "lung_ct", "--input", scan, "--picture", file, "--knob", "size=[48, 48, 48]")
    assert (status, out.strip()) == (0, f"wrote {file}")
    pixels = matplotlib.image.imread(file)
    assert pixels.shape[1] > 6 * 250
    orange = (pixels[..., 0] > 0.8) & (pixels[..., 2] < 0.2)
    assert orange.any(), "the lungs are outlined"


def test_picture_is_drawn_as_radiologists_look(scan: Path) -> None:
    """Patient right on the left, front and head up, in millimetres, the outline in its place, for any voxel order."""
    image = torch.zeros(1, 20, 16, 10)
    image[0, 15:, 8, :] = 0.5  # patient left
    image[0, :, 12:, :] = 0.2  # front
    mask = torch.zeros(1, 10, 8, 10)
    mask[0, 2:5, 2:4, 3:7] = 1
    affine, coarse = torch.diag(torch.tensor([-2.0, 1, 3, 1])), torch.diag(torch.tensor([-4.0, 2, 3, 1]))
    affine[:3, 3] = torch.tensor([38.0, 0, 0])
    coarse[:3, 3] = torch.tensor([37.0, 0.5, 0])
    for flip in (False, True):
        volume = MetaTensor(image, affine=affine)
        if flip:  # the same scan with its first axis the other way round
            turned = affine.clone()
            turned[:3, 0], turned[0, 3] = -affine[:3, 0], 0.0
            volume = MetaTensor(image.flip(1), affine=turned)
        figure = Figure()
        axis: Any = figure.subplots()
        drawing._draw_plane(axis, volume, MetaTensor(mask, affine=coarse), 2)
        (picture,) = axis.images
        # x runs from 38 to 0 mm: voxel 15 and up lie at 8 mm and below
        assert picture.get_extent() == pytest.approx([39, -1, -0.5, 15.5])
        shown = np.asarray(picture.get_array())
        assert picture.origin == "lower"
        row, column = np.nonzero(shown == 0.5)
        assert set(row) == {8}
        assert set(column) == set(range(15, 20))
        assert (shown[12:] >= 0.2).all()
        assert (shown[:8] == 0).all()
        assert axis.get_aspect() == 1
        (outline,) = [c for c in axis.collections if len(c.get_paths())]
        points = np.concatenate([path.vertices for path in outline.get_paths()])
        # mask voxels 2 to 4 lie at 29 to 21 mm, the outline halfway to their neighbours; 2 to 3 at 4.5 to 6.5 mm
        assert [*points.min(axis=0), *points.max(axis=0)] == pytest.approx([19, 3.5, 31, 7.5])


@pytest.mark.parametrize(
    ("name", "grey"), [("image2d", False), ("image2d", True), ("xray", True), ("xray", False), ("fundus", False)]
)
def test_picture_of_a_chain_of_images(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, grey: bool
) -> None:
    """One row, a column for each step: what is drawn is what the steps give, at the end scaled to be seen."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (figures.append(self), save(self, *args)))
    rows, columns = np.indices((60, 90)) - np.array([30, 45])[:, None, None]
    disc = np.where(rows**2 + columns**2 < 28**2, 120 + columns, 0).astype(np.uint8)
    file, picture = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(disc if grey else np.stack([disc, disc // 2, disc // 3], axis=-1)).save(file)
    status, out, _ = command("show", name, "--input", file, "--picture", picture, "--knob", "size=[32, 40]")
    assert (status, out.strip()) == (0, f"wrote {picture}")
    chain = load_chain(name, size=[32, 40])
    axes = figures[0].axes
    assert len(axes) == len(chain.steps)
    data: Any = {"image": str(file)}
    for axis, (step, transform) in zip(axes, chain.steps.items(), strict=True):
        data = transform(data)
        image = np.asarray(data["image"])
        size, kind, values = (
            "x".join(map(str, image.shape)),
            str(image.dtype),
            f"{image.min():.3g} to {image.max():.3g}",
        )
        assert axis.get_title() == f"{step}\n{size} {kind}\n{values}"
        shown = np.asarray(axis.images[0].get_array())
        expected = image / 255 if image.dtype == np.uint8 else image
        if step == "normalize":
            assert image.min() < 0
            expected = (image - image.min()) / np.ptp(image)
        np.testing.assert_allclose(shown, expected.transpose(1, 2, 0) if len(image) == 3 else expected[0], atol=1e-6)
        assert len(image) == 3 or axis.images[0].get_clim() == (0, 1)
    assert step == "normalize"
    height, width = matplotlib.image.imread(picture).shape[:2]
    assert width > 2 * height


@pytest.mark.parametrize("name", ["augment_image2d", "augment_ct"])
def test_picture_of_an_augmentation(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scan: Path, name: str
) -> None:
    """The original and eight draws of it, the same each time, with the given knobs."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file: figures.append(self))
    rows, columns = np.indices((60, 90))
    file = tmp_path / "a.png"
    Image.fromarray((rows + columns).astype(np.uint8)).save(file)
    source, planes = (file, 1) if name == "augment_image2d" else (scan, 2)
    for knob in ("rotation_prob=1", "rotation_prob=1", "rotation_deg=0"):
        assert command("show", name, "--input", source, "--picture", tmp_path / "b.png", "--knob", knob)[0] == 0
    first, again, other = ([np.asarray(axis.images[0].get_array()) for axis in figure.axes] for figure in figures)
    assert len(first) == 9 * planes
    titles = [axis.get_title("left") for axis in figures[0].axes][::planes]
    assert titles == ["original", *(f"draw {number}" for number in range(1, 9))]
    assert len({shown.tobytes() for shown in first}) == len(first)
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert np.array_equal(first[0], other[0])
    assert not np.array_equal(first[-1], other[-1])
    assert [len(axis.texts) for axis in figures[0].axes].count(1) == (0 if planes == 1 else 2), "R on the original only"


# ---- phantoms


def test_phantoms(command: Command, tmp_path: Path) -> None:
    options = ("--patients", 3, "--seed", 7, "--matrix", 48, "--slice-mm", 12, "--lesion-mm", 15, 25, "--workers", 1)
    folder = tmp_path / "data"
    status, out, _ = command("phantoms", "lung-ct", folder, *options)
    assert status == 0
    assert out.splitlines()[-1] == f"wrote {folder / 'table.csv'}"
    again = write_lung_ct_cohort(
        tmp_path / "again", 3, 7, matrix=48, slice_mm=12, lesion_mm=(15, 25), num_workers=1, progress=False
    )
    files = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert len(files) > 30
    assert all((again.parent / name).read_bytes() == content for name, content in files.items())
