"""Boxes of every image as files for viewers."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from rich.progress import track

from monai_pipelines.report.detection import thresholds_of
from monai_pipelines.report.found_boxes import file_names, write_geojson, write_label_map


class WriteViewerFiles:
    """Write what a detector finds in every image for viewers: GeoJSON of an image, a label map on the grid of a scan.

    They are ``geojson/<image>.geojson`` (`write_geojson`) or ``label_maps/<scan>.nii.gz`` (`write_label_map`).

    Args:
        output_dir: folder of the run.
        trained: the detector.
        dataset: what is predicted.
        enabled: whether to write anything.
    """

    def __init__(self, output_dir: str | PathLike[str], trained: Any, dataset: Any, enabled: bool = True) -> None:
        self.output_dir, self.trained, self.dataset, self.enabled = Path(output_dir), trained, dataset, enabled

    def attach(self, engine: Engine) -> None:
        if self.enabled:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        model, rows = self.trained.model, engine.predictions.rows
        classes = list(model.classes)
        if model.network.spatial_dims == 2:
            write_geojson(self.output_dir / "geojson", rows, classes)
            return
        folder = self.output_dir / "label_maps"
        folder.mkdir(parents=True, exist_ok=True)
        threshold = thresholds_of(self.trained.decisions.threshold, len(classes))
        names = file_names([row["image"] for row in rows])
        for row, item, name in track(
            list(zip(rows, self.dataset.data, names, strict=True)), "writing label maps", disable=not rows
        ):
            write_label_map(folder / f"{name}.nii.gz", row["found"], classes, item["image"], threshold)
