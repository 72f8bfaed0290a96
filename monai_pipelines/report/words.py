"""What a page calls the figures of merit and the choices that were made, in plain words."""

from __future__ import annotations

__all__ = ["GROUPS", "LOWER_IS_BETTER", "METHODS", "METRICS", "rule_words", "told_metrics"]

METRICS = {
    "roc_auc": ("ROC AUC", "chance that {a} of the class is ranked above one of the rest; 0.5 is guessing"),
    "roc_auc_micro": ("ROC AUC, micro", "the same with all classes in one ranking, so that frequent ones count more"),
    "average_precision": (
        "Average precision",
        "precision averaged over all thresholds; guessing gives the class's share",
    ),
    "average_precision_micro": ("Average precision, micro", "the same with all classes in one ranking"),
    "balanced_accuracy": ("Balanced accuracy", "mean share found right over the classes, each class counting the same"),
    "accuracy": ("Accuracy", "share of {s} given the right class"),
    "recall": ("Sensitivity", "share of the class's {s} that are found; also called recall"),
    "specificity": ("Specificity", "share of the other {s} that are left alone"),
    "precision": ("Precision (PPV)", "share of right ones among the {s} given the class; falls where it is rare"),
    "npv": ("NPV", "negative predictive value: share of right ones among the {s} not given the class"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
    "mcc": ("MCC", "Matthews correlation of predicted and true class; 0 is guessing, 1 perfect"),
    "kappa": ("Cohen's kappa", "agreement with the labels beyond chance; 0 is chance, 1 perfect"),
    "brier": ("Brier score", "mean squared error of the probabilities; 0 is perfect"),
    "ece": ("Calibration error (ECE)", "mean gap between predicted probability and observed share; 0 is perfect"),
    "log_loss": ("Log loss", "punishes confident mistakes most; 0 is perfect"),
}
_SEVERAL = {
    "balanced_accuracy": (
        "Balanced accuracy",
        "mean of sensitivity and specificity over the classes, each class counting the same",
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


def told_metrics(unit: str, multilabel: bool) -> dict[str, tuple[str, str]]:
    """Name and meaning of each metric, in order.

    Args:
        unit: what an input is called: image, scan or slide.
        multilabel: several labels each.

    Example:
        >>> told_metrics("scan", multilabel=False)["specificity"]
        ('Specificity', 'share of the other scans that are left alone')
    """
    words = {"one": unit, "a": f"{'an' if unit[0] in 'aeiou' else 'a'} {unit}", "s": f"{unit}s"}
    told = METRICS | (_SEVERAL if multilabel else {})
    return {name: (short, meaning.format(**words)) for name, (short, meaning) in told.items()}


def rule_words(rule: str | None) -> str | None:
    """What a rule of :func:`monai_pipelines.metrics.choose_threshold` looks for; None for a threshold of no rule.

    Example:
        >>> rule_words("sensitivity=0.95")
        'the highest specificity at a sensitivity of 0.95 or more'
    """
    name, _, target = (rule or "").partition("=")
    return {
        "youden": "the highest sum of sensitivity and specificity (Youden)",
        "sensitivity": f"the highest specificity at a sensitivity of {target} or more",
        "specificity": f"the highest sensitivity at a specificity of {target} or more",
        "cost": f"the lowest cost, where a miss costs as much as {target} false alarms",
    }.get(name, rule)
