"""Where the network looked on each slide, drawn at the end of an evaluation."""

from __future__ import annotations

import csv
import logging
import math
import re
import shutil
from collections.abc import Sequence
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from scipy.stats import entropy, rankdata

from monai_pipelines.data.slide_table import feature_file
from monai_pipelines.errors import ScanError
from monai_pipelines.explain.attention import Scale, attention_figure, tiles_figure, write_geojson
from monai_pipelines.metrics import annotated_fraction, bootstrap_intervals, read_outlines, tile_auc
from monai_pipelines.slides import close_slides, open_slide

logger = logging.getLogger(__name__)

NUM_PICTURES = 8  # in the report
MIN_PATIENTS = 5  # for an interval by bootstrap
COLUMNS = ("name", "attention", "num_tiles", "relative_entropy", "tile_auc")


class _Seen(NamedTuple):
    """What the network said of a slide."""

    name: str
    attention: NDArray[np.float32]  # (K, N)
    label: int | None
    prob: list[float]

    @property
    def kind(self) -> int:
        """Its class; the predicted one where it is not known, or not one."""
        return int(np.argmax(self.prob)) if self.label is None else self.label


class _Slide(NamedTuple):
    """Where the tiles of a slide are, and what is annotated on it."""

    thumbnail: NDArray[np.uint8]
    downsample: float
    coords: NDArray[np.int64]
    side: int  # of a tile, level-0 pixels
    mpp: float | None  # of level 0
    tile_px: int | None
    tile_mpp: float | None
    outlines: list[NDArray[np.float64]]
    fraction: NDArray[np.float64] | None

    @property
    def place(self) -> tuple[NDArray[np.uint8], float, NDArray[np.int64], int]:
        return self.thumbnail, self.downsample, self.coords, self.side

    @classmethod
    def of(cls, item: dict[str, Any]) -> _Slide:
        """From an item of the dataset; without a thumbnail's scale a white one is drawn on."""
        coords, side = item["coords"], item["level0_px"]
        image, downsample = np.asarray(item["image"]).transpose(1, 2, 0), item.get("downsample")
        if downsample is None:
            downsample = side / 16
            width, height = np.ceil((coords.max(axis=0) + side) / downsample).astype(int)
            image = np.full((height, width, 3), 255, dtype=np.uint8)
        outlines, fraction = [], None
        if item.get("annotation"):
            try:
                polygons = read_outlines(item["annotation"])
                outlines = [ring for rings in polygons for ring in rings]
                fraction = annotated_fraction(coords, side, polygons)
            except (ScanError, OSError) as error:
                logger.warning("%s: its annotation is left out: %s", item["name"], error)
        mpp, tile_px, tile_mpp = (item.get(key) for key in ("slide_mpp", "tile_px", "mpp"))
        return cls(image, downsample, coords, side, mpp, tile_px, tile_mpp, outlines, fraction)


class _Drawn(NamedTuple):
    """A slide's heatmap, of its class."""

    file: Path
    seen: _Seen
    patient: str
    relative_entropy: float | None
    tile_auc: float | None


class ExplainSlides:
    """Draw the attention of every slide of an evaluation, and say how well it finds what is annotated.

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
        network: with ``attention_weights`` (B, K, N) of its last forward pass, as
            `monai_pipelines.networks.AttentionMIL` has them.
        dataset: what is evaluated, with ``data`` and items that have ``coords`` (N, 2), ``level0_px``, ``tile_px``,
            ``mpp`` (of the tiles), ``slide_mpp``, ``image`` (thumbnail, (3, h, w) uint8), ``downsample`` and maybe
            ``annotation`` (GeoJSON file), such as `monai_pipelines.features.FeatureBags`.
        classes: class names by index.
        num_slides: how many of the first slides are drawn; None: all.
        top_k: tiles on top and at the bottom of the sheet.
        scale: of the colours, see `monai_pipelines.explain.attention.attention_figure`.

    Attributes:
        results: ``num_slides``, ``relative_entropy`` (mean), and where slides have annotated tiles and others
            ``tile_auc`` (mean over these slides, of several branches that of the slide's class), ``num_annotated`` and
            ``tile_auc_interval`` (95%, by bootstrap over their patients; None for fewer than 5); empty before the
            end, or without attention.

    Raises:
        ValueError: num_slides or top_k below 1; later, batches in another order than the dataset.
    """

    def __init__(
        self,
        output_dir: str | PathLike[str],
        network: torch.nn.Module,
        dataset: Any,
        classes: Sequence[str],
        num_slides: int | None = None,
        top_k: int = 8,
        scale: Scale = "mean",
    ) -> None:
        if top_k < 1 or (num_slides is not None and num_slides < 1):
            raise ValueError(f"ExplainSlides: num_slides and top_k must be 1 or more, got {num_slides} and {top_k}")
        self.output_dir, self.network, self.dataset = Path(output_dir), network, dataset
        self.classes, self.num_slides, self.top_k, self.scale = list(classes), num_slides, top_k, scale
        self.results: dict[str, Any] = {}
        self._seen: list[_Seen] = []
        self._drawn: list[_Drawn] = []
        self._unread: list[str] = []

    @property
    def pictures(self) -> list[tuple[str, NDArray[np.uint8]]]:
        """(caption, heatmap (3, h, w) uint8) of up to 8 slides, from the classes in turn, class by class."""
        by_class: dict[int, list[_Drawn]] = {}
        for drawn in self._drawn:
            by_class.setdefault(drawn.seen.kind, []).append(drawn)
        in_turn = [drawn for turn in zip_longest(*by_class.values()) for drawn in turn if drawn is not None]
        chosen = sorted(in_turn[:NUM_PICTURES], key=lambda drawn: drawn.seen.kind)
        return [
            (self._caption(own), np.asarray(Image.open(own.file).convert("RGB")).transpose(2, 0, 1)) for own in chosen
        ]

    def _caption(self, drawn: _Drawn) -> str:
        seen, guess = drawn.seen, int(np.argmax(drawn.seen.prob))
        told = [f"predicted: {self.classes[guess]}, {seen.prob[guess]:.2f}"]
        if seen.label is not None:
            told.insert(0, f"true: {self.classes[seen.label]}")
        if drawn.tile_auc is not None:
            told.append(f"tile AUC {drawn.tile_auc:.2f}")
        return ", ".join(told)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _reset(self, engine: Engine) -> None:
        self.results, self._seen, self._drawn, self._unread = {}, [], [], []
        shutil.rmtree(self.output_dir / "attention", ignore_errors=True)  # of another network
        (self.output_dir / "attention.csv").unlink(missing_ok=True)

    def __call__(self, engine: Any) -> None:
        weights = getattr(self.network, "attention_weights", None)
        if weights is None:
            return
        attention = weights.detach().float().cpu().numpy()
        for item, output, own in zip(engine.state.batch, engine.state.output, attention, strict=True):
            if len(self._seen) == self.num_slides:
                return
            name = self.dataset.data[len(self._seen)]["name"]
            if item["name"] != name:
                raise ValueError(
                    f"ExplainSlides: wanted the slides in the dataset's order, got {item['name']} for {name}"
                )
            real = own[:, torch.as_tensor(item["mask"]).cpu().numpy()] if "mask" in item else own
            label = torch.as_tensor(item["label"]).cpu() if "label" in item else None
            one = int(label) if label is not None and label.numel() == 1 else None
            self._seen.append(_Seen(name, real, one, output["pred"].float().cpu().tolist()))

    def _write(self, engine: Engine) -> None:
        if not self._seen:
            logger.info("no attention to draw: %s has none (pooling by mean or maximum?)", type(self.network).__name__)
            return
        rows = [row for index in track(range(len(self._seen)), "drawing attention") for row in self._explain(index)]
        close_slides()
        with open(self.output_dir / "attention.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self.results = _results(self._drawn)
        if self._unread:
            logger.warning("%d sheets of tiles left out, the first: %s", len(self._unread), self._unread[0])
        logger.info("attention of %d slides: %s", len(self._drawn), self.output_dir / "attention")

    def _explain(self, index: int) -> list[dict[str, Any]]:
        """Write the files of a slide; a row for each of its maps."""
        seen, item = self._seen[index], self.dataset[index]
        if item.get("coords") is None or item.get("level0_px") is None:
            logger.warning("%s: no attention drawn: its features tell no coordinates or no size of tiles", seen.name)
            return []
        slide = _Slide.of(item)
        folder = feature_file(self.output_dir / "attention", seen.name).with_suffix("")
        if folder.exists():  # a.svs and a.tif
            folder = folder.with_name(f"{folder.name}-{index}")
        folder.mkdir(parents=True, exist_ok=True)
        branches = self.classes if len(seen.attention) > 1 else [""]
        rows: list[dict[str, Any]] = []
        values: dict[str, NDArray[Any]] = {}
        for k, (branch, attention) in enumerate(zip(branches, seen.attention, strict=True)):
            title = f"{seen.name}: attention for {branch}" if branch else seen.name
            file = folder / f"heatmap{_suffix(branch)}.png"
            figure = attention_figure(*slide.place, attention, slide.mpp, title, self.scale, slide.outlines)
            figure.savefig(file, dpi=110)
            self._sheet(folder / f"tiles{_suffix(branch)}.png", index, slide, attention, title)
            auc = math.nan if slide.fraction is None else tile_auc(attention, slide.fraction)
            measured = {"relative_entropy": _relative_entropy(attention), "tile_auc": None if math.isnan(auc) else auc}
            rows.append(
                {"name": seen.name, "attention": branch or "all classes", "num_tiles": len(attention)} | measured
            )
            name = f"Attention {branch}".strip()
            told = {name: attention, f"{name} percentile": 100 * (rankdata(attention) - 0.5) / len(attention)}
            of_its_class = not branch or k == seen.kind
            values = told | values if of_its_class else values | told  # the first gives the colours
            if of_its_class:
                self._drawn.append(_Drawn(file, seen, item.get("patient") or seen.name, **measured))
        write_geojson(folder / "attention.geojson", slide.coords, slide.side, values, "Attention", self.scale)
        return rows

    def _sheet(self, file: Path, index: int, slide: _Slide, attention: NDArray[np.float32], title: str) -> None:
        """Tiles with the most and the least attention, from the slide's file."""
        if slide.mpp is None or slide.tile_px is None or slide.tile_mpp is None:
            self._unread.append(f"{file.parent}: its features do not tell the size of its tiles")
            return
        order = np.argsort(-attention, kind="stable")
        num = max(1, min(self.top_k, len(order) // 2))
        chosen = np.concatenate([order[:num], order[::-1][:num]])
        try:
            opened = open_slide(self.dataset.data[index]["image"], mpp=slide.mpp)
            tiles = opened.read_tiles(slide.coords[chosen], opened.tile_size(slide.tile_px, slide.tile_mpp))
        except (ScanError, OSError) as error:
            self._unread.append(str(error))
            return
        captions = [_times(own) for own in attention[chosen] / attention.mean()]
        if slide.fraction is not None:
            shares = slide.fraction[chosen]
            captions = [f"{own}, {share:.0%} annotated" for own, share in zip(captions, shares, strict=True)]
        told = f"{title} (tiles of {slide.side * slide.mpp:.0f} \u00b5m)"
        tiles_figure([*tiles[:num]], [*tiles[num:]], captions[:num], captions[num:], told).savefig(file, dpi=120)


def _results(drawn: Sequence[_Drawn]) -> dict[str, Any]:
    entropies = [own.relative_entropy for own in drawn if own.relative_entropy is not None]
    results: dict[str, Any] = {"num_slides": len(drawn), "relative_entropy": None}
    if entropies:
        results["relative_entropy"] = float(np.mean(entropies))
    scored = [own for own in drawn if own.tile_auc is not None]
    if scored:
        aucs = np.array([own.tile_auc for own in scored])
        patients = [own.patient for own in scored]
        results |= {"num_annotated": len(aucs), "tile_auc": float(aucs.mean()), "tile_auc_interval": None}
        if len(set(patients)) >= MIN_PATIENTS:
            found = bootstrap_intervals(lambda own, _: {"tile_auc": own.mean()}, aucs, np.zeros(len(aucs)), patients)
            results["tile_auc_interval"] = list(found["tile_auc"])
    return results


def _relative_entropy(attention: NDArray[np.float32]) -> float | None:
    """1: even attention, 0: all on one tile; None for a single tile."""
    if len(attention) == 1:
        return None
    return float(entropy(attention.astype(np.float64)) / math.log(len(attention)))


def _times(value: float) -> str:
    return f"{value:.3g}\u00d7" if value >= 1 else f"{value:.2g}\u00d7"


def _suffix(branch: str) -> str:
    """Of a file's name."""
    return re.sub(r"[^\w.-]+", "-", f"_{branch}") if branch else ""
