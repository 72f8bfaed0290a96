"""Predictions as a table, a line for each image."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from monai_pipelines.metrics import predicted_classes

__all__ = ["write_predictions"]

Row = Mapping[str, Any]


def write_predictions(
    path: str | PathLike[str],
    rows: Sequence[Row],
    class_names: Sequence[str],
    threshold: float | Sequence[float] | None = None,
    multilabel: bool = False,
) -> None:
    """Write predictions as CSV, a line for each image, skipped ones included.

    Columns: ``image``; ``patient``, ``split`` where any row has them; the ``columns`` of the rows, such as ``scanner``;
    ``label`` and ``label_name`` where any row has them; ``prob_<class>`` for each class; ``spread`` where any row has
    it; ``predicted`` (index) and ``predicted_name``; ``skipped`` (the reason, else empty). For several labels each,
    ``label`` and ``predicted`` are 0 or 1 for each class, as ``0|1|1``, and their names are joined as
    ``edema|effusion``.

    Args:
        path: the file.
        rows: as :func:`monai_pipelines.report.write_report` takes them.
        class_names: the C names.
        threshold, multilabel: of :func:`monai_pipelines.metrics.predicted_classes`.

    Raises:
        ValueError: equal class names, ``columns`` named as another column, or a row with neither C probabilities nor a
            reason.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "predictions.csv"
        >>> write_predictions(path, [{"image": "a.nii", "prob": [0.25, 0.75]}], ["healthy", "ill"])
        >>> path.read_text().split()
        ['image,prob_healthy,prob_ill,predicted,predicted_name,skipped', 'a.nii,0.25,0.75,1,ill,']
    """
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"write_predictions: class names must differ, got {list(class_names)}")

    def given(*names: str) -> list[str]:
        return [name for name in names if any(row.get(name) is not None for row in rows)]

    prob_names = [f"prob_{name}" for name in class_names]
    first, spread = given("patient", "split"), given("spread")
    label_names = ["label", "label_name"] if given("label") else []
    last = [*label_names, *prob_names, *spread, "predicted", "predicted_name", "skipped"]
    kept = list(dict.fromkeys(name for row in rows for name in row.get("columns", ())))
    if taken := {*kept}.intersection(("image", *first, *last)):
        raise ValueError(
            f"write_predictions: columns: {', '.join(sorted(taken))}: predictions.csv has this column already"
        )
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", *first, *kept, *last], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            line = {"image": row["image"], "skipped": row.get("skipped"), **row.get("columns", {})}
            line |= {name: row.get(name) for name in (*first, *spread)}
            if row.get("label") is not None:
                line |= {"label": _coded(row["label"]), "label_name": class_name(row["label"], class_names)}
            if not row.get("skipped"):
                prob = np.asarray(row.get("prob"))
                if prob.shape != (len(class_names),):
                    raise ValueError(
                        f"write_predictions: {row['image']}: wanted {len(class_names)} probabilities or the reason why "
                        f"it is skipped, got {row.get('prob')}"
                    )
                predicted = predicted_classes(prob[None], threshold, multilabel)[0]
                line |= dict(zip(prob_names, map(str, prob), strict=True))
                line |= {"predicted": _coded(predicted), "predicted_name": class_name(predicted, class_names)}
            writer.writerow(line)


def class_name(label: Any, class_names: Sequence[str], joint: str = "|", none: str = "") -> str:
    """Name of a class index, or the joined names of the classes that are 1 in (C,).

    Example:
        >>> class_name(1, ["healthy", "ill"]), class_name([1, 0, 1], ["edema", "nodule", "effusion"], ", ")
        ('ill', 'edema, effusion')
    """
    if np.ndim(label) == 0:
        return class_names[int(label)]
    return joint.join(name for name, own in zip(class_names, label, strict=True) if own) or none


def _coded(label: Any) -> int | str:
    return int(label) if np.ndim(label) == 0 else "|".join(str(int(own)) for own in label)
