"""From a run: predictions and an external evaluation of every bundle, without repeating anything of the training."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.utils import set_determinism

from monai_pipelines import load_run
from monai_pipelines.report import rebuild_report
from monai_pipelines.runs.inference import training_config
from tests.bundles.conftest import Bundle, Demo, bundle_of, demo_of, read_rows, run_command

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    set_determinism(None)


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def external(bundle: Bundle, demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's test images as data of their own, with the class "their X" for X."""
    folder = tmp_path_factory.mktemp("external")
    cohort = training_config(demo.run).get_parsed_content("cohort")
    if bundle.case.spoil is None:
        with np.load(next(demo.data.glob("*.npz"))) as arrays:
            np.savez(folder / "own.npz", images=arrays["test_images"], labels=arrays["test_labels"])
        return folder / "own.npz"
    rows = [
        {"image": str(Path(item["image"]).resolve()), "site": f"site {k % 2}"} for k, item in enumerate(cohort.test)
    ]
    if bundle.detects:
        known = {name for item in cohort.test for name in (item["name"], Path(item["name"]).name)}
        boxes = [row for row in read_rows(demo.data / "boxes.csv") if row["image"] in known]
        _write(folder / "boxes.csv", [{**row, "image": Path(row["image"]).name} for row in boxes])
    else:
        for row, item in zip(rows, cohort.test, strict=True):
            row["label"] = f"their {cohort.classes[item['label']]}"
    _write(folder / "table.csv", rows)
    return folder


def test_evaluation_elsewhere_and_predictions_agree(bundle: Bundle, demo: Demo, external: Path, tmp_path: Path) -> None:
    run, has_table = load_run(demo.run), external.is_dir()
    classes = training_config(demo.run).get_parsed_content("classes")
    rename = {f"their {name}": name for name in classes} if has_table and not bundle.detects else None
    out = tmp_path / "out"
    metrics = run.evaluate(external, out, rename=rename, subgroups=["site"] if has_table else [])
    assert metrics["threshold"] == torch.load(demo.run / "best.pt", weights_only=True)["threshold"]
    assert (metrics["compared_with_training"], metrics["audit"], list(metrics["splits"])) == (True, None, ["test"])
    assert list(metrics["subgroups"]) == (["site"] if has_table else [])
    assert metrics["run"]["fingerprint"] == json.loads(demo.trained["run.json"])["fingerprint"]
    page = (out / "report.html").read_text()
    assert 'data-note="external"' in page
    rebuild_report(out)
    assert (out / "report.html").read_text() == page

    predicted = {row["image"]: row for row in run.predict(external / "table.csv" if has_table else external)}
    rows = read_rows(out / "predictions.csv")
    assert {row["unit"] for row in rows} == {metrics["run"]["settings"].get("unit", rows[0]["unit"])}
    assert set(predicted) == {row["image"] for row in rows}
    for row in rows:
        mine = predicted[row["image"]]
        if not bundle.detects:
            for name, prob in mine["prob"].items():
                assert prob == pytest.approx(float(row[f"prob_{name}"]), abs=1e-4)
            assert mine["predicted"] == row["predicted_name"]
        elif row["score"]:
            assert float(row["score"]) in [pytest.approx(box["score"], abs=1e-4) for box in mine["boxes"]]


def test_images_that_were_seen_in_training_are_refused(bundle: Bundle, demo: Demo, tmp_path: Path) -> None:
    data = demo.data
    if bundle.case.spoil is None:
        with np.load(next(data.glob("*.npz"))) as arrays:
            np.savez(tmp_path / "seen.npz", images=arrays["train_images"], labels=arrays["train_labels"])
        data = tmp_path / "seen.npz"
    with pytest.raises(ValueError, match="test images have the contents of images seen in training"):
        load_run(demo.run).evaluate(data, tmp_path / "out")


# ---- the same in every bundle

NAME = "fundus_classification"


@pytest.mark.xdist_group(NAME)
def test_inference_needs_the_checkpoint_alone(tmp_path: Path) -> None:
    """By the command line of the bundle, with a run whose train.yaml was edited."""
    bundle, demo = bundle_of(NAME), demo_of(NAME)
    run = shutil.copytree(demo.run, tmp_path / "run")
    classes = ["fine", "diseased"]
    text = (run / "configs" / "train.yaml").read_text()
    edited = text.replace("classes: [normal, disease]", f"classes: {classes}").replace(
        "chain: {_target_", "sides: 32\nchain: {_target_"
    )
    (run / "configs" / "train.yaml").write_text(edited)
    record = json.loads((run / "run.json").read_text())
    record["overrides"] |= {"size": ["@sides", 32]}
    (run / "run.json").write_text(json.dumps(record))
    checkpoint = torch.load(run / "best.pt", weights_only=True)
    torch.save({**checkpoint, "classes": classes}, run / "best.pt")
    arguments = ["--dataset_dir", str(demo.data / "disease"), "--checkpoint", str(run / "best.pt")]
    arguments += ["--output_dir", str(tmp_path / "out"), "--config_file", "configs/inference.yaml"]
    result = run_command(bundle.root, "run", *arguments)
    assert f"wrote {tmp_path / 'out'}: predictions.csv" in result.stdout
    row = read_rows(tmp_path / "out" / "predictions.csv")[0]
    assert float(row["prob_diseased"]) == pytest.approx(
        load_run(run).predict(demo.data / "disease")[0]["prob"]["diseased"], abs=1e-4
    )
    in_run = [*arguments, "--output_dir", str(run)]
    assert "whose evaluation would be replaced" in run_command(bundle.root, "run", *in_run, check=False).stderr
    named = run_command(bundle.root, "run", *arguments, "--size", "[48, 48]", check=False)
    assert "resize.size: [32, 32] there, [48, 48] here" in named.stderr, "what is named stays"


@pytest.mark.xdist_group(NAME)
def test_results_of_other_data_do_not_replace_those_of_a_run() -> None:
    demo = demo_of(NAME)
    with pytest.raises(FileExistsError, match="whose evaluation would be replaced; name another"):
        load_run(demo.run).predict(demo.data / "disease", demo.run)
    with pytest.raises(FileExistsError, match="whose evaluation would be replaced; name another"):
        load_run(demo.run).evaluate(demo.data, demo.run)


@pytest.mark.xdist_group(NAME)
def test_test_images_alone_and_beside_the_training_data(tmp_path: Path) -> None:
    bundle, demo = bundle_of(NAME), demo_of(NAME)
    cohort = training_config(demo.run).get_parsed_content("cohort")
    for item in cohort.test:
        target = tmp_path / "only" / "test" / cohort.classes[item["label"]] / Path(item["image"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(item["image"], target)
    command = ["run", "--config_file", str(bundle.config("train", "demo")), "--size", "[32, 32]"]
    only = [*command, "--dataset_dir", str(tmp_path / "only"), "--output_dir", str(tmp_path / "out")]
    refused = run_command(bundle.root, *only, check=False)
    assert "error: the data have no image in train and validation" in refused.stderr
    assert not (tmp_path / "out" / "best.pt").exists()
    evaluate = [*only, "--run_id", "evaluate", "--checkpoint", str(demo.run / "best.pt")]
    result = run_command(bundle.root, *evaluate)
    assert "report.html, metrics.json, predictions.csv, explanations" in result.stdout
    alone = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert alone["num_images"] == len(cohort.test)
    beside = ["--dataset_dir", str(demo.data), "--test_dir", str(tmp_path / "only" / "test")]
    with pytest.raises(AssertionError, match="same file as"):  # they are also in the training data
        run_command(bundle.root, *command, *beside, "--output_dir", str(tmp_path / "run"), "--max_epochs", "1")


@pytest.mark.xdist_group(NAME)
def test_ensembles(tmp_path: Path) -> None:
    demo = demo_of(NAME)
    other = shutil.copytree(demo.run, tmp_path / "other")
    checkpoint = torch.load(other / "best.pt", weights_only=True)
    torch.save({**checkpoint, "temperature": 3.0, "threshold": 0.2}, other / "best.pt")
    image = min((demo.data / "disease").iterdir())
    rows = [load_run(source).predict(image)[0] for source in (demo.run, other, f"{demo.run},{other}")]
    probs = [row["prob"]["disease"] for row in rows]
    assert probs[2] == pytest.approx(np.mean(probs[:2]), abs=1e-5)
    assert rows[2]["threshold"] == pytest.approx((rows[0]["threshold"] + 0.2) / 2)
    assert rows[2]["spread"] == pytest.approx(np.std(probs[:2]), abs=1e-5)
