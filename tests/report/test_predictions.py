from __future__ import annotations

import csv

import numpy as np
import pytest

from monai_pipelines.report import write_predictions
from monai_pipelines.report.words import decision_words


def _rows(num=40, num_classes=3):
    rng = np.random.default_rng(0)
    return [
        {"image": f"{k}.png", "patient": f"p{k // 2}", "label": k % num_classes, "prob": prob, "skipped": None}
        for k, prob in enumerate(rng.dirichlet([1] * num_classes, num))
    ]


def _read(path):
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return reader.fieldnames, list(reader)


def test_predictions_come_back(tmp_path):
    rows = _rows()
    rows[4] = {"image": 'a,"b"\nc', "patient": "p2", "label": 1, "prob": None, "skipped": "too, bad"}
    rows[5]["split"] = "test"
    names = ["a", "b,c", "d"]
    write_predictions(tmp_path / "predictions.csv", rows, names)
    header, lines = _read(tmp_path / "predictions.csv")
    assert header == (
        ["image", "patient", "split", "label", "label_name", "prob_a", "prob_b,c", "prob_d"]
        + ["predicted", "predicted_name", "skipped"]
    )
    assert [line["image"] for line in lines] == [row["image"] for row in rows]
    for row, line in zip(rows, lines, strict=True):
        assert int(line["label"]) == row["label"]
        assert line["label_name"] == names[row["label"]]
        if row["skipped"]:
            assert (line["skipped"], line["prob_a"], line["predicted"]) == ("too, bad", "", "")
        else:
            assert [float(line[f"prob_{name}"]) for name in names] == row["prob"].tolist()
            assert line["predicted_name"] == names[int(line["predicted"])] == names[row["prob"].argmax()]
            assert line["skipped"] == ""
    assert lines[5]["split"] == "test"


def test_predictions_at_a_threshold(tmp_path):
    rows = [{"image": str(prob), "prob": [1 - prob, prob]} for prob in (0.31, 0.3, 0.29)]
    write_predictions(tmp_path / "p.csv", rows, ["healthy", "ill"], threshold=0.3)
    lines = _read(tmp_path / "p.csv")[1]
    assert [line["predicted_name"] for line in lines] == ["ill", "ill", "healthy"]
    assert [(line["threshold"], line["reached"]) for line in lines] == [("0.3", "1"), ("0.3", "1"), ("0.3", "0")]


def test_multilabel_and_spread(tmp_path):
    rows = [
        {"image": "a", "label": [0, 1, 1], "prob": [0.2, 0.9, 0.5], "spread": 0.125},
        {"image": "b", "label": [0.0, 0.0, 0.0], "prob": [0.2, 0.1, 0.4]},
        {"image": "c", "skipped": "truncated"},
    ]
    write_predictions(tmp_path / "p.csv", rows, ["nodule", "edema", "hernia"], multilabel=True)
    header, (first, second, third) = _read(tmp_path / "p.csv")
    assert header[-4:] == ["spread", "predicted", "predicted_name", "skipped"]
    assert [first[name] for name in ("label", "label_name", "spread", "predicted", "predicted_name")] == (
        ["0|1|1", "edema|hernia", "0.125", "0|1|1", "edema|hernia"]
    )
    assert [second[name] for name in ("label", "label_name", "spread", "predicted", "predicted_name")] == (
        ["0|0|0", "", "", "0|0|0", ""]
    )
    assert (third["skipped"], third["label"], third["predicted"]) == ("truncated", "", "")


def test_columns_follow_patient_and_split(tmp_path):
    rows = [
        {"image": "a", "patient": "p", "label": 0, "prob": [0.7, 0.3], "columns": {"scanner": "A", "sex": "f"}},
        {"image": "b", "split": "test", "skipped": "truncated"},
        {"image": "c", "prob": [0.7, 0.3], "columns": {"sex": "m"}},
    ]
    write_predictions(tmp_path / "p.csv", rows, ["healthy", "ill"])
    header, lines = _read(tmp_path / "p.csv")
    assert header[:6] == ["image", "patient", "split", "scanner", "sex", "label"]
    assert [(line["scanner"], line["sex"]) for line in lines] == [("A", "f"), ("", ""), ("", "m")]


def test_clashing_columns_are_refused(tmp_path):
    rows = [{"image": "a", "label": 0, "prob": [0.7, 0.3], "columns": {"prob_ill": "0.1", "label": "x", "sex": "f"}}]
    with pytest.raises(ValueError, match=r"columns: label, prob_ill: predictions\.csv already has this column"):
        write_predictions(tmp_path / "p.csv", rows, ["healthy", "ill"])


def test_a_threshold_for_each_label(tmp_path):
    rows = [{"image": "a", "label": [0, 1], "prob": [0.4, 0.6]}]
    write_predictions(tmp_path / "p.csv", rows, ["nodule", "mass"], threshold=[0.3, 0.7], multilabel=True, unit="scan")
    line = _read(tmp_path / "p.csv")[1][0]
    assert (line["predicted"], line["threshold"], line["reached"], line["unit"]) == ("1|0", "0.3|0.7", "1|0", "scan")


def test_decisions_in_words():
    classes = ["healthy", "disease"]
    assert decision_words([0.36, 0.64], classes, 0.64) == "disease 0.64, at or above the threshold 0.64: disease"
    assert decision_words([0.3605, 0.6391], classes, 0.64) == "disease 0.639, below the threshold 0.640: healthy"
    findings = decision_words([0.3, 0.2], ["edema", "mass"], 0.5, multilabel=True)
    assert findings == "edema 0.30, below the threshold 0.50: none"
    assert decision_words([0.1, 0.2, 0.7], list("abc"), spread=0.04) == "predicted c, 0.70\u00a0\u00b1\u00a00.04"


@pytest.mark.parametrize("prob", [None, [0.5, 0.5], [[0.2, 0.3, 0.5]]])
def test_row_without_probabilities_needs_a_reason(tmp_path, prob):
    with pytest.raises(ValueError, match="a: wanted 3 probabilities or the reason"):
        write_predictions(tmp_path / "p.csv", [{"image": "a", "prob": prob}], list("abc"))
