from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_pipelines.report.index import write_index
from tests.report.pages import page_of

RUN = {"config_files": ["train.yaml"], "data_sha256": "ab", "fingerprint": "f00d", "command": "python -m x"}


def _run(folder: Path, auc: float | None, run: dict[str, Any] | None = None, **more: Any) -> None:
    folder.mkdir(parents=True)
    run = {"seed": 7, "fingerprint": "f00d"} if run is None else run
    metrics = {
        **{"num_images": 1200, "num_patients": 60, "shortcut": {"roc_auc": 0.6}, "intervals": {}, "threshold": 0.25},
        **{"metrics": {"roc_auc": auc, "accuracy": 0.75}, "run": run},
        **more,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "report.html").touch()


def _trained(seed: int, split_seed: int, settings: Any = None, overrides: Any = None, **more: Any) -> dict[str, Any]:
    seeds = {"seed": seed, "split_seed": split_seed}
    settings = {**seeds, "max_epochs": 3, **(settings or {})}
    overrides = {**seeds, "output_dir": f"runs/{seed}", **(overrides or {})}
    return {**RUN, **seeds, "settings": settings, "overrides": overrides, **more}


def test_every_run_is_a_line(tmp_path: Path) -> None:
    _run(tmp_path / "lungs" / "seed-0", 0.9, intervals={"roc_auc": [0.85, 0.94]})
    _run(tmp_path / "x & y", None, num_patients=None, shortcut=None, run={}, threshold=[0.4, 0.5], members=[{}] * 3)
    (tmp_path / "lungs" / "seed-0" / "evaluation.json").write_text('{"title": "Lungs <CT>"}')
    (tmp_path / "lungs" / "seed-0" / "configs").mkdir()
    (tmp_path / "lungs" / "seed-0" / "configs" / "metadata.json").write_text('{"name": "Lung CT classification"}')
    file = write_index(tmp_path)
    assert file == tmp_path / "index.html"
    page = page_of(tmp_path, "index.html")
    metrics = ("num_images", "roc_auc", "accuracy", "ece", "shortcut")
    rows = {row: [page.value(name, row=row) for name in metrics] for row in ("lungs/seed-0", "x & y")}
    assert rows == {"lungs/seed-0": [1200, 0.9, 0.75, None, 0.6], "x & y": [1200, None, 0.75, None, None]}
    assert page.cell("roc_auc", row="lungs/seed-0").interval == [0.85, 0.94]
    assert [cell.shown for cell in page.find("num_images")] == ["1,200 60 patients", "1,200"]
    for content in ("Lungs <CT>", "Lung CT classification", "ensemble of 3", "f00d"):
        assert content in page.text
    assert page.links == ["lungs/seed-0/report.html", "x%20%26%20y/report.html"]
    assert not re.search(r'(src|href)="[a-z]+:', file.read_text())
    assert page.sections == ["runs"]


def test_a_title_that_is_the_name_of_the_bundle_is_shown_once(tmp_path: Path) -> None:
    _run(tmp_path / "a", 0.9)
    (tmp_path / "a" / "configs").mkdir()
    for bundle, num in (("Lung CT classification", 1), ("lung_ct_classification", 0), ("other", 1)):
        (tmp_path / "a" / "evaluation.json").write_text('{"title": "Lung CT classification"}')
        (tmp_path / "a" / "configs" / "metadata.json").write_text(json.dumps({"name": bundle}))
        assert write_index(tmp_path).read_text().count(">Lung CT classification<") == num


def test_what_is_sorted_by(tmp_path: Path) -> None:
    _run(tmp_path / "a", None)
    page = write_index(tmp_path).read_text()
    head = re.findall(r'<button type="button">(.*?)</button>', page)
    values = re.findall('data-value="(.*?)"', page)
    assert dict(zip(head, values, strict=True)) == {
        **{"Run": "a", "Bundle": "", "Seed": "7", "Networks": "1", "Tested on": "1200", "ROC AUC": ""},
        **{"Accuracy": "0.75", "ECE": "", "Shortcut": "0.6", "Threshold": "0.25", "Chain": "f00d"},
    }


def test_what_tells_runs_apart_is_a_column(tmp_path: Path) -> None:
    settings = {"network": "ResNet", "num_parameters": 2796258, "overlays": "demo", "max_epochs": 25, "batch_size": 16,
                "learning_rate": 0.003, "inferer": "AutocastInferer", "data": "ab12"}  # fmt: skip
    _run(tmp_path / "new", 0.9, _trained(0, 0, settings))
    _run(tmp_path / "old", 0.8)
    page = write_index(tmp_path).read_text()
    heads = re.findall(r'<button type="button">(.*?)</button>', page)
    assert heads[-9:] == [
        *("Architecture", "Parameters", "Overlays", "Epochs", "Batch", "Learning rate", "Inferer", "Data", "Chain")
    ]
    rows = [row.split('data-label="Architecture"')[1] for row in re.findall("<tr data-row=.*?</tr>", page, re.S)]
    values = [re.findall('data-value="(.*?)"', row)[:8] for row in rows]
    assert values == [["ResNet", "2796258", "demo", "25", "16", "0.003", "AutocastInferer", "ab12"], [""] * 8]
    assert ">2,796,258</td>" in page


def test_runs_that_differ_only_in_their_seed_are_summarized(tmp_path: Path) -> None:
    aucs = [0.8, 0.9, 0.85]
    for seed, auc in enumerate(aucs):
        shortcut = {"roc_auc": 0.5 + seed / 10} if seed else None
        _run(tmp_path / f"seed-{seed}", auc, _trained(seed, seed), shortcut=shortcut)
    for name, run, more in (
        ("other-settings", _trained(3, 3, settings={"max_epochs": 4}), {}),
        ("other-override", _trained(4, 4, overrides={"network_def::dropout": 0.5}), {}),
        ("other-configs", _trained(5, 5, config_files=["train.yaml", "demo.yaml"]), {}),
        ("other-data", _trained(6, 6, data_sha256="cd"), {}),
        ("other-rule", _trained(7, 7), {"threshold_by": "youden"}),
        ("ensemble", _trained(8, 8), {"members": [{}, {}]}),
        ("unknown", {"seed": 9}, {}),
    ):
        _run(tmp_path / name, 0.1, run, **more)
    _run(tmp_path / "again", 0.85, _trained(2, 2))  # a copy of seed-2 is not another seed
    _run(tmp_path / "trained-again", 0.1, _trained(9, 9))
    (tmp_path / "trained-again" / "run.json").write_text(json.dumps({**_trained(9, 9), "command": "python -m y"}))
    write_index(tmp_path)
    page = page_of(tmp_path, "index.html")
    assert page.sections == ["seeds", "runs"]
    assert page.value("num_runs") == 3
    for name, values in (("roc_auc", aucs), ("accuracy", [0.75] * 3), ("shortcut", [0.6, 0.7])):
        cell = page.cell(name, section="seeds")
        assert cell.value == pytest.approx(np.mean(values))
        assert float(cell.attributes["data-std"]) == pytest.approx(np.std(values, ddof=1))
        assert cell.interval == [min(values), max(values)]
    assert page.value("ece", section="seeds") is None
    assert "different-splits" in page.notes


def test_seeds_on_one_split_and_undefined_metrics(tmp_path: Path) -> None:
    for seed, auc in ((1, 0.8), (2, None), (3, 0.9)):
        _run(tmp_path / f"seed-{seed}", auc, _trained(seed, 0), shortcut=None if seed == 1 else {"roc_auc": 0.6})
    write_index(tmp_path)
    page = page_of(tmp_path, "index.html")
    assert "same-splits" in page.notes
    assert page.value("num_runs") == 3
    assert page.value("roc_auc", section="seeds") == pytest.approx(0.85)
    assert [
        page.cell(name, section="seeds").shown.count("2 of 3 runs") for name in ("roc_auc", "shortcut", "accuracy")
    ] == [1, 1, 0]


def test_folds_and_seeds_are_one_group(tmp_path: Path) -> None:
    aucs = {}
    for seed in (1, 2):
        for fold in (1, 2, 3):
            fractions = {"split_fractions": [fold, 3]}
            run = _trained(seed, seed, settings={"split_fractions": f"{fold}, 3"}, overrides=fractions, **fractions)
            aucs[seed, fold] = 0.6 + 0.1 * seed + 0.02 * fold
            _run(tmp_path / f"seed-{seed}-fold-{fold}", aucs[seed, fold], run)
    other = {"split_fractions": [0.7, 0.15, 0.15]}
    _run(tmp_path / "no-fold", 0.1, _trained(3, 3, settings={"split_fractions": "0.7, 0.15, 0.15"}, **other))
    write_index(tmp_path)
    page = page_of(tmp_path, "index.html")
    assert page.value("num_runs") == 6
    assert "folds" in page.notes
    cell = page.cell("roc_auc", section="seeds")
    assert cell.value == pytest.approx(np.mean([*aucs.values()]))
    assert float(cell.attributes["data-std"]) == pytest.approx(np.std([*aucs.values()], ddof=1))


def test_runs_that_cannot_be_read_are_listed_with_the_reason(tmp_path: Path) -> None:
    _run(tmp_path / "good", 0.9)
    for name in ("cut", "list", "old", "page"):
        _run(tmp_path / name, 0.9)
    (tmp_path / "cut" / "metrics.json").write_text('{"metrics": ')
    (tmp_path / "list" / "metrics.json").write_text("[]")
    (tmp_path / "old" / "metrics.json").write_text('{"num_scans": 3, "run": {}}')
    (tmp_path / "page" / "report.html").unlink()
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "run.json").write_text("{}")
    page = write_index(tmp_path).read_text()
    assert page.count("<tr data-row=") == 1
    reasons = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', page))
    assert {name: reason.partition("metrics.json")[1] for name, reason in reasons.items()} == {
        **dict.fromkeys(("cut", "list", "old"), "metrics.json"),
        **dict.fromkeys(("page", "training"), ""),
    }


def test_broken_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    write_index(tmp_path)
    page = page_of(tmp_path, "index.html")
    assert page.sections == ["broken"]
    assert "script" not in page.tags


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run in it"):
        write_index(tmp_path)


def test_written_again_it_is_the_same(tmp_path: Path) -> None:
    for name in ("b", "a"):
        _run(tmp_path / name, 0.9)
    first = write_index(tmp_path).read_bytes()
    assert write_index(tmp_path).read_bytes() == first
