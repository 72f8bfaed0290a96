from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from monai_pipelines.report.comparison import (
    better,
    differences_figure,
    format_interval,
    format_p,
    rules_differ,
    verdict,
    write_comparison,
)
from tests.report.pages import page_of


def _row(difference: float | None, half: float = 0.05, name: str = "") -> dict[str, Any]:
    if difference is None:
        return dict.fromkeys(("a", "b", "difference", "low", "high", "p", "better"))
    row = {"a": 0.7, "b": 0.7 + difference, "difference": difference, "low": difference - half}
    row |= {"high": difference + half, "p": 0.0004}
    return {**row, "better": better(name, row)}


@pytest.fixture
def result() -> dict[str, Any]:
    """B ranks better, A is better calibrated, accuracy shows no difference."""
    metrics = {"roc_auc": 0.1, "accuracy": -0.02, "recall": None, "ece": 0.2, "log_loss": -0.9}
    run = {"folder": "runs/<a>", "title": "Lung & heart", "seed": None, "fingerprint": None}
    run |= {"num_networks": 1, "threshold": 0.5, "threshold_by": "youden"}
    test = {"auc_a": 0.7, "auc_b": 0.8, "difference": 0.1, "low": -0.01, "high": 0.21, "p": 0.07}
    return {
        "command": "python -m monai_pipelines compare a b",
        "runs": {key: {**run, "num_images": 50, "num_only": 0} for key in ("a", "b")},
        **{"task": "classification", "main_metric": "roc_auc", "unit": "scan", "multilabel": False},
        **{"num_images": 50, "num_patients": 25},
        "metrics": {name: _row(difference, name=name) for name, difference in metrics.items()},
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
def test_better_model(name: str, low: float, high: float, winner: str | None) -> None:
    assert better(name, {"low": low, "high": high}) == winner


def test_the_verdict_has_every_defined_metric(result: dict[str, Any]) -> None:
    assert verdict(result) == [
        "B is better in ROC AUC; Log loss.",
        "A is better in Calibration error (ECE).",
        "No difference shown in Accuracy.",
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


def test_equal_predictions(result: dict[str, Any]) -> None:
    different = verdict(result)
    result["metrics"] = {name: _row(0.0, half=0) for name in result["metrics"]} | {"recall": _row(None)}
    assert len(verdict(result)) == 1
    assert verdict(result)[0] not in different


def test_page_shows_the_numbers_and_holds_its_picture(result: dict[str, Any], tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", result)
    page = page_of(tmp_path, "page.html")
    for name, row in result["metrics"].items():
        for of in ("a", "b", "difference"):
            assert page.value(name, of=of, section="metrics") == row[of]
        (cell,) = [cell for cell in page.find(name, section="metrics") if "data-better" in cell.attributes]
        assert cell.attributes["data-better"] == (row["better"] or "")
    test = result["delong"]["ill"]
    for of, value in (("a", test["auc_a"]), ("b", test["auc_b"]), ("difference", test["difference"])):
        assert page.value("roc_auc", of=of, row="ill") == value
    assert f"{format_interval(test)} {format_p(0.07)}".replace("-", "\u2212") in page.text
    for content in ("Lung & heart", "runs/<a>"):
        assert content in page.text
    assert all(link.startswith("data:") for link in page.links)
    assert not page.notes


def test_thresholds_of_different_rules(result: dict[str, Any], tmp_path: Path) -> None:
    assert rules_differ(result) is None
    result["runs"]["b"] |= {"threshold_by": "cost=5", "num_networks": 3}
    assert re.search("A: .*Youden.*; B: .* 5 false alarms", rules_differ(result) or "")
    write_comparison(tmp_path / "page.html", result)
    page = page_of(tmp_path, "page.html")
    assert page.notes == {"different-rules"}
    assert page.value("num_networks", row="B") == 3


def test_unknown_patients_are_a_limit(result: dict[str, Any], tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", {**result, "num_patients": None})
    assert page_of(tmp_path, "page.html").notes == {"patients-unknown"}
