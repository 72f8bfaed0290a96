"""Every bundle through its real command line: training, evaluation, inference, and what MONAI's tools make of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import verify_metadata, verify_net_in_out

from monai_pipelines.data.split import seen_hashes
from monai_pipelines.explain.scan import explain_scan
from monai_pipelines.report import rebuild_report
from monai_pipelines.report.words import at_threshold
from tests.bundles.conftest import (
    Bundle,
    Demo,
    bundle_of,
    check_detection,
    check_metrics,
    demo_of,
    options,
    read_rows,
    run_command,
)
from tests.cluster import small_cluster
from tests.new_process import run_module
from tests.personal_data import find_in_folder

pytestmark = pytest.mark.slow

NAME = "medmnist_classification"  # what is the same in every bundle is tried on this one


def _check_row(row: dict[str, str], threshold: float | None) -> None:
    prob = [float(value) for name, value in row.items() if name.startswith("prob_")]
    assert row["skipped"] == ""
    assert sum(prob) == pytest.approx(1, abs=1e-4)
    wanted = prob.index(max(prob)) if threshold is None else int(prob[1] >= threshold)
    assert row["predicted"] == str(wanted)


def _stored_threshold(demo: Demo) -> float | None:
    return torch.load(demo.run / "best.pt", weights_only=True)["threshold"]


def test_training_leaves_what_is_needed(bundle: Bundle, demo: Demo) -> None:
    top = {name.partition("/")[0] for name in demo.trained}
    assert top - {"cache", "features"} == {
        *("best.pt", "last.pt", "configs", "history.json", "history.png", "run.json", "tensorboard")
    }
    configs = {name: text for name, text in demo.trained.items() if name.startswith("configs/")}
    assert configs == {f"configs/{f.name}": f.read_bytes() for f in (bundle.root / "configs").iterdir() if f.is_file()}
    run = json.loads(demo.trained["run.json"])
    assert run["command"].startswith("python -m monai.bundle run --config_file ")
    assert "configs/demo.yaml" in run["command"]
    assert run["seed"] == 0
    checkpoint = torch.load(demo.run / "best.pt", weights_only=True)
    assert run["fingerprint"] == checkpoint["fingerprint"]
    assert run["chain"] == checkpoint["chain"]
    if "size" in bundle.case.small:
        assert run["chain"]["knobs"]["size"] == bundle.case.small["size"]
    assert [len(json.loads(demo.trained["history.json"])), checkpoint["epoch"]] == [1, 1]
    assert (checkpoint["threshold"] is None) == (bundle.parser("train").get("threshold_by") is None)
    assert not [name for name, content in demo.trained.items() if b"phantom-0" in content], "a patient"


def test_evaluation_from_elsewhere(bundle: Bundle, demo: Demo, tmp_path: Path) -> None:
    run = shutil.copytree(demo.run, tmp_path / "run")
    names = ["train", "demo", "tta"] if "tta" in bundle.overlays else ["train", "demo"]
    arguments = ["--bundle_root", str(bundle.root), *options(bundle, demo.data, run)]
    run_command(tmp_path, "run", "--run_id", "evaluate", "--config_file", str(bundle.config(*names)), *arguments)
    if bundle.detects:
        _check_detection(bundle, demo, run)
        return
    assert {"report.html", "roc.png", "confusion_matrix.png"} <= {file.name for file in run.iterdir()}
    metrics, rows = check_metrics(run), read_rows(run / "predictions.csv")
    assert {row["split"] for row in rows} == {"test"}
    assert len(rows) >= 2
    assert metrics["threshold"] == _stored_threshold(demo)
    for row in rows:
        _check_row(row, metrics["threshold"])
    if "tta" in names:
        assert min(float(row["spread"]) for row in rows) >= 0 < max(float(row["spread"]) for row in rows)


def _check_detection(bundle: Bundle, demo: Demo, run: Path) -> None:
    """What an evaluation of a detector leaves, and that its page is written again from the files alone."""
    pages = ("report.html", "metrics.json", "predictions.csv", "froc.png", "precision_recall.png")
    settings = {"bundle_root": str(bundle.root), "dataset_dir": str(demo.data), **bundle.case.small}
    metrics = check_detection(run, bundle.parser("train", "demo", **settings).get_parsed_content("cohort"))
    assert metrics["threshold"] == _stored_threshold(demo)
    assert metrics["threshold_by"] == "false_positives=1"
    before = {name: (run / name).read_bytes() for name in pages}
    for name in pages:
        (run / name).unlink()
    rebuild_report(run)
    assert {name: (run / name).read_bytes() for name in pages} == before


def test_inference_lists_bad_images_and_one_image_is_explained_alike(
    bundle: Bundle, demo: Demo, tmp_path: Path
) -> None:
    if bundle.case.spoil is None:
        source, num_good, reasons = tmp_path / "three.npz", 3, {}
        with np.load(next(demo.data.glob("*.npz"))) as arrays:
            np.savez(source, images=arrays["test_images"][:3])
            np.savez(tmp_path / "one.npz", images=arrays["test_images"][:1])
    else:
        source = tmp_path / "images"
        source.mkdir()
        num_good, reasons = bundle.case.spoil(demo.data, source)
    output = tmp_path / "predictions"
    arguments = ["--checkpoint", str(demo.run / "best.pt"), *options(bundle, source, output)]
    configs = str(bundle.config("inference", "demo"))
    result = run_command(tmp_path, "run", "--config_file", configs, "--bundle_root", str(bundle.root), *arguments)
    threshold = _stored_threshold(demo)
    how = "" if threshold is None else f" {at_threshold(threshold)}"
    assert f"{num_good} predicted{how}, {len(reasons)} skipped" in result.stdout
    rows = {row["image"]: row for row in read_rows(output / "predictions.csv")}
    assert len(rows) == num_good + len(reasons)
    if bundle.detects:
        assert all(reason in rows[name]["skipped"] for name, reason in reasons.items())
        files = [*output.glob("geojson/*.geojson"), *output.glob("label_maps/*.nii.gz")]
        assert len(files) == num_good
        with pytest.raises(ValueError, match="a detector, which draws its evidence itself"):
            explain_scan(demo.run, next(source.iterdir()), tmp_path / "explained")
        return
    for name, row in rows.items():
        if name in reasons:
            assert reasons[name] in row["skipped"]
            assert row["predicted"] == ""
        else:
            _check_row(row, _stored_threshold(demo))

    images = [tmp_path / "one.npz"] if source.is_file() else source.iterdir()
    image = min(path for path in images if path.name not in reasons)
    if bundle.name == "histology_slide_classification":
        with pytest.raises(ValueError, match="a slide; the inference of its bundle draws where the network looked"):
            explain_scan(demo.run, image, tmp_path / "explained")
        return
    summary = explain_scan(demo.run, image, tmp_path / "explained")
    row = next(iter(rows.values())) if source.is_file() else rows[image.name]
    for name, prob in summary["prob"].items():
        assert prob == pytest.approx(float(row[f"prob_{name}"]), abs=1e-3)
    assert (tmp_path / "explained" / summary["map"]).is_file()
    assert find_in_folder(tmp_path / "explained") == []


@pytest.mark.filterwarnings("ignore:No hash value provided")
def test_monais_own_checks_pass(bundle: Bundle, schema: dict[str, Any], tmp_path: Path) -> None:
    metadata = str(bundle.root / "configs" / "metadata.json")
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    verify_metadata(meta_file=metadata, filepath=str(tmp_path / "schema.json"))
    if bundle.detects:
        return  # its network gives lists of boxes, MONAI's check wants a tensor
    image = bundle.metadata["network_data_format"]["inputs"]["image"]
    shape = [64] * len(image["spatial_shape"]) if image["type"] == "image" else image["spatial_shape"]
    (config,) = bundle.config("train")
    small = {"_meta_::network_data_format::inputs::image::spatial_shape": shape}
    verify_net_in_out("network", meta_file=metadata, config_file=config, device="cpu", **small)


# ---- the same in every bundle


@pytest.mark.xdist_group(NAME)
def test_a_resume_with_other_settings_names_the_knob(tmp_path: Path) -> None:
    bundle, demo = bundle_of(NAME), demo_of(NAME)
    run = shutil.copytree(demo.run, tmp_path / "run")
    arguments = ["--resume", "True", "--max_epochs", "2", *options(bundle, demo.data, run)]
    configs = str(bundle.config("train", "demo"))
    command = ("run", "--config_file", configs, "--bundle_root", str(bundle.root), *arguments)
    result = run_command(tmp_path, *command, check=False)
    assert result.returncode == 1
    assert re.search(r"^error: .*max_epochs \(lr_scheduler.total_steps\): 4 there, 8 here", result.stderr, re.MULTILINE)
    assert (run / "last.pt").read_bytes() == demo.trained["last.pt"]


@pytest.mark.xdist_group(NAME)
def test_wrong_bundle_root_is_reported_in_one_line(tmp_path: Path) -> None:
    result = run_command(tmp_path, "run", "--config_file", *bundle_of(NAME).config("train"), check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("bundle_root '.'")
    assert last.endswith("has no configs/metadata.json: run from the bundle's folder or add --bundle_root FOLDER")


@pytest.mark.xdist_group("lung_ct_classification")
def test_bad_data_are_listed_last_with_all_problems(tmp_path: Path) -> None:
    bundle = bundle_of("lung_ct_classification")
    (tmp_path / "table.csv").write_text("image,label\nlost,0\nalso_lost,ill\n")
    arguments = options(bundle, tmp_path, tmp_path / "output")[:4]
    result = run_command(bundle.root, "run", "--config_file", "configs/train.yaml", *arguments, check=False)
    assert result.returncode == 1
    lines = result.stderr.rpartition("\nerror: ")[2].strip().splitlines()
    assert re.fullmatch(r".*table\.csv: \d problem\(s\)", lines[0])
    assert "line 2: lost: no such file or folder" in lines[1]
    assert "line 3: also_lost: no such file or folder" in lines[2]
    assert "line 3: also_lost: unknown label 'ill', wanted one of" in lines[3]


@pytest.mark.nightly
@pytest.mark.xdist_group(NAME)
def test_seeds_by_the_command_line(tmp_path: Path) -> None:
    bundle, demo = bundle_of(NAME), demo_of(NAME)
    arguments = ["--config_file", str(bundle.config("train", "demo")), "--bundle_root", str(bundle.root)]
    arguments += [*options(bundle, demo.data, tmp_path)[:2], "--max_epochs", "1"]
    command = ["-m", "monai_pipelines", "sweep", str(tmp_path), "--seeds", "2", "--", *arguments]
    result = subprocess.run([sys.executable, *command], cwd=bundle.root.parents[1], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    for seed in (0, 1):
        assert check_metrics(tmp_path / f"seed-{seed}")["run"]["seed"] == seed
    assert "seed-1/report.html" in (tmp_path / "index.html").read_text()


@pytest.mark.nightly
@pytest.mark.xdist_group("chest_xray_classification")
def test_a_cross_validation_on_a_cluster(tmp_path: Path) -> None:
    """Each patient is tested in one fold, and unknown to the training of it."""
    bundle, demo = bundle_of("chest_xray_classification"), demo_of("chest_xray_classification")
    arguments = ["--config_file", str(bundle.config("train", "demo")), "--bundle_root", str(bundle.root)]
    small = options(bundle, demo.data, tmp_path)
    arguments += [*small[:2], *small[4:], "--max_epochs", "1"]
    with small_cluster() as cluster:
        scheduler = ["--scheduler", cluster.scheduler_address]
        command = ["sweep", str(tmp_path), "--seeds", "1", "--folds", "3", *scheduler, "--"]
        result = run_module("monai_pipelines", *command, *arguments, cwd=bundle.root.parents[1])
    assert result.returncode == 0, result.stdout + result.stderr
    tested: list[str] = []
    for fold in (1, 2, 3):
        run = tmp_path / f"seed-0-fold-{fold}"
        tests = {row["image"] for row in read_rows(run / "predictions.csv")}
        tested += sorted(tests)
        card = torch.load(run / "best.pt", weights_only=True)["split"]
        assert card["split_fractions"] == [fold, 3]
        assert seen_hashes([{"name": name} for name in tests]).isdisjoint(card["seen"])
    assert len(tested) == len(set(tested))
    assert ">3 folds" in (tmp_path / "index.html").read_text()
