from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_pipelines.metrics import Detections, Lesions
from monai_pipelines.report import DetectionEvaluation, detection, detection_page, detection_pictures, rebuild_report
from monai_pipelines.report.detection import lesion_table, report_detection
from monai_pipelines.report.detection_results import detection_results, plain_row
from monai_pipelines.report.index import write_index
from monai_pipelines.transforms.boxes import find_box_affine
from tests.report.pages import page_of, strict

pytestmark = pytest.mark.usefixtures("few_resamples")

PNG = b"\x89PNG"
RUN = {
    "command": "python -m x",
    "source": "/data/x",
    **{"chain": None, "augmentation": None, "config_files": [], "data_sha256": "ab", "fingerprint": "f00d"},
    **{"settings": {"max_epochs": 3}, "overrides": {}},
}
HISTORY = [{"epoch": k, "train": {"loss": 1 / k}, "val": {"cpm": 0.5 + k / 10}} for k in (1, 2, 3)]
UNSAFE = "<b>a&b</b>"


class _Dataset:
    """Images of one size, in which a lesion is bright."""

    def __init__(self, split, boxes, dims, classes, skipped=()):
        self.skipped = [{"name": name, "patient": name, "skipped": "truncated"} for name in skipped]
        self.data = [
            {
                **{"name": f"{split}/{UNSAFE if k == 0 else k}.nii", "patient": f"{split}-p{k // 2}", "split": split},
                **{"site": "ab"[k % 2], "boxes": np.array(of_image, float).reshape(-1, 2 * dims)},
                **{"box_labels": np.arange(len(of_image)) % len(classes), "box_ignore": np.arange(len(of_image)) == 3},
            }
            for k, of_image in enumerate(boxes)
        ]
        self.dims, self.loaded = dims, []

    def __getitem__(self, index):
        self.loaded.append(index)
        affine = torch.eye(4)
        affine[:3, 3] = 0.5  # the first voxel's edge is at 0
        image = MetaTensor(torch.zeros(1, *[32] * self.dims), affine=affine if self.dims == 3 else torch.eye(4))
        return {**self.data[index], "image": image, "box_affine": find_box_affine(image)}


def _case(dims=3, classes=("mass", "nodule"), num=8, lesions=True, threshold=0.5, **trained):
    """Rows of test images with hits, misses and false alarms, their data sets and the model."""
    rng = np.random.default_rng(0)

    def boxes(count):
        low = rng.integers(0, 24, (count, dims))
        return np.concatenate([low, low + rng.integers(3, 8, (count, dims))], axis=1).tolist()

    per_split = {
        split: [boxes(k % 5) if lesions else [] for k in range(num)] for split in ("train", "validation", "test")
    }
    skipped = {"train": [], "validation": [], "test": ["cut.nii"]}
    datasets = SimpleNamespace(**{s: _Dataset(s, b, dims, classes, skipped[s]) for s, b in per_split.items()})
    rows = []
    for item in datasets.test.data:
        found = np.concatenate([item["boxes"], np.array(boxes(2), float)])
        labels = np.concatenate([item["box_labels"], [0, len(classes) - 1]])
        found = Detections(found, rng.random(len(found)).round(3), labels)
        truth = Lesions(item["boxes"], item["box_labels"], item["box_ignore"])
        rows.append({"image": item["name"], "patient": item["patient"], "found": found, "lesions": truth})
    decisions = SimpleNamespace(
        **{"threshold": threshold, "threshold_by": "false_positives=1", "epoch": 2, "members": None, "key_metric": None}
        | trained
    )
    return rows, datasets, SimpleNamespace(model=SimpleNamespace(classes=classes), decisions=decisions, run_folder=Path)


def _baseline(rows):
    return {"name": f"simple {UNSAFE}", "rows": [Detections(row["found"].boxes[:1], [0.5], [0]) for row in rows]}


def _undrawn(monkeypatch):
    for module in (detection_page, detection_pictures):
        monkeypatch.setattr(module, "png_bytes", lambda figure, dpi: PNG)
    monkeypatch.setattr(detection, "log_evaluation", lambda *args, **options: None)


def _report(folder, rows, datasets, trained, **options):
    folder.mkdir(exist_ok=True)
    (folder / "history.json").write_text(json.dumps(HISTORY))
    (folder / "run.json").write_text(json.dumps(RUN))
    return report_detection(folder, f"Lesions {UNSAFE}", trained, rows, datasets, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory, few_resamples):
    """A report with everything, drawn."""
    rows, datasets, trained = _case()
    folder = tmp_path_factory.mktemp("run")
    metrics = _report(folder, rows, datasets, trained, subgroups=["site"], baseline=_baseline(rows))
    return folder, metrics, rows, datasets


def test_metrics_are_those_of_the_rows(written):
    folder, metrics, rows, datasets = written
    assert strict(folder / "metrics.json") == metrics
    assert metrics["task"] == "detection"
    plain = [
        {**plain_row(row), "columns": {"site": item["site"]}}
        for row, item in zip(rows, datasets.test.data, strict=True)
    ]
    wanted = detection_results(plain, ["mass", "nodule"], [0.5, 0.5])
    for name in ("metrics", "intervals", "per_class", "sizes", "outcomes", "threshold"):
        assert metrics[name] == wanted[name], name
    assert metrics["skipped"] == [{"image": "cut.nii", "reason": "truncated"}]
    assert metrics["audit"]["patients_in_several_splits"] == 0
    assert (metrics["epoch"], metrics["threshold_by"], metrics["run"]["source"]) == (2, "false_positives=1", "x")
    assert metrics["splits"]["test"] == lesion_table(datasets.test.data, ["mass", "nodule"])
    assert metrics["splits"]["test"]["num_without_lesions"] == metrics["num_without_lesions"] == 2
    assert metrics["num_ignored"] == metrics["splits"]["test"]["num_ignored"] == 1
    assert list(metrics["subgroups"]["site"]) == ["a", "b"]


def test_the_page_shows_the_numbers(written):
    folder, metrics, _, _ = written
    page = page_of(folder)
    for name in ("cpm", "sensitivity", "false_positives_per_image", "ap50", "image_roc_auc"):
        for section in (None, "metrics"):
            cell = page.cell(name, of="model", section=section)
            assert cell.value == metrics["metrics"][name]
            assert cell.interval == metrics["intervals"].get(name)
    for name in ("cpm", "ap50", "sensitivity_at_0.125"):
        assert page.value(name, of="baseline", section="metrics") == metrics["baseline"]["metrics"][name]
    for kind, number in metrics["outcomes"].items():
        assert page.value(kind, section=None) == number
    for name, band in metrics["sizes"].items():
        cell = page.cell("sensitivity", section="sizes", row=name)
        assert (cell.value, cell.interval) == (band["sensitivity"], band["interval"])
        assert page.value("num_lesions", section="sizes", row=name) == band["num_lesions"]
    for name, table in metrics["per_class"].items():
        assert page.value("cpm", section="per-class", row=name) == table["cpm"]
        assert page.value("num_lesions", section="per-class", row=name) == table["num_lesions"]
        assert (
            page.value("num_lesions", of="train", row=name)
            == metrics["splits"]["train"]["classes"][name]["num_lesions"]
        )
    assert page.value("cpm", section="subgroups", row="b") == metrics["subgroups"]["site"]["b"]["metrics"]["cpm"]
    assert {"hit-rule", "chosen", "few-patients", "cut-off", "ignored", "bands-mm", "no-subgroups"} - page.notes == {
        "no-subgroups"
    }
    assert page.sections == [
        *("data", "metrics", "curves", "sizes", "per-class", "subgroups", "misses", "false-alarms", "hits"),
        *("history", "skipped", "limits", "run"),
    ]


def test_the_page_is_self_contained_and_names_are_escaped(written):
    folder = written[0]
    page, text = page_of(folder), (folder / "report.html").read_text()
    assert all(link.startswith("data:image/png;base64,") for link in page.pictures)
    assert {"b", "script"} & (page.tags - {"b"}) == set()
    assert UNSAFE not in text
    assert UNSAFE in page.text
    assert not [link for link in page.links if link.startswith("#") and link[1:] not in page.sections]


def test_pictures_are_those_of_the_findings(written):
    folder, metrics, _, datasets = written
    pictures = json.loads((folder / "evaluation.json").read_text())["pictures"]
    kinds = [picture["kind"] for picture in pictures]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        kind: min(number, detection_pictures.NUM) for kind, number in metrics["outcomes"].items()
    }
    scores = [picture["score"] for picture in pictures if picture["kind"] == "false_alarm"]
    assert scores == sorted(scores, reverse=True)
    assert all(picture["score"] >= 0.5 for picture in pictures if picture["kind"] != "miss")
    assert all(picture["score"] is None or picture["score"] < 0.5 for picture in pictures if picture["kind"] == "miss")
    assert len(datasets.test.loaded) == len({picture["image"] for picture in pictures})
    text = (folder / "report.html").read_text()
    assert [text.count(f'data-finding="{kind}"') for kind in ("hit", "miss")] == [
        kinds.count("hit"),
        kinds.count("miss"),
    ]
    for picture in pictures:
        assert (folder / picture["file"]).read_bytes().startswith(PNG)


def test_rebuilt_page_is_the_first_one_byte_for_byte(written, tmp_path):
    folder = shutil.copytree(written[0], tmp_path / "moved")
    first = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    for name in ("report.html", "metrics.json", "froc.png", "precision_recall.png", "size.png", "history.png"):
        (folder / name).unlink()
    assert rebuild_report(folder) == written[1]
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == first
    next((folder / "pictures").iterdir()).unlink()
    with pytest.raises(ValueError, match="the picture is missing: run the evaluation again"):
        rebuild_report(folder)


def test_tensorboard_has_curves_pictures_and_metrics(written):
    events = EventAccumulator(str(written[0] / "tensorboard" / "evaluation")).Reload()
    tags = events.Tags()
    assert {"froc/test", "precision_recall/test", "size/test", "findings/hit-0", "findings/miss-0"} <= set(
        tags["images"]
    )
    assert events.Scalars("metrics/cpm")[0].value == pytest.approx(written[1]["metrics"]["cpm"])


def test_the_index_lists_detection_runs_apart(written, tmp_path):
    shutil.copytree(written[0], tmp_path / "lesions")
    classifier = tmp_path / "classes"
    classifier.mkdir()
    other = {"num_images": 3, "num_patients": 3, "shortcut": None, "intervals": {}, "threshold": 0.25, "run": {}}
    (classifier / "metrics.json").write_text(json.dumps({**other, "metrics": {"roc_auc": 0.75}}))
    (classifier / "report.html").touch()
    write_index(tmp_path)
    page, metrics = page_of(tmp_path, "index.html"), written[1]
    assert page.value("roc_auc", row="classes") == 0.75
    assert not page.find("roc_auc", row="lesions")
    for name in ("cpm", "ap50", "image_roc_auc", "sensitivity", "false_positives_per_image"):
        assert page.value(name, row="lesions") == metrics["metrics"][name]
        assert page.cell(name, row="lesions").interval == metrics["intervals"].get(name)
    assert page.value("baseline", row="lesions") == metrics["baseline"]["metrics"]["cpm"]


def test_images_of_one_class(tmp_path, monkeypatch):
    _undrawn(monkeypatch)
    rows, datasets, trained = _case(dims=2, classes=("lesion",), num=6, threshold=[0.5], threshold_by=None)
    metrics = _report(tmp_path, rows, datasets, trained, unit="image")
    page = page_of(tmp_path)
    assert {"by-hand", "bands-px", "no-baseline", "no-subgroups"} <= page.notes
    assert "per-class" not in page.sections
    assert metrics["threshold"] == [0.5]
    assert all(name.endswith(("px", "px_or_more")) for name in metrics["sizes"])
    assert DetectionEvaluation.read(tmp_path).rows == [
        {**plain_row(row), "split": "test", "columns": {}} for row in rows
    ]


def test_without_lesions_nothing_is_invented(tmp_path, monkeypatch):
    _undrawn(monkeypatch)
    rows, datasets, trained = _case(lesions=False, num=4)
    metrics = _report(tmp_path, rows, datasets, trained, baseline=_baseline(rows))
    assert {name for name, value in metrics["metrics"].items() if value is not None} == {"false_positives_per_image"}
    assert "no-lesions" in page_of(tmp_path).notes
    assert not (tmp_path / "size.png").exists()
    strict(tmp_path / "metrics.json")


def test_without_a_threshold_nothing_is_counted(tmp_path, monkeypatch):
    _undrawn(monkeypatch)
    members = [
        SimpleNamespace(_asdict=lambda: {"file": "a.pt", "epoch": 1, "temperature": None, "threshold": [None, 0.5]})
    ]
    rows, datasets, trained = _case(threshold=None, threshold_by=None, num=5, members=members * 2)
    metrics = _report(tmp_path, rows, datasets, trained)
    page = page_of(tmp_path)
    assert metrics["outcomes"] is None
    assert {"no-threshold", "no-operating-point", "ensemble"} <= page.notes
    assert not {"misses", "hits", "false-alarms"} & set(page.sections)
    shown_by_one = _case(threshold=[None, 0.5], num=5)
    metrics = _report(tmp_path, *shown_by_one)
    assert metrics["per_class"]["mass"]["sensitivity"] == metrics["per_class"]["mass"]["false_positives_per_image"] == 0


def test_wrong_rows_are_an_error(tmp_path):
    rows, datasets, trained = _case(num=3)
    with pytest.raises(ValueError, match="wanted a row for each of 3 test scans, got 2"):
        _report(tmp_path, rows[:2], datasets, trained)
    with pytest.raises(ValueError, match=r"wanted rows in the order of the test scans, got test/2\.nii for"):
        _report(tmp_path, rows[::-1], datasets, trained)
    with pytest.raises(ValueError, match="wanted a row of the baseline for each of 3 test scans, got 0"):
        _report(tmp_path, rows, datasets, trained, baseline={"name": "x", "rows": []})
    with pytest.raises(KeyError, match="no column sex; there are"):
        _report(tmp_path, rows, datasets, trained, subgroups=["sex"])
    with pytest.raises(TypeError, match="wanted a list of columns"):
        _report(tmp_path, rows, datasets, trained, subgroups="site")
