"""Where the network looked on each slide, drawn at the end of an evaluation."""

from __future__ import annotations

import csv
import logging
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from rich.progress import track
from scipy.stats import entropy, rankdata

from monai_pipelines.data.slide_table import feature_file
from monai_pipelines.errors import ScanError
from monai_pipelines.explain.attention import Scale, attention_figure, heat_colors, tiles_figure
from monai_pipelines.metrics import annotated_fraction, mean_interval, tile_auc
from monai_pipelines.report.pictures import in_turn, png_pixels
from monai_pipelines.report.words import decision_words
from monai_pipelines.runs import Trained
from monai_pipelines.slides import close_slides, open_slide, read_outlines, write_geojson

logger = logging.getLogger(__name__)

NUM_PICTURES = 8  # in the report
COLUMNS = ("name", "attention", "num_tiles", "relative_entropy", "tile_auc")


class _Prediction(NamedTuple):
    """Output of the network for a slide."""

    name: str
    attention: NDArray[np.float32]  # (K, N)
    label: int | None
    prob: list[float]

    @property
    def kind(self) -> int:
        """Its class; the predicted one if unknown or not exactly one."""
        return int(np.argmax(self.prob)) if self.label is None else self.label


class _Drawn(NamedTuple):
    """A slide's heatmap, of its class."""

    file: Path
    prediction: _Prediction
    patient: str
    relative_entropy: float | None
    tile_auc: float | None


class ExplainSlides:
    """Draw the attention of every slide of an evaluation, and measure how well it finds what is annotated.

    Writes ``attention/<name>/`` with ``heatmap.png`` (`monai_pipelines.explain.attention.attention_figure`),
    ``tiles.png`` (the tiles with the most and the least attention, where the slide's file is at hand) and
    ``attention.geojson`` for QuPath, and ``attention.csv``: for each map the number of tiles, the entropy of the
    attention over that of even attention, ``H / ln(N)``, and where ``annotation`` names outlines the ROC AUC of
    attention as a score for tiles that are more than half annotated. A network with a branch for each class gives a
    map for each: ``heatmap_<class>.png``, ``tiles_<class>.png``. Without attention nothing is written.

    Needs decollated output (MONAI's default) whose ``pred`` holds probabilities, and batches in the order of the
    dataset.

    Args:
        output_dir: folder of the run.
        trained: what is evaluated; its network has ``attention_weights`` (B, K, N) of its last forward pass, as
            `monai_pipelines.networks.AttentionMIL` has them.
        dataset: what is evaluated, with ``data`` and items that have ``coords`` (N, 2), ``level0_px``, ``tile_px``,
            ``mpp`` (of the tiles), ``slide_mpp``, ``image`` (thumbnail, (3, h, w) uint8), ``downsample`` and maybe
            ``annotation`` (GeoJSON file), such as `monai_pipelines.features.FeatureBags`.
        num_slides: how many of the first slides are drawn; None: all.
        top_k: tiles on top and at the bottom of the sheet.
        scale: of the colours, see `monai_pipelines.explain.attention.attention_figure`.

    Attributes:
        results: ``num_slides``, ``relative_entropy`` (mean), and where slides have annotated tiles and others
            ``tile_auc`` (mean over these slides, of several branches that of the slide's class), ``num_annotated`` and
            ``tile_auc_interval`` (95%, by `monai_pipelines.metrics.mean_interval` of their patients; None for one);
            empty before the end, or without attention.

    Raises:
        ValueError: num_slides or top_k below 1; later, batches in another order than the dataset.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        trained: Trained,
        dataset: Any,
        num_slides: int | None = None,
        top_k: int = 8,
        scale: Scale = "mean",
    ) -> None:
        if top_k < 1 or (num_slides is not None and num_slides < 1):
            raise ValueError(f"ExplainSlides: num_slides and top_k must be 1 or more, got {num_slides} and {top_k}")
        self.output_dir, self.dataset = Path(output_dir), dataset
        self.trained, self.network, self.classes = trained, trained.model.network, list(trained.model.classes)
        self.num_slides, self.top_k, self.scale = num_slides, top_k, scale
        self.results: dict[str, Any] = {}
        self._predictions: list[_Prediction] = []
        self._drawn: list[_Drawn] = []
        self._unread: list[str] = []

    @property
    def pictures(self) -> list[tuple[str, NDArray[np.uint8]]]:
        """(caption, heatmap (3, h, w) uint8) of up to 8 slides, from the classes in turn, class by class."""
        chosen = in_turn(self._drawn, lambda drawn: drawn.prediction.kind, NUM_PICTURES)
        return [(self._caption(drawn), png_pixels(drawn.file.read_bytes())) for drawn in chosen]

    def _caption(self, drawn: _Drawn) -> str:
        outcome = self._outcome(drawn.prediction)
        return outcome if drawn.tile_auc is None else f"{outcome}, tile AUC {drawn.tile_auc:.2f}"

    def _outcome(self, prediction: _Prediction) -> str:
        """True class, if known, and the decision."""
        model, threshold = self.trained.model, self.trained.decisions.threshold
        words = decision_words(prediction.prob, self.classes, threshold, model.multilabel)
        return words if prediction.label is None else f"true: {self.classes[prediction.label]}, {words}"

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _reset(self, engine: Engine) -> None:
        self.results, self._predictions, self._drawn, self._unread = {}, [], [], []
        shutil.rmtree(self.output_dir / "attention", ignore_errors=True)  # of another network
        (self.output_dir / "attention.csv").unlink(missing_ok=True)

    def __call__(self, engine: Any) -> None:
        weights = getattr(self.network, "attention_weights", None)
        if weights is None:
            return
        attention = weights.detach().float().cpu().numpy()
        for item, output, padded in zip(engine.state.batch, engine.state.output, attention, strict=True):
            if len(self._predictions) == self.num_slides:
                return
            name = self.dataset.data[len(self._predictions)]["name"]
            if item["name"] != name:
                raise ValueError(
                    f"ExplainSlides: wanted the slides in the dataset's order, got {item['name']} for {name}"
                )
            real = padded[:, torch.as_tensor(item["mask"]).cpu().numpy()] if "mask" in item else padded
            label = torch.as_tensor(item["label"]).cpu() if "label" in item else None
            one = int(label) if label is not None and label.numel() == 1 else None
            self._predictions.append(_Prediction(name, real, one, output["pred"].float().cpu().tolist()))

    def _write(self, engine: Engine) -> None:
        if not self._predictions:
            logger.info("%s has no attention to draw (pooling by mean or maximum?)", type(self.network).__name__)
            return
        rows = [
            row for index in track(range(len(self._predictions)), "drawing attention") for row in self._explain(index)
        ]
        close_slides()
        with open(self.output_dir / "attention.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self.results = _results(self._drawn)
        if self._unread:
            logger.warning("sheets of tiles left out: %d, the first: %s", len(self._unread), self._unread[0])
        logger.info("slides with pictures of attention: %d, in %s", len(self._drawn), self.output_dir / "attention")

    def _explain(self, index: int) -> list[dict[str, Any]]:
        """Write the files of a slide; a row for each of its maps."""
        prediction, item = self._predictions[index], {**self.dataset[index], "path": self.dataset.data[index]["image"]}
        if item.get("coords") is None or item.get("level0_px") is None:
            logger.warning("%s: no attention drawn: its features have no coordinates or no tile size", prediction.name)
            return []
        coords, side = item["coords"], item["level0_px"]
        thumbnail, downsample = _thumbnail(item)
        outlines, fraction = _annotation(item)
        folder = Path(str(feature_file(self.output_dir / "attention", prediction.name))).with_suffix("")
        if folder.exists():  # a.svs and a.tif
            folder = folder.with_name(f"{folder.name}-{index}")
        folder.mkdir(parents=True, exist_ok=True)
        branches = self.classes if len(prediction.attention) > 1 else [""]
        rows: list[dict[str, Any]] = []
        values: dict[str, NDArray[Any]] = {}
        for k, (branch, attention) in enumerate(zip(branches, prediction.attention, strict=True)):
            title = f"{prediction.name}: {self._outcome(prediction)}"
            if branch:
                title = f"{title}; attention for {branch}"
            suffix = re.sub(r"[^\w.-]+", "-", f"_{branch}") if branch else ""
            file = folder / f"heatmap{suffix}.png"
            figure = attention_figure(
                thumbnail, downsample, coords, side, attention, item.get("slide_mpp"), title, self.scale, outlines
            )
            figure.savefig(file, dpi=110)
            self._sheet(folder / f"tiles{suffix}.png", item, attention, fraction, title)
            auc = math.nan if fraction is None else tile_auc(attention, fraction)
            measured = {"relative_entropy": _relative_entropy(attention), "tile_auc": None if math.isnan(auc) else auc}
            rows.append(
                {"name": prediction.name, "attention": branch or "all classes", "num_tiles": len(attention)} | measured
            )
            name = f"Attention {branch}".strip()
            columns = {name: attention, f"{name} percentile": 100 * (rankdata(attention) - 0.5) / len(attention)}
            of_its_class = not branch or k == prediction.kind
            values = columns | values if of_its_class else values | columns  # the first gives the colors
            if of_its_class:
                self._drawn.append(_Drawn(file, prediction, item.get("patient") or prediction.name, **measured))
        colors = heat_colors(next(iter(values.values())), self.scale)
        write_geojson(folder / "attention.geojson", coords, side, values, "Attention", colors)
        return rows

    def _sheet(
        self, file: Path, item: Mapping[str, Any], attention: NDArray[Any], fraction: NDArray[Any] | None, title: str
    ) -> None:
        """Tiles with the most and the least attention, from the slide's file."""
        slide_mpp, tile_px, tile_mpp = (item.get(key) for key in ("slide_mpp", "tile_px", "mpp"))
        if slide_mpp is None or tile_px is None or tile_mpp is None:
            self._unread.append(f"{file.parent}: its features do not say how large its tiles are")
            return
        order = np.argsort(-attention, kind="stable")
        num = max(1, min(self.top_k, len(order) // 2))
        chosen = np.concatenate([order[:num], order[::-1][:num]])
        try:
            slide = open_slide(item["path"], mpp=slide_mpp)
            tiles = slide.read_tiles(item["coords"][chosen], slide.tile_size(tile_px, tile_mpp))
        except (ScanError, OSError) as error:
            self._unread.append(str(error))
            return
        times = attention[chosen] / attention.mean()
        captions = [f"{value:.{3 if value >= 1 else 2}g}\u00d7" for value in times]
        if fraction is not None:
            shares = fraction[chosen]
            captions = [f"{caption}, {share:.0%} annotated" for caption, share in zip(captions, shares, strict=True)]
        heading = f"{title} (tiles of {item['level0_px'] * slide_mpp:.0f} \u00b5m)"
        tiles_figure([*tiles[:num]], [*tiles[num:]], captions[:num], captions[num:], heading).savefig(file, dpi=120)


def _thumbnail(item: Mapping[str, Any]) -> tuple[NDArray[np.uint8], float]:
    """The thumbnail (h, w, 3) and its downsample; a white one where the item has none of known scale."""
    if item.get("downsample") is not None:
        return np.asarray(item["image"]).transpose(1, 2, 0), item["downsample"]
    downsample = item["level0_px"] / 16
    width, height = np.ceil((item["coords"].max(axis=0) + item["level0_px"]) / downsample).astype(int)
    return np.full((height, width, 3), 255, dtype=np.uint8), downsample


def _annotation(item: Mapping[str, Any]) -> tuple[list[NDArray[np.float64]], NDArray[np.float64] | None]:
    """Outlines, and the annotated fraction of each tile, None without a readable annotation."""
    if item.get("annotation"):
        try:
            polygons = read_outlines(item["annotation"])
            fraction = annotated_fraction(item["coords"], item["level0_px"], polygons)
            return [ring for rings in polygons for ring in rings], fraction
        except (ScanError, OSError) as error:
            logger.warning("%s: its annotation is left out: %s", item["name"], error)
    return [], None


def _results(drawn: Sequence[_Drawn]) -> dict[str, Any]:
    entropies = [slide.relative_entropy for slide in drawn if slide.relative_entropy is not None]
    mean_entropy = float(np.mean(entropies)) if entropies else None
    results: dict[str, Any] = {"num_slides": len(drawn), "relative_entropy": mean_entropy}
    scored = [slide for slide in drawn if slide.tile_auc is not None]
    if scored:
        aucs = np.array([slide.tile_auc for slide in scored])
        interval = mean_interval(aucs, [slide.patient for slide in scored])
        results |= {"num_annotated": len(aucs), "tile_auc": float(aucs.mean())}
        results["tile_auc_interval"] = interval and list(interval)
    return results


def _relative_entropy(attention: NDArray[np.float32]) -> float | None:
    """1: even attention, 0: all on one tile; None for a single tile."""
    if len(attention) == 1:
        return None
    return float(entropy(attention.astype(np.float64)) / math.log(len(attention)))
