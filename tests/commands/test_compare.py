"""Two runs compared from their files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_pipelines.commands.compare import compare
from monai_pipelines.metrics import classification_metrics, compare_detections, compare_predictions
from monai_pipelines.report import rebuild_report, write_predictions
from monai_pipelines.report.comparison import compare_runs
from monai_pipelines.report.detection_page import DetectionEvaluation
from monai_pipelines.report.detection_results import plain_row
from monai_pipelines.runs.folder import RunFolder
from tests.metrics.detection_studies import clustered_images
from tests.report.pages import page_of

CLASSES = ("healthy", "ill")


def _rows(seed: int = 0, strength: float = 1.0, num: int = 40) -> list[dict[str, Any]]:
    """Two images of each patient, both of one class."""
    rng = np.random.default_rng(seed)
    label = np.arange(num) // 2 % 2
    ill = 1 / (1 + np.exp(-rng.normal(strength * (2 * label - 1), 1)))
    return [
        {"image": f"{k}.nii", "patient": f"p{k // 2}", "label": int(label[k]), "prob": [1 - ill[k], ill[k]]}
        for k in range(num)
    ]


def _run(folder: Path, rows: list[dict[str, Any]], classes: Any = CLASSES, threshold: Any = None, **more: Any) -> Path:
    """The files of an evaluation that are compared."""
    folder.mkdir()
    write_predictions(folder / "predictions.csv", rows, classes, threshold, multilabel=np.ndim(rows[0]["label"]) == 1)
    metrics = {"classes": dict.fromkeys(classes), "threshold": threshold, "run": {"seed": 3, "fingerprint": "f00d"}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if more:
        (folder / "evaluation.json").write_text(json.dumps(more))
    return folder


def _compare(capsys: pytest.CaptureFixture[str], a: Path, b: Path, out: Path) -> tuple[dict[str, Any], str]:
    """What the command writes and prints."""
    compare(a, b, out)
    return json.loads((out / "comparison.json").read_text()), " ".join(capsys.readouterr().out.split())


def test_metrics_are_those_of_the_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows_a, rows_b = _rows(0, 0.2), _rows(1, 2.0)
    a, b = _run(tmp_path / "a", rows_a, threshold=0.4), _run(tmp_path / "b", rows_b[::-1], title="Better", unit="scan")
    out = tmp_path / "out" / "here"
    result, printed = _compare(capsys, a, b, out)
    prob_a, prob_b = (np.array([row["prob"] for row in rows]) for rows in (rows_a, rows_b))
    label, groups = [row["label"] for row in rows_a], [row["patient"] for row in rows_a]
    expected = compare_predictions(prob_a, prob_b, label, groups, threshold_a=0.4)
    for name, row in expected["metrics"].items():
        got = {key: value for key, value in result["metrics"][name].items() if key != "better"}
        assert got == pytest.approx(row)
    assert result["metrics"]["accuracy"]["a"] == classification_metrics(prob_a, label, threshold=0.4)["accuracy"]
    assert result["delong"] == {"ill": pytest.approx(expected["delong"][0])}
    assert (result["num_images"], result["num_patients"]) == (40, 20)
    assert result["runs"]["b"] == {
        **{"folder": str(b), "title": "Better", "unit": "scan", "seed": 3, "fingerprint": "f00d"},
        **{"threshold": None, "num_images": 40, "num_only": 0, "classes": [*CLASSES]},
        **{"num_networks": 1, "threshold_by": None, "task": "classification", "key_metric": None},
    }
    assert (result["metrics"]["roc_auc"]["better"], result["metrics"]["brier"]["better"]) == ("b", "b")
    auc = result["metrics"]["roc_auc"]
    numbers = "{a:.3f} {b:.3f} {difference:+.3f} {low:+.3f} to {high:+.3f}".format(**auc)
    assert re.search(rf"ROC AUC {re.escape(numbers)} (< )?0\.\d{{3}} B ", printed)
    assert "A: unknown; B: none, 0.5." in printed
    assert printed.endswith(f"wrote {out / 'comparison.html'}")


def test_images_of_one_run_only_are_excluded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = _rows()
    unread = [{"image": "x.nii", "label": 0, "skipped": "no lungs"}, {"image": "y.nii", "prob": [0.5, 0.5]}]
    a, b = _run(tmp_path / "a", [*rows, *unread]), _run(tmp_path / "b", rows[6:])
    result, printed = _compare(capsys, a, b, tmp_path / "out")
    assert (result["num_images"], result["num_patients"]) == (34, 17)
    assert [run["num_only"] for run in result["runs"].values()] == [6, 0]
    assert "40 images, 6 of them" in printed
    page = page_of(tmp_path / "out", "comparison.html")
    assert "different-test-sets" in page.notes
    assert [page.value("num_images", row=letter) for letter in "AB"] == [40, 34]


def test_patients_of_either_run_are_used(tmp_path: Path) -> None:
    rows = _rows()
    unknown = [{**row, "patient": None} for row in rows]
    known, plain = _run(tmp_path / "known", rows), _run(tmp_path / "plain", unknown)
    assert compare_runs(plain, known)["num_patients"] == 20
    assert compare_runs(plain, _run(tmp_path / "b", unknown))["num_patients"] is None


def test_multilabel_and_many_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, names = np.random.default_rng(0), ["edema", "nodule", "effusion"]
    label, prob = rng.integers(0, 2, (30, 3)), rng.random((2, 30, 3))
    runs = [
        _run(
            tmp_path / f"multilabel{k}",
            [{"image": f"{i}", "label": label[i].tolist(), "prob": prob[k, i].tolist()} for i in range(30)],
            names,
            [0.4, 0.5, 0.6],
        )
        for k in range(2)
    ]
    result, printed = _compare(capsys, *runs, tmp_path / "out")
    assert "ROC AUC of effusion: " in printed
    assert result["multilabel"]
    assert [*result["delong"]] == names
    expected = classification_metrics(prob[0], label, threshold=[0.4, 0.5, 0.6])
    assert {name: row["a"] for name, row in result["metrics"].items()} == pytest.approx(expected)
    many = [
        _run(
            tmp_path / f"many{k}",
            [{"image": f"{i}", "label": i % 2, "prob": (prob[k, i] / prob[k, i].sum()).tolist()} for i in range(30)],
            names,
        )
        for k in range(2)
    ]
    result, printed = _compare(capsys, *many, tmp_path / "out")
    assert "kappa_quadratic" not in result["metrics"]  # the classes have no order
    assert result["delong"]["effusion"]["p"] is None  # has no image
    assert "ROC AUC of effusion" not in printed
    assert page_of(tmp_path / "out", "comparison.html").value("roc_auc", row="effusion", of="a") is None


def test_detectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = clustered_images(0, num_patients=30)
    rng = np.random.default_rng(1)
    noisy = [found._replace(scores=rng.random(len(found.scores))) for found in study.detections]
    for name, detections in (("a", noisy), ("b", study.detections)):
        rows = [
            plain_row({"image": f"{k}.nii", "patient": f"p{patient}", "found": found, "lesions": lesions})
            for k, (found, lesions, patient) in enumerate(zip(detections, study.lesions, study.patients, strict=True))
        ]
        (tmp_path / name).mkdir()
        DetectionEvaluation("Nodules", rows, ["nodule"], unit="scan").save(tmp_path / name)
        rebuild_report(tmp_path / name)
    result, printed = _compare(capsys, tmp_path / "a", tmp_path / "b", tmp_path / "out")
    expected = compare_detections(noisy, study.detections, study.lesions, study.patients)["cpm"]
    assert result["metrics"]["cpm"] == {**expected, "better": "b"}
    assert result["metrics"]["cpm"]["a"] == RunFolder(tmp_path / "a").metrics["metrics"]["cpm"]
    assert "B is better in" in printed
    assert not result["delong"]
    assert page_of(tmp_path / "out", "comparison.html").value("cpm", of="b") == expected["b"]
    with pytest.raises(ValueError, match="wanted runs of one task, got classification in A and detection in B"):
        compare_runs(_run(tmp_path / "classifier", _rows()), tmp_path / "a")


def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    rows = _rows()
    a = _run(tmp_path / "a", rows)
    other = [{**row, "label": 1 - row["label"]} if k < 3 else row for k, row in enumerate(rows)]
    moved = [{**row, "patient": "p99"} if k == 7 else row for k, row in enumerate(rows)]
    named = [{**row, "image": f"other/{row['image']}"} for row in rows]
    cases: list[tuple[list[dict[str, Any]], Any, str]] = [
        (rows, ("ill", "healthy"), r"same classes, got \['healthy', 'ill'\] in A and \['ill', 'healthy'\] in B"),
        (other, CLASSES, "3 of 40 images have another label in B than in A, such as 0.nii"),
        (moved, CLASSES, "1 of 40 images have another patient in B than in A, such as 7.nii"),
        (named, CLASSES, "no common image, A has 40 like 0.nii and B 40 like other/0.nii"),
        ([*rows, rows[5]], CLASSES, "5.nii occurs twice"),
        ([{**row, "label": None} for row in rows], CLASSES, "no scored image"),
    ]
    for k, (wrong, classes, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            compare_runs(a, _run(tmp_path / f"b{k}", wrong, classes))


def test_folders_that_are_not_evaluated_runs(tmp_path: Path) -> None:
    inside = _run(tmp_path / "seed-0", _rows())
    with pytest.raises(FileNotFoundError, match=rf"found no metrics.json; did you mean {inside}\?"):
        compare_runs(inside, tmp_path)
    (inside / "predictions.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"found no predictions.csv; evaluate it first"):
        compare_runs(inside, inside)
