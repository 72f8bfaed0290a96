"""Attention of an evaluation: files of each slide, figures of merit, pictures for the report."""

from __future__ import annotations

import csv
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from monai_pipelines.explain import ExplainSlides, slides
from monai_pipelines.features import PrepareBags, pad_bags
from monai_pipelines.metrics import mean_interval
from monai_pipelines.phantoms import write_pyramid
from monai_pipelines.probabilities import Probabilitiesd
from tests.explain.conftest import trained_with

CLASSES = ["normal", "tumour"]
SIDE = 128  # level-0 pixels of a tile of 64 pixels
MPP = 0.25


class _Network(nn.Module):
    """Attends to tiles by their first features, one for each branch, and decides by the third one's mean."""

    def __init__(self, branches: int = 1) -> None:
        super().__init__()
        self.branches = branches
        self.attention_weights: Tensor | None = None

    def forward(self, bag: Tensor, mask: Tensor) -> Tensor:
        scores = bag[..., : self.branches].transpose(1, 2).masked_fill(~mask[:, None], -torch.inf)
        self.attention_weights = scores.softmax(2)
        evidence = (bag[..., 2] * mask).sum(1) / mask.sum(1)
        return torch.stack([-evidence, evidence], 1)


class _Slides:
    """Bags of features on a grid of 6 x 5 tiles, the last ones left out; the square of the middle is annotated."""

    def __init__(self, labels: list[int], folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.data: list[dict[str, Any]] = []
        self.items: list[dict[str, Any]] = []
        outline = folder / "outline.geojson"
        square = [[128, 128], [512, 128], [512, 448], [128, 448]]
        outline.write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
        for k, label in enumerate(labels):
            item = {"image": str(folder / f"{k}.tif"), "name": f"a/{k}.tif", "label": label, "patient": f"p{k // 2}",
                    "annotation": str(outline) if label else ""}  # fmt: skip
            grid = np.stack(np.meshgrid(np.arange(6), np.arange(5)), axis=-1).reshape(-1, 2)[: 30 - k] * SIDE
            bag = torch.from_numpy(rng.normal(size=(len(grid), 3)).astype(np.float32))
            bag[:, 2] = label - 0.5
            places = {"coords": grid, "level0_px": SIDE, "tile_px": 64, "mpp": 2 * MPP, "slide_mpp": MPP}
            image = torch.full((3, 40, 48), 200, dtype=torch.uint8)
            self.data.append(item)
            self.items.append({**item, **places, "bag": bag, "image": image, "downsample": 16.0})

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.items[index]}

    def attention(self, index: int, branch: int = 0) -> np.ndarray:
        values = np.exp(self.items[index]["bag"][:, branch].numpy().astype(np.float64))
        return values / values.sum()

    def annotated(self, index: int) -> np.ndarray:
        x, y = self.items[index]["coords"].T
        return (x >= 128) & (x < 512) & (y >= 128) & (y < 384)  # the lowest row of these is half in


@pytest.fixture
def dataset(tmp_path: Path) -> _Slides:
    return _Slides([0, 1, 1], tmp_path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Arguments of the figures, which are not drawn."""
    calls = SimpleNamespace(heat=[], sheet=[])

    def blank(kept: list[Any]) -> Any:
        def draw(*args: Any) -> Figure:
            kept.append(args)
            return Figure(figsize=(0.2, 0.1))

        return draw

    monkeypatch.setattr(slides, "attention_figure", blank(calls.heat))
    monkeypatch.setattr(slides, "tiles_figure", blank(calls.sheet))
    return calls


def _evaluate(
    dataset: Any,
    folder: Path,
    network: nn.Module | None = None,
    order: Any = None,
    runs: int = 2,
    threshold: float | None = None,
    **options: Any,
) -> Any:
    network = network or _Network()
    trained = trained_with(network, PrepareBags(), CLASSES, threshold)
    explain = ExplainSlides(folder, trained, dataset, **options)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=2, sampler=order, collate_fn=pad_bags),
        network=network,
        prepare_batch=PrepareBags(),
        postprocessing=Probabilitiesd("pred"),
        val_handlers=[explain],
    )
    folder.mkdir(exist_ok=True)
    for _ in range(runs):  # the second starts anew
        evaluator.run()
    return explain


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "attention.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _relative_entropy(p: np.ndarray) -> float:
    return -sum(own * math.log(own) for own in p) / math.log(len(p))


def test_everything_of_real_slides(dataset: _Slides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, table and GeoJSON; the tiles are those of the slide's file."""
    ramp = np.mgrid[:700, :800]
    pixels = np.stack([ramp[0] // 3, ramp[1] // 4, ramp[1] * 0 + 90], axis=-1).astype(np.uint8)
    for item in dataset.data:
        write_pyramid(item["image"], [pixels, pixels[::2, ::2]], MPP, quality=98, subsampling=(1, 1))
    sheets: list[Any] = []
    whole = slides.tiles_figure
    monkeypatch.setattr(slides, "tiles_figure", lambda *args: sheets.append(args) or whole(*args))
    explain = _evaluate(dataset, tmp_path / "run", runs=1, top_k=4)
    for k in range(3):
        folder = tmp_path / "run" / "attention" / "a" / str(k)
        assert {file.name for file in folder.iterdir()} == {"heatmap.png", "tiles.png", "attention.geojson"}
        features = json.loads((folder / "attention.geojson").read_text())["features"]
        attention = dataset.attention(k)
        corners = [feature["geometry"]["coordinates"][0][0] for feature in features]
        assert corners == dataset.items[k]["coords"].tolist()
        measured = [feature["properties"]["measurements"] for feature in features]
        assert [own["Attention"] for own in measured] == pytest.approx(attention, rel=1e-4)
        assert np.argmax([own["Attention percentile"] for own in measured]) == attention.argmax()

        top, bottom, captions, least, title = sheets[k]
        order = np.argsort(attention)
        for tiles, chosen in ((top, order[::-1][:4]), (bottom, order[:4])):
            for tile, (x, y) in zip(tiles, dataset.items[k]["coords"][chosen], strict=True):
                wanted = pixels[y : y + SIDE, x : x + SIDE].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
                assert np.abs(tile - wanted).max() <= 4
        assert captions[0].startswith(f"{attention.max() * len(attention):.3g}\u00d7")
        assert ("annotated" in captions[0]) == (k > 0)
        assert title == f"a/{k}.tif: {explain.pictures[k][0].partition(', tile AUC')[0]} (tiles of 32 \u00b5m)"
    assert len(least) == 4
    caption, picture = explain.pictures[1]
    assert caption.startswith("true: tumour, predicted tumour, 0.73, tile AUC 0.")
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 3
    assert picture.shape[2] > 900


def test_table_and_results(dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace) -> None:
    explain = _evaluate(dataset, tmp_path)
    rows = _rows(tmp_path)
    attention = [dataset.attention(k) for k in range(3)]
    assert [row["name"] for row in rows] == ["a/0.tif", "a/1.tif", "a/2.tif"]
    assert {row["attention"] for row in rows} == {"all classes"}
    assert [row["num_tiles"] for row in rows] == ["30", "29", "28"]
    entropies = [_relative_entropy(own) for own in attention]
    assert [float(row["relative_entropy"]) for row in rows] == pytest.approx(entropies, rel=1e-4)
    aucs = [roc_auc_score(dataset.annotated(k), attention[k]) for k in (1, 2)]
    assert [row["tile_auc"] for row in rows] == ["", str(aucs[0]), str(aucs[1])]
    assert {key: own for key, own in explain.results.items() if key != "tile_auc_interval"} == pytest.approx(
        {"num_slides": 3, "relative_entropy": np.mean(entropies), "num_annotated": 2, "tile_auc": np.mean(aucs)},
        rel=1e-4,
    )
    assert explain.results["tile_auc_interval"] == pytest.approx(mean_interval(aucs, ["p0", "p1"]))
    json.dumps(explain.results)


def test_maps_of_a_former_network_are_removed(dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace) -> None:
    (tmp_path / "attention" / "gone").mkdir(parents=True)
    _evaluate(dataset, tmp_path)
    assert [folder.name for folder in (tmp_path / "attention").iterdir()] == ["a"]


def test_figures_get_the_place_of_the_tiles(dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace) -> None:
    _evaluate(dataset, tmp_path, scale="rank")
    for k, (image, downsample, coords, side, attention, mpp, title, scale, outlines) in enumerate(drawn.heat[3:]):
        assert (image.shape, downsample, side, mpp, scale) == ((40, 48, 3), 16, SIDE, MPP, "rank")
        assert title.startswith(f"a/{k}.tif: true: ")
        assert coords is dataset.items[k]["coords"]
        assert attention == pytest.approx(dataset.attention(k), rel=1e-4)  # nothing of the padding
        assert len(outlines) == (k > 0)


def test_a_map_for_each_class(dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace) -> None:
    explain = _evaluate(dataset, tmp_path, _Network(branches=2))
    folder = tmp_path / "attention" / "a" / "1"
    assert {file.name for file in folder.iterdir()} == {"heatmap_normal.png", "heatmap_tumour.png", "attention.geojson"}
    measured = json.loads((folder / "attention.geojson").read_text())["features"][3]["properties"]["measurements"]
    assert next(iter(measured)) == "Attention tumour"  # gives the colours: that of the slide's class
    wanted = [dataset.attention(1, branch)[3] for branch in (0, 1)]
    assert [measured["Attention normal"], measured["Attention tumour"]] == pytest.approx(wanted, rel=1e-4)
    rows = _rows(tmp_path)
    assert [(row["name"], row["attention"]) for row in rows[:3]] == (
        [("a/0.tif", "normal"), ("a/0.tif", "tumour"), ("a/1.tif", "normal")]
    )
    aucs = [roc_auc_score(dataset.annotated(k), dataset.attention(k, 1)) for k in (1, 2)]
    assert explain.results["tile_auc"] == pytest.approx(np.mean(aucs))
    assert [drawn.file.name for drawn in explain._drawn] == ["heatmap_normal.png"] + ["heatmap_tumour.png"] * 2


def test_without_labels_the_predicted_class_counts(dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace) -> None:
    for item in (*dataset.items, *dataset.data):
        del item["label"], item["annotation"]
    explain = _evaluate(dataset, tmp_path, _Network(branches=2))
    assert [own[0] for own in explain.pictures] == ["predicted normal, 0.73", *["predicted tumour, 0.73"] * 2]
    assert set(explain.results) == {"num_slides", "relative_entropy"}


def test_slides_that_are_gone_have_no_sheet(
    dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    _evaluate(dataset, tmp_path)
    assert not drawn.sheet
    assert len(drawn.heat) == 6
    assert "sheets of tiles left out: 3" in caplog.text
    assert str(tmp_path / "0.tif") in caplog.text


def test_a_bad_annotation_is_told(
    dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.geojson").write_text("{")
    dataset.items[1]["annotation"] = str(tmp_path / "bad.geojson")
    explain = _evaluate(dataset, tmp_path)
    assert "a/1.tif: its annotation is left out" in caplog.text
    assert explain.results["num_annotated"] == 1


def test_features_of_other_tools(
    dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the thumbnail's scale a white one as large as the tiles; without coordinates nothing."""
    dataset.items[0]["coords"] = None
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    dataset.items[1] |= {"downsample": None, "image": white, "slide_mpp": None, "mpp": None, "tile_px": None}
    explain = _evaluate(dataset, tmp_path)
    assert "a/0.tif: no attention drawn" in caplog.text
    assert [row["name"] for row in _rows(tmp_path)] == ["a/1.tif", "a/2.tif"]
    image, downsample, *_, mpp, title, _, _ = drawn.heat[0]
    assert (image.shape, image.min(), downsample, mpp) == ((80, 96, 3), 255, SIDE / 16, None)
    assert title == "a/1.tif: true: tumour, predicted tumour, 0.73"
    assert explain.results["num_slides"] == 2


def test_a_single_tile(dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace) -> None:
    dataset.items[0] |= {"bag": dataset.items[0]["bag"][:1], "coords": dataset.items[0]["coords"][:1]}
    _evaluate(dataset, tmp_path)
    assert _rows(tmp_path)[0] == {"name": "a/0.tif", "attention": "all classes", "num_tiles": "1",
                                  "relative_entropy": "", "tile_auc": ""}  # fmt: skip


def test_first_slides_alone(dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace) -> None:
    _evaluate(dataset, tmp_path, num_slides=1)
    assert [row["name"] for row in _rows(tmp_path)] == ["a/0.tif"]


def test_captions_use_the_threshold(dataset: _Slides, tmp_path: Path, drawn: SimpleNamespace) -> None:
    captions = [caption for caption, _ in _evaluate(dataset, tmp_path, threshold=0.8).pictures]
    assert all("below the threshold 0.80: normal" in caption for caption in captions)


def test_pictures_are_of_the_classes_in_turn(tmp_path: Path, drawn: SimpleNamespace) -> None:
    explain = _evaluate(_Slides([0] * 9 + [1] * 3, tmp_path), tmp_path)
    assert [caption.split(",")[0] for caption, _ in explain.pictures] == ["true: normal"] * 5 + ["true: tumour"] * 3


class _Mean(nn.Module):
    def forward(self, bag: Tensor, mask: Tensor) -> Tensor:
        return bag[:, 0, :2]


def test_without_attention_nothing_is_written(
    dataset: _Slides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    explain = _evaluate(dataset, tmp_path / "run", _Mean())
    assert (explain.results, explain.pictures, [*(tmp_path / "run").iterdir()]) == ({}, [], [])
    assert caplog.text.count("_Mean has no attention to draw") == 2  # once a run


def test_another_order_is_refused(dataset: _Slides, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wanted the slides in the dataset's order, got a/2.tif for a/0.tif"):
        _evaluate(dataset, tmp_path, order=[2, 0, 1])


@pytest.mark.parametrize("options", [{"num_slides": 0}, {"top_k": 0}])
def test_arguments_out_of_range(dataset: _Slides, tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="num_slides and top_k must be 1 or more"):
        ExplainSlides(tmp_path, trained_with(_Network(), PrepareBags(), CLASSES), dataset, **options)
