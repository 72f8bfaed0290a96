"""What each bundle is tried with."""

from __future__ import annotations

import atexit
import csv
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import set_determinism

from monai_pipelines import phantoms
from monai_pipelines.data import Cohort, medmnist_info
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.metrics import Detections, Lesions, classification_metrics, detection_metrics
from tests.new_process import run_module
from tests.personal_data import MARKER, find_in_folder, find_markers, mark_folder, put

ENTRY_POINTS = {"train", "inference"}
QUIET: dict[str, Any] = {"num_workers": 1, "progress": False}
WEIGHTS = Path(tempfile.mkdtemp()) / "tile_network.pt"
atexit.register(shutil.rmtree, WEIGHTS.parent, ignore_errors=True)
# What MONAI's schema of 2024-07-25 asks for, in short.
REQUIRED = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors")
STRINGS = (*REQUIRED, "copyright", "data_source", "data_type", "image_classes", "label_classes", "pred_classes")
MAPPINGS = ("required_packages_version", "changelog", "eval_metrics", "supported_apps")
TENSOR = {
    "type": {"type": "string"},
    "format": {"type": "string"},
    "num_channels": {"type": "integer"},
    "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
    "dtype": {"type": "string"},
    "value_range": {"type": "array", "items": {"type": "number"}},
}
TENSORS = {"additionalProperties": {"type": "object", "properties": TENSOR, "required": list(TENSOR)}}
SCHEMA = {
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in STRINGS},
        **{name: {"type": "object"} for name in MAPPINGS},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "properties": {"inputs": TENSORS, "outputs": TENSORS, "post_processed_outputs": TENSORS},
            "required": ["inputs", "outputs"],
        },
    },
    "required": [*REQUIRED, "copyright", "required_packages_version", "network_data_format"],
}


class Case(NamedTuple):
    """One bundle, small.

    Args:
        make: writes data into a folder and returns what `dataset_dir` names.
        small: overrides of every config.
        parameters: by config, of the networks with the metadata's channels and classes, as published.
        spoil: writes images to be classified into a folder, from the data; returns the number of good ones and, by
            name, the reason why a bad one is skipped. None where the bundle takes one file.
        own_data: by config, `make` for overlays that need other data.
        unlike: configs whose network has other inputs or outputs than the metadata's, or sizes that depend on values.
    """

    make: Callable[[Path], Path]
    small: dict[str, Any]
    parameters: dict[str, int]
    spoil: Callable[[Path, Path], tuple[int, dict[str, str]]] | None
    own_data: Mapping[str, Callable[[Path], Path]] = MappingProxyType({})
    unlike: tuple[str, ...] = ()


def _lung_ct(folder: Path) -> Path:
    return phantoms.write_lung_ct_cohort(folder, 14, matrix=64, slice_mm=8, **QUIET).parent


def _spoil_lung_ct(data: Path, scans: Path) -> tuple[int, dict[str, str]]:
    for series in sorted((data / "scans").iterdir())[:2]:
        shutil.copytree(series, scans / series.name)
    broken = scans / "truncated"
    shutil.copytree(series, broken)
    first = min(broken.iterdir())
    first.write_bytes(first.read_bytes()[:-100])
    (scans / "empty.nii.gz").touch()
    (scans / "no_dicom").mkdir()
    (scans / "no_dicom" / "notes.doc").write_bytes(b"\xd0\xcf\x11\xe0\0 not a scan")
    damaged = {"slope": "RescaleSlope", "place": "ImagePositionPatient", "kind": "Modality"}
    for name, tag in damaged.items():
        shutil.copytree(series, scans / name)
        put(min((scans / name).iterdir()), tag, f"1.0{MARKER}".encode())
    reasons = {
        **{name: f"{tag}: wanted" for name, tag in damaged.items()},
        "kind": "got another Modality",
        "truncated": "truncated",
        "empty.nii.gz": "unreadable NIfTI",
        "no_dicom": "notes.doc: not DICOM",
    }
    return 2, reasons


def _spoil_images(data: Path, images: Path) -> tuple[int, dict[str, str]]:
    good = sorted(p for p in data.rglob("*") if p.suffix in (".png", ".jpeg", ".dcm"))
    for file in good[:3]:
        shutil.copy(file, images / file.name)
    cut = next(p for p in good if p.suffix != ".dcm")
    (images / f"cut{cut.suffix}").write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (images / "empty.png").touch()
    (images / "text.jpeg").write_text("no picture")
    reasons = {f"cut{cut.suffix}": "truncated", "empty.png": "empty", "text.jpeg": "not PNG, JPEG"}
    for file in [p for p in good if p.suffix == ".dcm"][:1]:
        put(Path(shutil.copy(file, images / "slope.dcm")), "RescaleSlope", f"1.0{MARKER}".encode())
        reasons["slope.dcm"] = "RescaleSlope: wanted a number"
    return 3, reasons


def _medmnist(folder: Path, flag: str = "pathmnist") -> Path:
    rng, info = np.random.default_rng(0), medmnist_info(flag)
    shape = (28,) * info.spatial_dims + (3,) * (info.channels == 3)
    arrays = {}
    for split, num in (("train", 36), ("val", 22), ("test", 22)):
        arrays[f"{split}_labels"] = labels = (np.arange(num) % len(info.classes))[:, None].astype(np.uint8)
        images = rng.integers(0, 100, (num, *shape)) + 13 * labels.reshape(num, *[1] * len(shape))
        arrays[f"{split}_images"] = images.astype(np.uint8)
    folder.mkdir()
    np.savez(folder / f"{flag}.npz", **arrays)
    return folder


def _findings(folder: Path) -> Path:
    return phantoms.write_chest_xray_cohort(folder, 40, multilabel=True, size=64, **QUIET).parent


def _slides(folder: Path) -> Path:
    """Slides, and the tile network's weights where `WEIGHTS` is."""
    if not WEIGHTS.exists():
        demo = bundle_of("histology_slide_classification").parser("train", "demo")
        torch.save(demo.get_parsed_content("tile_network").state_dict(), WEIGHTS)
    return phantoms.write_slides(folder, 12, size_mm=(1.2, 0.9), tumour_fraction=(0.1, 0.2), **QUIET).parent


def _spoil_slides(data: Path, slides: Path) -> tuple[int, dict[str, str]]:
    good = sorted((data / "slides").iterdir())
    for file in good[:2]:
        shutil.copy(file, slides / file.name)
    (slides / "cut.tif").write_bytes(good[2].read_bytes()[:5000])
    (slides / "empty.svs").touch()
    (slides / "text.tif").write_text("no slide")
    return 2, {"cut.tif": "", "empty.svs": "empty", "text.tif": ""}


CASES = {
    "lung_ct_classification": Case(
        _lung_ct,
        {"size": [32, 32, 32], "batch_size": 4},
        {"train": 33_161_026, "resnet34": 63_470_658, "resnet50": 46_159_170, "densenet121": 11_244_674},
        _spoil_lung_ct,
        unlike=("patches",),
    ),
    "chest_xray_classification": Case(
        lambda folder: phantoms.write_chest_xray_cohort(folder, 16, size=64, **QUIET).parent,
        {"size": [32, 32], "batch_size": 4},
        {"train": 6_949_634, "resnet50": 23_505_858, "head": 7_474_434, "demo": 2_796_258},
        _spoil_images,
        {"multilabel": _findings},
        unlike=("multilabel",),
    ),
    "colorectal_histology_classification": Case(
        lambda folder: phantoms.write_histology_tiles(folder, 6, size=64, num_slides=6, **QUIET),
        {"size": [32, 32], "batch_size": 9},
        {"train": 23_526_473},
        _spoil_images,
    ),
    "fundus_classification": Case(
        lambda folder: phantoms.write_fundus_cohort(folder, 16, size=96, **QUIET),
        {"size": [32, 32], "batch_size": 4},
        {"train": 23_510_081},
        _spoil_images,
    ),
    "medmnist_classification": Case(
        _medmnist,
        {"batch_size": 9},
        {"train": 11_173_449},
        None,
        {"volume": lambda folder: _medmnist(folder, "organmnist3d")},
        unlike=("volume",),
    ),
    "chest_xray_detection": Case(
        lambda folder: phantoms.write_chest_xray_cohort(folder, 16, size=64, **QUIET).parent,
        {"size": [64, 64], "batch_size": 4},
        {"train": 25_829_110, "faster_rcnn": 26_671_190, "grid": 24_887_879, "demo": 1_346_666},
        _spoil_images,
    ),
    "lung_nodule_ct_detection": Case(
        _lung_ct,
        {"spacing_mm": [6, 6, 6], "patch": [32, 32, 32], "batch_size": 2},
        {"train": 7_432_270, "faster_rcnn": 11_596_374, "grid": 4_755_016, "demo": 533_397},
        _spoil_lung_ct,
    ),
    "histology_slide_classification": Case(
        _slides,
        {"batch_size": 4, "backbone_weights": str(WEIGHTS)},
        {"train": 1_313_026, "demo": 49_730},
        _spoil_slides,
        unlike=("train", "demo", "end_to_end", "features", "monai_mil", "mc_dropout", "multi_gpu"),
    ),
}


class Bundle(NamedTuple):
    """A bundle, its files and its case."""

    name: str
    root: Path
    case: Case

    def config(self, *names: str) -> list[str]:
        return [str(self.root / "configs" / f"{name}.yaml") for name in names]

    @property
    def detects(self) -> bool:
        """Whether its results are boxes."""
        return self.name.endswith("_detection")

    @property
    def overlays(self) -> list[str]:
        return sorted({file.stem for file in (self.root / "configs").glob("*.yaml")} - ENTRY_POINTS)

    @property
    def metadata(self) -> dict[str, Any]:
        return json.loads((self.root / "configs" / "metadata.json").read_text())

    def parser(self, *names: str, **override: Any) -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(self.config(*names))
        if "backbone::needs_weights" in parser:
            parser["backbone::needs_weights"] = False
        parser.update(override)
        return parser


Start = Callable[..., ConfigWorkflow]


class Demo(NamedTuple):
    """A run of the demo's network on tiny data: one epoch by the real command line, from the bundle's folder."""

    data: Path
    run: Path
    trained: dict[str, bytes]
    """What the training left, by path below ``run``."""


def options(bundle: Bundle, dataset_dir: Path, output_dir: Path) -> list[str]:
    small = [part for name, value in bundle.case.small.items() for part in (f"--{name}", str(value))]
    return ["--dataset_dir", str(dataset_dir), "--output_dir", str(output_dir), *small]


def run_command(cwd: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle ARGUMENTS``; neither its output nor its folder may name a patient (`mark_folder`)."""
    result = run_module("monai.bundle", *arguments, cwd=cwd)
    assert find_markers((result.stdout + result.stderr).encode(), "output") == []
    if "--output_dir" in arguments and (folder := Path(arguments[arguments.index("--output_dir") + 1])).exists():
        assert find_in_folder(folder) == []
    assert result.returncode == 0 or not check, result.stdout[-2000:] + result.stderr[-4000:]
    return result


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def check_metrics(folder: Path) -> dict[str, Any]:
    """``metrics.json`` of an evaluation, whose metrics are those recomputed from ``predictions.csv``."""
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = [row for row in read_rows(folder / "predictions.csv") if not row["skipped"]]
    prob = np.array([[float(row[f"prob_{name}"]) for name in metrics["classes"]] for row in rows])
    label = np.array([row["label"].split("|") for row in rows]).astype(int)
    truth = label if label.shape[1] > 1 else label[:, 0]
    wanted = classification_metrics(prob, truth, threshold=metrics["threshold"])
    wanted.pop("kappa_quadratic", None)  # the classes have no order
    assert metrics["metrics"] == {name: None if np.isnan(v) else pytest.approx(v) for name, v in wanted.items()}
    assert metrics["num_images"] == len(rows)
    assert metrics["shortcuts"]
    return metrics


def check_detection(folder: Path, cohort: Cohort) -> dict[str, Any]:
    """``metrics.json`` of a detector's evaluation, whose metrics are those of the boxes in ``predictions.csv``."""
    metrics = json.loads((folder / "metrics.json").read_text())
    boxes: dict[str, list[list[float]]] = {item["name"]: [] for item in cohort.test}
    columns = {name: [] for name in boxes}
    for row in read_rows(folder / "predictions.csv"):
        if not row["score"]:
            continue
        if "space" in row:
            (x, y, z), (x2, y2, z2) = ([float(row[f"{a}_{end}_mm"]) for a in "xyz"] for end in ("min", "max"))
            box = [-x2, -y2, z, -x, -y, z2]
        else:
            box = [float(row[f"{a}_{end}"]) for end in ("min", "max") for a in "yx"]
        boxes[row["image"]].append(box)
        columns[row["image"]].append((float(row["score"]), cohort.classes.index(row["class"])))
    found = [Detections(boxes[n], [s for s, _ in columns[n]], [k for _, k in columns[n]]) for n in boxes]
    truth = [Lesions(item["boxes"], item["box_labels"], item["box_ignore"]) for item in cohort.test]
    patients = [item["patient"] for item in cohort.test]
    options = {"num_classes": len(cohort.classes), "num_resamples": 0}
    every = detection_metrics(found, truth, patients, **options)["metrics"]
    wanted = {name: value for name, value in every.items() if not name.startswith("ap_")}  # of COCO's sizes
    assert {name: metrics["metrics"][name] for name in wanted} == {
        name: None if value is None else pytest.approx(value, abs=1e-4) for name, value in wanted.items()
    }
    assert metrics["num_images"] == len(cohort.test)
    assert metrics["baseline"]
    return metrics


def bundle_of(name: str) -> Bundle:
    return Bundle(name, declared_path("bundles") / name, CASES[name])


@functools.cache
def demo_of(name: str) -> Demo:
    """Made once per process; tests of one bundle run in one."""
    bundle, folder = bundle_of(name), Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data, run = bundle.case.make(folder / "data"), folder / "run"
    mark_folder(data)
    configs = "['configs/train.yaml','configs/demo.yaml']"
    same = ("--max_epochs", "1", "--precision", "fp32")  # "auto" depends on a measurement
    run_command(bundle.root, "run", "--config_file", configs, *same, *options(bundle, data, run))
    files = [file for file in run.rglob("*") if file.is_file()]
    return Demo(data, run, {file.relative_to(run).as_posix(): file.read_bytes() for file in files})


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in list_declared("bundles")],
)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return bundle_of(request.param)


@pytest.fixture(scope="session")
def schema() -> dict[str, Any]:
    """MONAI's schema of metadata, in short."""
    return SCHEMA


@pytest.fixture(scope="module")
def demo(bundle: Bundle) -> Demo:
    return demo_of(bundle.name)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a bundle in this process, initialised, at a small size."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def start(
        bundle: Bundle, *names: str, run_id: str = "run", workflow_type: str = "train", **override: Any
    ) -> ConfigWorkflow:
        settings = {"bundle_root": str(bundle.root), "output_dir": str(tmp_path), **bundle.case.small}
        if "num_workers" in bundle.parser(*names):
            settings["num_workers"] = 0
        flow = ConfigWorkflow(
            bundle.config(*names),
            logging_file=False,
            run_id=run_id,
            workflow_type=workflow_type,
            **{**settings, **override},
        )
        flow.initialize()
        return flow

    yield start
    set_determinism(None)


@pytest.fixture
def workflow(bundle: Bundle, start: Start) -> Start:
    """`start` of the bundle at hand."""
    return functools.partial(start, bundle)
