"""Predictions as a table."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from monai_pipelines.metrics import predicted_classes
from monai_pipelines.metrics.classification import Threshold

Row = Mapping[str, Any]


def write_predictions(
    path: str | PathLike[str],
    rows: Sequence[Row],
    classes: Sequence[str],
    threshold: Threshold = None,
    multilabel: bool = False,
    unit: str | None = None,
) -> None:
    """Write predictions as CSV, one line per image, including skipped images.

    Columns: ``image``; ``patient`` and ``split`` if any row has them; the ``columns`` of the rows, such as ``scanner``;
    ``label`` and ``label_name`` if any row has a label; ``prob_<class>`` for each class; ``spread`` if any row has it;
    ``threshold`` and ``reached`` (1 or 0: whether the probability of the second class is at or above it) if there is a
    threshold; ``predicted`` (index) and ``predicted_name``; ``unit``, if given; ``verdict`` (what was chosen or
    repaired) if any row has it; ``skipped`` (the reason, else empty). Multi-label: ``label``, ``threshold``,
    ``reached`` and ``predicted`` have a value for each class, as ``0|1|1``, and names are joined as ``edema|effusion``.

    Args:
        path: the file.
        rows: as :func:`monai_pipelines.report.write_report` takes them.
        classes: C class names.
        threshold, multilabel: see :func:`monai_pipelines.metrics.predicted_classes`.
        unit: what a row is: image, scan or slide.

    Raises:
        ValueError: duplicate class names, ``columns`` that clash with another column, or a row with neither C
            probabilities nor a reason.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "predictions.csv"
        >>> write_predictions(path, [{"image": "a.nii", "prob": [0.25, 0.75]}], ["healthy", "ill"])
        >>> path.read_text().split()
        ['image,prob_healthy,prob_ill,predicted,predicted_name,skipped', 'a.nii,0.25,0.75,1,ill,']
        >>> write_predictions(path, [{"image": "a.nii", "prob": [0.25, 0.75]}], ["healthy", "ill"], 0.8, unit="scan")
        >>> path.read_text().split()[1]
        'a.nii,0.25,0.75,0.8,0,0,healthy,scan,'
    """
    if len(set(classes)) < len(classes):
        raise ValueError(f"write_predictions: class names must differ, got {list(classes)}")

    def present(*names: str) -> list[str]:
        return [name for name in names if any(row.get(name) is not None for row in rows)]

    prob_names = [f"prob_{name}" for name in classes]
    first, spread, verdict = present("patient", "split"), present("spread"), present("verdict")
    label_names = ["label", "label_name"] if present("label") else []
    decided = (
        ["predicted", "predicted_name"]
        if threshold is None
        else ["threshold", "reached", "predicted", "predicted_name"]
    )
    last = [*label_names, *prob_names, *spread, *decided, *(["unit"] if unit else []), *verdict, "skipped"]
    columns = list(dict.fromkeys(name for row in rows for name in row.get("columns", ())))
    if taken := {*columns}.intersection(("image", *first, *last)):
        raise ValueError(
            f"write_predictions: columns: {', '.join(sorted(taken))}: predictions.csv already has this column"
        )
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", *first, *columns, *last], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            line = {"image": row["image"], "skipped": row.get("skipped"), **row.get("columns", {})}
            line |= {name: row.get(name) for name in (*first, *spread, *verdict)}
            line |= {"unit": unit} if unit else {}
            if row.get("label") is not None:
                line |= {"label": _encode(row["label"]), "label_name": class_name(row["label"], classes)}
            if not row.get("skipped"):
                prob = np.asarray(row.get("prob"))
                if prob.shape != (len(classes),):
                    raise ValueError(
                        f"write_predictions: {row['image']}: wanted {len(classes)} probabilities or the reason it "
                        f"was skipped, got {row.get('prob')}"
                    )
                predicted = predicted_classes(prob[None], threshold, multilabel)[0]
                line |= dict(zip(prob_names, map(str, prob), strict=True))
                line |= {"predicted": _encode(predicted), "predicted_name": class_name(predicted, classes)}
                if threshold is not None:
                    cuts = np.broadcast_to(threshold, len(classes)) if multilabel else [threshold]
                    line |= {"threshold": "|".join(map(str, cuts)), "reached": _encode(predicted)}
            writer.writerow(line)


def class_name(label: Any, classes: Sequence[str], separator: str = "|", none: str = "") -> str:
    """Name of a class index, or the joined names of the classes that are 1 in (C,).

    Example:
        >>> class_name(1, ["healthy", "ill"]), class_name([1, 0, 1], ["edema", "nodule", "effusion"], ", ")
        ('ill', 'edema, effusion')
    """
    if np.ndim(label) == 0:
        return classes[int(label)]
    return separator.join(name for name, positive in zip(classes, label, strict=True) if positive) or none


def _encode(label: Any) -> int | str:
    return int(label) if np.ndim(label) == 0 else "|".join(str(int(value)) for value in label)
