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
) -> None:
    """Write predictions as CSV, one line per image, including skipped images.

    Columns: ``image``; ``patient`` and ``split`` if any row has them; the ``columns`` of the rows, such as ``scanner``;
    ``label`` and ``label_name`` if any row has a label; ``prob_<class>`` for each class; ``spread`` if any row has it;
    ``predicted`` (index) and ``predicted_name``; ``verdict`` (what was chosen or repaired) if any row has it;
    ``skipped`` (the reason, else empty). Multi-label: ``label`` and
    ``predicted`` are 0 or 1 for each class, as ``0|1|1``, and names are joined as ``edema|effusion``.

    Args:
        path: the file.
        rows: as :func:`monai_pipelines.report.write_report` takes them.
        classes: C class names.
        threshold, multilabel: see :func:`monai_pipelines.metrics.predicted_classes`.

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
    """
    if len(set(classes)) < len(classes):
        raise ValueError(f"write_predictions: class names must differ, got {list(classes)}")

    def present(*names: str) -> list[str]:
        return [name for name in names if any(row.get(name) is not None for row in rows)]

    prob_names = [f"prob_{name}" for name in classes]
    first, spread, verdict = present("patient", "split"), present("spread"), present("verdict")
    label_names = ["label", "label_name"] if present("label") else []
    last = [*label_names, *prob_names, *spread, "predicted", "predicted_name", *verdict, "skipped"]
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
