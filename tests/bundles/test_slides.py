"""What only the bundle of whole slides has: its poolings, MONAI's MILModel, features of other tools."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

from monai_pipelines.declared import declared_path
from monai_pipelines.errors import root_cause
from tests.bundles.conftest import WEIGHTS, check_metrics, demo_of

NAME = "histology_slide_classification"
ROOT = declared_path("bundles") / NAME

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group(NAME)]


@pytest.fixture(scope="module")
def slides() -> Path:
    return demo_of(NAME).data


@pytest.fixture(scope="module")
def features(slides: Path) -> Path:
    """Made once, by the overlay that makes nothing else."""
    folder = slides.parent / "features"
    _workflow(slides, slides.parent / "unused", "demo", "features", features_dir=str(folder)).run()
    assert len(list(folder.rglob("*.h5"))) == 12
    assert not (slides.parent / "unused" / "best.pt").exists()
    return folder


@pytest.fixture(autouse=True)
def _random_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    set_determinism(None)


def _workflow(
    data: Path, output: Path, *names: str, entry: str = "train", run_id: str = "run", **override: Any
) -> ConfigWorkflow:
    files = [str(ROOT / "configs" / f"{name}.yaml") for name in (entry, *names)]
    settings = {"bundle_root": str(ROOT), "dataset_dir": str(data), "output_dir": str(output), "num_workers": 0}
    settings |= {"backbone_weights": str(WEIGHTS), "batch_size": 4, "max_epochs": 1}
    if entry != "train":
        del settings["max_epochs"]
    kind = "train" if entry == "train" else "infer"
    flow = ConfigWorkflow(files, logging_file=False, run_id=run_id, workflow_type=kind, **{**settings, **override})
    flow.initialize()
    return flow


@pytest.mark.parametrize(
    ("options", "maps"),
    [
        ({"pooling": "mean"}, []),
        ({"pooling": "max"}, []),
        ({"pooling": "attention", "attention_entropy": 0.001}, ["heatmap.png"]),
        ({"network_def::branches": 2, "max_tiles": 5}, ["heatmap_normal.png", "heatmap_tumour.png"]),
    ],
    ids=str,
)
def test_poolings(slides: Path, features: Path, tmp_path: Path, options: dict[str, Any], maps: list[str]) -> None:
    for run_id in ("run", "evaluate"):
        _workflow(slides, tmp_path, "demo", run_id=run_id, features_dir=str(features), **options).run()
    check_metrics(tmp_path)
    drawn = {file.name for file in (tmp_path / "attention").rglob("heatmap*.png")}
    assert drawn == set(maps)


def test_attention_is_scored_against_the_annotation(slides: Path, features: Path, tmp_path: Path) -> None:
    for run_id in ("run", "evaluate"):
        _workflow(slides, tmp_path, "demo", run_id=run_id, features_dir=str(features)).run()
    (results,) = json.loads((tmp_path / "metrics.json").read_text())["explanations"]
    assert results["num_slides"] == 4
    with (tmp_path / "attention.csv").open() as file:
        aucs = [float(row["tile_auc"]) for row in csv.DictReader(file) if row["tile_auc"]]
    assert results["num_annotated"] == len(aucs) >= 1
    assert results["tile_auc"] == pytest.approx(np.mean(aucs))
    for folder in (tmp_path / "attention" / "slides").iterdir():
        assert {file.name for file in folder.iterdir()} == {"heatmap.png", "tiles.png", "attention.geojson"}


def test_monais_network(slides: Path, tmp_path: Path) -> None:
    options = {"num_tiles": 3, "batch_size": 2, "tile_px": 48}
    names = ("demo", "end_to_end", "monai_mil")
    for run_id in ("run", "evaluate"):
        _workflow(slides, tmp_path, *names, run_id=run_id, **options).run()
    check_metrics(tmp_path)
    assert not (tmp_path / "attention").exists()
    settings = {"checkpoint": str(tmp_path / "best.pt"), **options}
    inference = tmp_path / "inference"
    _workflow(slides / "slides", inference, *names, entry="inference", **settings).run()
    with (inference / "predictions.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row["prob_tumour"]]) == 12


def test_features_of_another_tool(slides: Path, tmp_path: Path) -> None:
    """As CLAM and TRIDENT write them, the slides gone."""
    data, features = tmp_path / "data", tmp_path / "features"
    data.mkdir()
    with (slides / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (data / "table.csv").open("w") as file:
        file.write("image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows))
    for number, row in enumerate(rows):
        rng = np.random.default_rng(number)
        made = (features / row["image"]).with_suffix(".h5")
        made.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(made, "w") as file:
            file["features"] = rng.normal(row["label"] == "tumour", 1, (9, 24)).astype(np.float32)
            file["coords"] = np.stack(np.meshgrid(np.arange(3), np.arange(3)), -1).reshape(9, 2) * 512
    given = {"_target_": "monai_pipelines.networks.GivenFeatures", "num_features": 24, "name": "another"}
    for run_id in ("run", "evaluate"):
        settings = {"backbone": given, "features_dir": str(features), "max_epochs": 5}
        _workflow(data, tmp_path / "run", "demo", run_id=run_id, **settings).run()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]["roc_auc"] > 0.7
    assert len(list((tmp_path / "run" / "attention").rglob("heatmap.png"))) == 4
    made.unlink()
    with pytest.raises(RuntimeError) as error:
        _workflow(data, tmp_path / "again", "demo", backbone=given, features_dir=str(features)).run()
    assert rows[-1]["image"] in str(root_cause(error.value))
