from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.report.comparison import better, differences_figure, verdict, write_comparison


def _row(difference: float | None, half: float = 0.05, name: str = "") -> dict[str, Any]:
    if difference is None:
        return dict.fromkeys(("a", "b", "difference", "low", "high", "p", "better"))
    own = {"a": 0.7, "b": 0.7 + difference, "difference": difference, "low": difference - half}
    own |= {"high": difference + half, "p": 0.0004}
    return {**own, "better": better(name, own)}


@pytest.fixture
def result() -> dict[str, Any]:
    """B ranks better, A is better calibrated, accuracy is not told apart."""
    metrics = {"roc_auc": 0.1, "accuracy": -0.02, "recall": None, "ece": 0.2, "log_loss": -0.9}
    run = {"folder": "runs/<a>", "title": "Lung & heart", "seed": None, "fingerprint": None}
    run |= {"num_networks": 1, "threshold": 0.5, "threshold_by": "youden"}
    test = {"auc_a": 0.7, "auc_b": 0.8, "difference": 0.1, "low": -0.01, "high": 0.21, "p": 0.07}
    return {
        "command": "python -m monai_pipelines compare a b",
        "runs": {key: {**run, "num_scans": 50, "num_only": 0} for key in ("a", "b")},
        **{"unit": "scan", "multilabel": False, "num_scans": 50, "num_patients": 25},
        "metrics": {name: _row(own, name=name) for name, own in metrics.items()},
        "delong": {"ill": test},
    }


@pytest.mark.parametrize(
    ("name", "low", "high", "winner"),
    [
        ("roc_auc", 0.1, 0.2, "b"),
        ("roc_auc", -0.2, -0.1, "a"),
        ("log_loss", 0.1, 0.2, "a"),
        ("ece", -0.2, -0.1, "b"),
        ("brier", -0.1, 0.1, None),
        ("f1", 0.0, 0.0, None),
        ("f1", float("nan"), float("nan"), None),
    ],
)
def test_the_better_model(name: str, low: float, high: float, winner: str | None) -> None:
    assert better(name, {"low": low, "high": high}) == winner


def test_the_verdict_names_every_figure_that_is_defined(result: dict[str, Any]) -> None:
    assert verdict(result) == [
        "B is better in ROC AUC; Log loss.",
        "A is better in Calibration error (ECE).",
        "Not told apart in Accuracy.",
    ]


def test_right_of_the_line_b_is_better(result: dict[str, Any]) -> None:
    axes = differences_figure(result).axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == ["ROC AUC", "Accuracy", "Sensitivity", "Calibration error (ECE) *"]
    points = {names[int(line.get_ydata()[0])]: line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1}
    assert points == pytest.approx({"ROC AUC": 0.1, "Accuracy": -0.02, "Calibration error (ECE) *": -0.2})
    low, high = axes.get_xlim()
    assert low == -high
    assert high > 0.25


def test_no_interval_at_all(result: dict[str, Any]) -> None:
    result["metrics"] = {name: _row(None) for name in result["metrics"]}
    assert differences_figure(result).axes[0].get_xlim() == (-0.01, 0.01)
    assert verdict(result) == []


def test_equal_predictions_are_told(result: dict[str, Any]) -> None:
    result["metrics"] = {name: _row(0.0, half=0) for name in result["metrics"]} | {"recall": _row(None)}
    assert verdict(result) == ["A and B predict the same."]


def test_the_page_tells_numbers_and_holds_its_picture(result: dict[str, Any], tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text()
    rows = {name.strip(): re.sub(r"<[^>]*>|\s+", " ", row) for name, row in re.findall(
        r'<th scope="row">([^<]*)(.*?)</tr>', page, re.S)}  # fmt: skip
    assert re.search(r"0\.700 +0\.800 +\+0\.100 +\+0\.050 to \+0\.150 +&lt; 0\.001 +B", rows["ROC AUC"])
    assert re.search(r"n/a.*n/a.*n/a.*neither", rows["Sensitivity"])
    assert re.search("lower is better.* A *$", rows["Calibration error (ECE)"])
    assert re.search(r"\u22120\.010 to \+0\.210 +0\.070", rows["ill"])
    assert "Lung &amp; heart" in page
    assert "runs/&lt;a&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "Not the same test set" not in page
    assert "too narrow" not in page


def test_thresholds_of_different_rules_are_told(result: dict[str, Any], tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", result)
    assert "different rules" not in (tmp_path / "page.html").read_text()
    result["runs"]["b"] |= {"threshold_by": "cost=5", "num_networks": 3}
    write_comparison(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text()
    assert "B: the lowest cost, where a miss costs as much as 5 false alarms. Figures of what is predicted" in page
    assert '<td data-label="Networks">3</td>' in page


def test_unknown_patients_are_a_limit(result: dict[str, Any], tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", {**result, "num_patients": None})
    assert "the intervals are too narrow" in (tmp_path / "page.html").read_text()
