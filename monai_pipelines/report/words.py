"""Plain-language names of metrics, threshold rules and methods for the pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from monai_pipelines.metrics.classification import Threshold, predicted_classes

METRICS = {
    "roc_auc": ("ROC AUC", "chance that {a} of the class ranks above one of the rest; 0.5 is guessing"),
    "roc_auc_micro": ("ROC AUC, micro", "the same with all classes in one ranking, so frequent classes weigh more"),
    "average_precision": (
        "Average precision",
        "precision averaged over all thresholds; guessing gives the prevalence of the class",
    ),
    "average_precision_micro": ("Average precision, micro", "the same with all classes in one ranking"),
    "balanced_accuracy": ("Balanced accuracy", "sensitivity averaged over the classes, with equal weight"),
    "accuracy": ("Accuracy", "share of {s} assigned the right class"),
    "recall": ("Sensitivity", "share of the class's {s} that are detected; also called recall"),
    "specificity": ("Specificity", "share of the other {s} that are not assigned the class"),
    "precision": (
        "Precision (PPV)",
        "share of {s} assigned the class that belong to it; falls where the class is rare",
    ),
    "npv": ("NPV", "negative predictive value: share of {s} not assigned the class that do not belong to it"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
    "mcc": ("MCC", "Matthews correlation of predicted and true class; 0 is guessing, 1 perfect"),
    "kappa": ("Cohen's kappa", "agreement with the labels beyond chance; 0 is chance, 1 perfect"),
    "kappa_quadratic": ("Quadratic kappa", "the same for ordered classes: a mistake counts by its squared distance"),
    "brier": ("Brier score", "mean squared error of the probabilities; 0 is perfect"),
    "ece": ("Calibration error (ECE)", "mean gap between predicted probability and observed frequency; 0 is perfect"),
    "log_loss": ("Log loss", "penalizes confident mistakes most; 0 is perfect"),
}
_MULTILABEL = {
    "balanced_accuracy": (
        "Balanced accuracy",
        "mean of sensitivity and specificity, averaged over the classes with equal weight",
    ),
    "accuracy": ("Accuracy", "share of all labels, one for each class and {one}, that are right"),
}
GROUPS = {
    "ranking": ("roc_auc", "roc_auc_micro", "average_precision", "average_precision_micro"),
    "prediction": (
        *("balanced_accuracy", "accuracy", "recall", "specificity", "precision", "npv"),
        *("f1", "mcc", "kappa", "kappa_quadratic"),
    ),
    "probability": ("brier", "ece", "log_loss"),
}
LOWER_IS_BETTER = ("loss", *GROUPS["probability"])
DETECTION = {
    "cpm": ("CPM", "mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per {per}"),
    "sensitivity": ("Sensitivity", "share of the lesions found by the detections at or above the threshold"),
    "false_positives_per_image": (
        "False positives",
        "per {per}, at or above the threshold: detections that hit nothing",
    ),
    "ap50": ("AP50", "precision averaged over all recalls; a hit overlaps the lesion's box by an IoU of 0.5 or more"),
    "ap75": ("AP75", "the same with an IoU of 0.75 or more"),
    "ap": ("AP", "mean over IoUs of 0.5, 0.55, ..., 0.95, as COCO has it"),
    "image_roc_auc": (
        "Image ROC AUC",
        "chance that {a} with lesions has a higher top score than one without; 0.5 is guessing",
    ),
}
METHODS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "occlusion": "Occlusion sensitivity"}


def hidden_metrics(*key_metrics: str | None) -> set[str]:
    """Metrics of ordered classes, which are shown only as the key metric: whoever names one has ordered classes.

    Example:
        >>> hidden_metrics("roc_auc"), hidden_metrics("kappa_quadratic")
        ({'kappa_quadratic'}, set())
    """
    return {"kappa_quadratic"}.difference(key_metrics)


def described_metrics(unit: str, multilabel: bool) -> dict[str, tuple[str, str]]:
    """Name and description of each metric, in order.

    Args:
        unit: what an input is called: image, scan or slide.
        multilabel: any number of labels per input.

    Example:
        >>> described_metrics("scan", multilabel=False)["accuracy"]
        ('Accuracy', 'share of scans assigned the right class')
    """
    words = {"one": unit, "a": f"{'an' if unit[0] in 'aeiou' else 'a'} {unit}", "s": f"{unit}s"}
    metrics = METRICS | (_MULTILABEL if multilabel else {})
    return {name: (short, description.format(**words)) for name, (short, description) in metrics.items()}


def detection_words(unit: str, rates: Sequence[float], num_classes: int = 1) -> dict[str, tuple[str, str]]:
    """Name and description of each metric of a detector, in order.

    Args:
        unit: what an input is called: image or scan.
        rates: false positives per image (and class) at which the sensitivity is given.
        num_classes: if several, false positives are counted for each.

    Example:
        >>> detection_words("scan", [1.0])["sensitivity_at_1"]
        ('Sensitivity at 1', 'with 1 false positive per scan')
    """
    words = {"a": f"{'an' if unit[0] in 'aeiou' else 'a'} {unit}", "per": per_unit(unit, num_classes)}
    described = {name: (short, text.format(**words)) for name, (short, text) in DETECTION.items()}
    return described | {
        f"sensitivity_at_{rate:g}": (
            f"Sensitivity at {_share(rate)}",
            f"with {_share(rate)} false positive{'' if rate == 1 else 's'} per {words['per']}",
        )
        for rate in rates
    }


def per_unit(unit: str, num_classes: int) -> str:
    """What false positives are counted by.

    Example:
        >>> per_unit("scan", 2)
        'scan and class'
    """
    return unit if num_classes == 1 else f"{unit} and class"


def _share(rate: float) -> str:
    return f"{rate:g}" if rate >= 1 else f"1/{1 / rate:g}"


def at_threshold(threshold: ArrayLike) -> str:
    """One threshold, or that of each class, in words.

    Example:
        >>> at_threshold(0.24449)
        'at the threshold 0.244'
        >>> at_threshold([0.5, 0.25])
        'at the thresholds 0.5, 0.25'
        >>> at_threshold([0.5, None])
        'at the thresholds 0.5, none'
    """
    values = np.ravel(threshold)
    shown = ["none" if value is None else f"{value:.3g}" for value in values]
    return f"at the threshold{'' if len(values) == 1 else 's'} {', '.join(shown)}"


def decision_words(
    prob: Sequence[float],
    classes: Sequence[str],
    threshold: Threshold = None,
    multilabel: bool = False,
    spread: float | None = None,
) -> str:
    """What is predicted, with the probability and the threshold that decide it.

    Args:
        prob: C probabilities.
        classes: C class names.
        threshold, multilabel: of `monai_pipelines.metrics.predicted_classes`.
        spread: of the probability.

    Example:
        >>> decision_words([0.4, 0.6], ["healthy", "disease"], 0.64)
        'disease 0.60, below the threshold 0.64: healthy'
        >>> decision_words([0.4, 0.6], ["healthy", "disease"])
        'predicted disease, 0.60'
        >>> decision_words([0.7, 0.2], ["edema", "mass"], [0.5, 0.1], multilabel=True)
        'edema 0.70, at or above the threshold 0.50; mass 0.20, at or above the threshold 0.10'
    """
    predicted = predicted_classes([prob], threshold, multilabel)[0]
    about = "" if spread is None else f"\u00a0\u00b1\u00a0{spread:.2f}"
    if multilabel:
        cuts = np.broadcast_to(0.5 if threshold is None else np.asarray(threshold, float), len(classes))
        shown = np.flatnonzero(predicted).tolist() or [int(np.argmax(prob))]
        words = [_beside(classes[k], prob[k], float(cuts[k]), about) for k in shown]
        return "; ".join(words) + ("" if predicted.any() else ": none")
    if threshold is None:
        return f"predicted {classes[predicted]}, {prob[predicted]:.2f}{about}"
    return f"{_beside(classes[1], prob[1], float(np.asarray(threshold)), about)}: {classes[predicted]}"


def _beside(name: str, prob: float, threshold: float, about: str) -> str:
    """With enough digits to distinguish the two."""
    digits = next((n for n in range(2, 7) if f"{prob:.{n}f}" != f"{threshold:.{n}f}"), 2)
    side = "below" if prob < threshold else "at or above"
    return f"{name} {prob:.{digits}f}{about}, {side} the threshold {threshold:.{digits}f}"


def rule_words(rule: str | None, unit: str = "image") -> str | None:
    """A rule of :func:`monai_pipelines.metrics.choose_threshold`, or of `choose_operating_threshold`, in words.

    None for no rule.

    Example:
        >>> rule_words("sensitivity=0.95")
        'the highest specificity at a sensitivity of at least 0.95'
    """
    name, _, target = (rule or "").partition("=")
    return {
        "youden": "the highest sum of sensitivity and specificity (Youden)",
        "sensitivity": f"the highest specificity at a sensitivity of at least {target}",
        "specificity": f"the highest sensitivity at a specificity of at least {target}",
        "false_positives": f"at most {target} false positive{'' if target == '1' else 's'} per {unit}",
        "cost": f"the lowest cost, counting a miss as {target} false alarms",
    }.get(name, rule)
