"""Plain-language names of metrics, threshold rules and methods for the pages."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

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
        *("f1", "mcc", "kappa"),
    ),
    "probability": ("brier", "ece", "log_loss"),
}
LOWER_IS_BETTER = ("loss", *GROUPS["probability"])
METHODS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "occlusion": "Occlusion sensitivity"}


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


def at_threshold(threshold: ArrayLike) -> str:
    """One threshold, or that of each class, in words.

    Example:
        >>> at_threshold(0.24449)
        'at the threshold 0.244'
        >>> at_threshold([0.5, 0.25])
        'at the thresholds 0.5, 0.25'
    """
    values = np.ravel(threshold)
    return f"at the threshold{'' if len(values) == 1 else 's'} {', '.join(f'{value:.3g}' for value in values)}"


def rule_words(rule: str | None) -> str | None:
    """A rule of :func:`monai_pipelines.metrics.choose_threshold` in words; None for no rule.

    Example:
        >>> rule_words("sensitivity=0.95")
        'the highest specificity at a sensitivity of at least 0.95'
    """
    name, _, target = (rule or "").partition("=")
    return {
        "youden": "the highest sum of sensitivity and specificity (Youden)",
        "sensitivity": f"the highest specificity at a sensitivity of at least {target}",
        "specificity": f"the highest sensitivity at a specificity of at least {target}",
        "cost": f"the lowest cost, counting a miss as {target} false alarms",
    }.get(name, rule)
