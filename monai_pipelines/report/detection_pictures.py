"""Which lesions and false alarms a report shows, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_pipelines.report.box_pictures import Box, image_finding_figure, scan_finding_figure, spacing_of
from monai_pipelines.report.detection_results import Outcome, Thresholds, cuts_of, outcomes
from monai_pipelines.report.figures import plain, png_bytes
from monai_pipelines.report.predictions import Row
from monai_pipelines.transforms.boxes import BOX_AFFINE, move_boxes

NUM = 6  # of each kind
_DPI = 190


def finding_pictures(
    dataset: Any, rows: Sequence[Row], classes: Sequence[str], threshold: Thresholds, num: int = NUM
) -> list[dict[str, Any]]:
    """Draw some of the lesions found, of the missed ones and of the false alarms.

    Args:
        dataset: of the test images: items with ``image``, (C, H, W) or (C, X, Y, Z) in RAS, and ``box_affine``.
        rows: of the same images, see `monai_pipelines.report.detection_results.plain_row`.
        classes: C class names.
        threshold: of each class.
        num: of each kind, at most.

    Returns:
        for each ``kind`` (hit, miss, false_alarm), ``image`` (name), ``class``, ``score`` (None for a miss without a
        hit), ``size`` (mm, or pixels of the stored image), ``caption``, ``file`` (in the run's folder), ``content``.
    """
    chosen = choose_findings(outcomes(rows, classes, threshold), num)
    pictures = []
    for image in dict.fromkeys(outcome.image for outcome in chosen):  # each is loaded once
        item = dataset[image]
        for outcome in chosen:
            if outcome.image == image:
                pictures.append((outcome, _picture(item, rows[image], outcome, classes, threshold)))
    order = {outcome: k for k, outcome in enumerate(chosen)}
    kinds = [outcome.kind for outcome in chosen]
    return [
        {**picture, "file": f"pictures/{outcome.kind}-{order[outcome] - kinds.index(outcome.kind)}.png"}
        for outcome, picture in sorted(pictures, key=lambda pair: order[pair[0]])
    ]


def choose_findings(found: Sequence[Outcome], num: int = NUM) -> list[Outcome]:
    """At most ``num`` of each kind, each from another image where there are enough.

    Hits of the highest and of the lowest scores, the largest misses, and the false alarms of the highest scores. Of
    equal ones the first.

    Example:
        >>> hits = [Outcome("hit", 0, k, 0, k / 10, 5.0) for k in range(3)] + [Outcome("hit", 1, 0, 0, 0.05, 5.0)]
        >>> [(o.image, o.score) for o in choose_findings(hits, 2)]
        [(0, 0.2), (1, 0.05)]
    """
    of_kind: dict[str, list[Outcome]] = {"hit": [], "miss": [], "false_alarm": []}
    for outcome in found:
        of_kind[outcome.kind].append(outcome)
    best = sorted(of_kind["hit"], key=lambda outcome: -(outcome.score or 0))
    highest = _spread(best, (num + 1) // 2, set())
    rest = [outcome for outcome in best[::-1] if outcome not in highest]
    lowest = _spread(rest, num // 2, {outcome.image for outcome in highest})
    hits = highest + sorted(lowest, key=best.index)
    misses = _spread(sorted(of_kind["miss"], key=lambda outcome: -outcome.size), num, set())
    alarms = _spread(sorted(of_kind["false_alarm"], key=lambda outcome: -(outcome.score or 0)), num, set())
    return hits + misses + alarms


def _spread(ordered: Sequence[Outcome], num: int, used: set[int]) -> list[Outcome]:
    """The first ones, images that are not used yet before others; in order."""
    first: list[Outcome] = []
    others: list[Outcome] = []
    for outcome in ordered:
        (others if outcome.image in used else first).append(outcome)
        used.add(outcome.image)
    kept = (first + others)[:num]
    return [outcome for outcome in ordered if outcome in kept]


def _picture(item: Any, row: Row, outcome: Outcome, classes: Sequence[str], threshold: Thresholds) -> dict[str, Any]:
    image = np.asarray(torch.as_tensor(item["image"]).detach().cpu())
    to_source = torch.as_tensor(item[BOX_AFFINE]).double().cpu()
    spacing = spacing_of(to_source)
    source = row["found" if outcome.kind == "false_alarm" else "lesions"]["boxes"][outcome.box]
    at = _in_tensor([source], to_source)[0]
    boxes = _boxes(row, outcome, to_source, cuts_of(threshold), classes)
    volume = image.ndim == 4
    if volume:
        figure = scan_finding_figure(image, boxes, at, spacing)
    else:
        figure = image_finding_figure(image, boxes, at, float(spacing.mean()))
    return {
        "caption": _caption(row, outcome, classes[outcome.label], source),
        "content": png_bytes(figure, _DPI),
        "kind": outcome.kind,
        "image": row["image"],
        "class": classes[outcome.label],
        "score": outcome.score,
        "size": outcome.size,
    }


def _boxes(row: Row, outcome: Outcome, to_source: torch.Tensor, cut: NDArray[Any], classes: Sequence[str]) -> list[Box]:
    """Lesions and detections at or above the threshold; of a missed lesion, also the best detection that hits it."""
    lesions, found = row["lesions"], row["found"]
    alarm = outcome.kind == "false_alarm"
    drawn = [
        Box("ignored" if skip else "lesion", box, strong=not alarm and k == outcome.box)
        for k, (box, skip) in enumerate(zip(_in_tensor(lesions["boxes"], to_source), lesions["ignore"], strict=True))
    ]
    parts = zip(_in_tensor(found["boxes"], to_source), found["scores"], found["labels"], strict=True)
    for k, (box, score, label) in enumerate(parts):
        best_of_miss = outcome.kind == "miss" and score == outcome.score and label == outcome.label
        if score >= cut[label] or best_of_miss:
            text = f"{score:.2f}" if len(classes) == 1 else f"{plain(classes[label], 16, 1)} {score:.2f}"
            drawn.append(Box("detection", box, text, strong=alarm and k == outcome.box))
    return drawn


def _in_tensor(boxes: Any, to_source: torch.Tensor) -> NDArray[Any]:
    dims = to_source.shape[-1] - 1
    values = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 2 * dims)
    moved: NDArray[Any] = move_boxes(values, torch.linalg.inv(to_source)).numpy()
    return moved


def _caption(row: Row, outcome: Outcome, name: str, box: Sequence[float]) -> str:
    volume = len(box) == 6
    size = f"{outcome.size:.1f} mm" if volume else f"{outcome.size:.0f} px"
    score = "not detected" if outcome.score is None else f"score {outcome.score:.2f}"
    text = f"{name}, {size}, {score}"
    if volume:
        x, y, z = ((low + high) / 2 for low, high in zip(box[:3], box[3:], strict=True))
        text += f", at x {x:.0f}, y {y:.0f}, z {z:.0f} mm (RAS)"
    return f"{text}\n{row['image']}"
