"""Several seeds: what is started, what is left alone, and what is told of them."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_pipelines.report.seeds import repeat_run, seed_commands, summarize_seeds
from monai_pipelines.report.seeds_page import seeds_figure

# Stands for monai.bundle: notes what it was asked for, and leaves what a run leaves.
PROGRAM = """
import json, pathlib, shlex, shutil, sys, ast
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
seed, folder = int(options["--seed"]), pathlib.Path(options["--output_dir"])
files = ast.literal_eval(options["--config_file"])
with open("started.jsonl", "a") as file:
    print(json.dumps([seed, [pathlib.Path(name).name for name in files]]), file=file)
settings = "".join(pathlib.Path(name).read_text() for name in files)
if f"fail: {seed}" in settings:
    print("many words\\n" * 100, "out of luck")
    sys.exit(3)
if files[-1].endswith("evaluate.yaml"):
    auc = 0.8 + 0.05 * seed
    names = ("roc_auc", "balanced_accuracy", "recall", "specificity", "f1")
    metrics = {"num_scans": 4, "num_patients": None, "metrics": dict.fromkeys(names, auc), "intervals": {},
               "threshold": None, "shortcut_name": "colour", "shortcut": dict.fromkeys(names, 0.86),
               "explanations": [{"tile_auc": auc / 2, "num_annotated": 2}] if seed > 1 else [],
               "run": json.loads((folder / "run.json").read_text())}
    metrics["metrics"]["f1"] = None if seed == 1 else auc
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "predictions.csv").write_text("image,prob\\n" + "".join(f"{k}.png,1\\n" for k in range(seed, seed + 4)))
else:
    shutil.copytree("configs", folder / "configs", dirs_exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"command": shlex.join(["python", *sys.orig_argv[1:]])}))
"""


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a program and configs."""
    configs = tmp_path / "configs"
    configs.mkdir()
    for name in ("train", "evaluate"):
        (configs / f"{name}.yaml").write_text(f"name: {name}\n")
    (configs / "seeds.yaml").write_text("run: [{_target_: monai_pipelines.report.seeds.repeat_run}]\n")
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    _call(monkeypatch)
    return tmp_path


def _call(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    """As if this had been started by a command line."""
    files = "['configs/train.yaml','configs/seeds.yaml']"
    command = ["python", "program.py", "--config_file", files, "--n_seeds", "3", *options]
    monkeypatch.setattr(sys, "orig_argv", command)


def _repeat(bundle: Path, num: int = 3, seed: int = 1, **more: Any) -> dict[str, Any]:
    return repeat_run(num, seed, bundle / "out", bundle, **more)


def _started(bundle: Path) -> list[tuple[int, str]]:
    """Seed and last config of what was started since the last look."""
    file = bundle / "started.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return [(seed, files[-1]) for seed, files in map(json.loads, lines)]


def _both(*seeds: int) -> list[tuple[int, str]]:
    return [(seed, file) for seed in seeds for file in ("train.yaml", "evaluate.yaml")]


@pytest.mark.parametrize(
    "configs",
    [
        ["--config_file", "['configs/train.yaml', 'configs/seeds.yaml']"],
        ["--config_file=['configs/train.yaml','configs/seeds.yaml']"],
        ["--config_file", "configs/train.yaml,configs/seeds.yaml"],
    ],
)
@pytest.mark.parametrize("seed", [["--seed", "7"], ["--seed=7"], []])
@pytest.mark.usefixtures("bundle")
def test_commands_keep_all_but_what_is_told(configs: list[str], seed: list[str]) -> None:
    data = ["--dataset_dir", "my --seed data", "--n_seed_points=2", "--network_def::seed", "5"]
    given = ["-m", "monai.bundle", "run", *data[:2], "--n_seeds=5", *configs, *seed, "--cache_dir", "x", *data[2:]]
    options = {"cache_dir": None, "seed": 8, "output_dir": Path("out/seed-8")}
    training, evaluation = seed_commands(given, "root/evaluate.yaml", options)
    kept = ["-m", "monai.bundle", "run", *data, "--config_file"]
    changed = ["--cache_dir", "$None", "--seed", "8", "--output_dir", str(Path("out/seed-8"))]
    assert training == [*kept, "['configs/train.yaml']", *changed]
    assert evaluation == [*kept, "['configs/train.yaml', 'root/evaluate.yaml']", *changed]


@pytest.mark.usefixtures("bundle")
@pytest.mark.parametrize("given", [[], ["--config_file", "configs/train.yaml"]])
def test_what_would_start_itself_again_is_refused(given: list[str]) -> None:
    with pytest.raises(ValueError, match=r"a config of its own that names repeat_run, .*, got "):
        seed_commands(["-m", "monai.bundle", "run", *given], "evaluate.yaml", {})


def test_every_seed_is_trained_evaluated_and_told(bundle: Path) -> None:
    result = _repeat(bundle, title="Tiles", unit="slide", shared={"cache_dir": bundle / "cache"})
    assert _started(bundle) == _both(1, 2, 3)
    command = json.loads((bundle / "out" / "seed-2" / "run.json").read_text())["command"]
    assert command.endswith(f"--cache_dir {bundle}/cache --seed 2 --output_dir {bundle}/out/seed-2")
    assert "n_seeds" not in command
    out = bundle / "out"
    assert {file.name for file in out.iterdir()} == {
        *(f"seed-{seed}" for seed in (1, 2, 3)),
        *("seeds.json", "seeds.csv", "report.html"),
    }
    assert json.loads((out / "seeds.json").read_text()) == result
    assert result["command"].startswith("python program.py --config_file ")
    aucs = [0.85, 0.9, 0.95]
    wanted = {"mean": np.mean(aucs), "sd": np.std(aucs, ddof=1), "lowest": 0.85, "highest": 0.95, "num_seeds": 3}
    assert result["summary"]["metrics"]["roc_auc"] == pytest.approx(wanted)
    without = {"mean": 0.925, "sd": np.std(aucs[1:], ddof=1), "lowest": 0.9, "highest": 0.95, "num_seeds": 2}
    assert result["summary"]["metrics"]["f1"] == pytest.approx(without)
    assert result["summary"]["explanations"]["tile_auc"]["mean"] == pytest.approx((0.45 + 0.475) / 2)
    assert list(result["summary"]["explanations"]) == ["tile_auc"]
    assert not result["same_test"]
    with (out / "seeds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["1", "2", "3"]
    assert [float(row["roc_auc"]) for row in rows] == pytest.approx(aucs)
    assert [(row["shortcut_roc_auc"], row["f1"] != "") for row in rows] == [("0.86", False), *[("0.86", True)] * 2]
    assert rows[0]["tile_auc"] == "", "no slide with an outline in its test set"
    assert [float(row["tile_auc"]) for row in rows[1:]] == pytest.approx([0.45, 0.475])


def test_the_page_holds_all_and_links_to_each_seed(bundle: Path) -> None:
    _repeat(bundle, title="Tiles & <slides>", unit="slide")
    page = (bundle / "out" / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert [s for s in sources if not s.startswith("data:")] == [f"seed-{seed}/report.html" for seed in (1, 2, 3)]
    assert not re.search(r"@import|url\(|<script|<link", page)
    text = " ".join(re.sub(r"<style>.*</style>|<[^>]+>", " ", page, flags=re.DOTALL).split())
    for words in (
        "Tiles &amp; &lt;slides&gt;: 3 seeds",
        "tested on 4 slides, other ones for each seed",
        "ROC AUC 0.900 ± 0.050, 0.850 to 0.950 shortcut 0.860",
        "in 2 of 3 seeds",
        "undefined for 1 of 3 seeds 0.925",
        "are trained on again and again",
        "Tile AUC of attention",
        "Seed 1 4 slides 0.850",
    ):
        assert words in text


def test_what_is_done_is_not_run_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _repeat(bundle)
    _started(bundle)
    assert _repeat(bundle) == first
    assert _started(bundle) == []
    shutil.rmtree(bundle / "out" / "seed-2")
    _repeat(bundle, num=4)
    assert _started(bundle) == _both(2, 4)
    (bundle / "configs" / "train.yaml").write_text("name: other\n")
    _repeat(bundle)
    assert _started(bundle) == _both(1, 2, 3)
    _call(monkeypatch, "--max_epochs", "2")
    _repeat(bundle)
    assert _started(bundle) == _both(1, 2, 3)


def test_a_seed_that_fails_stops_with_its_last_words(bundle: Path) -> None:
    _repeat(bundle)
    _started(bundle)
    (bundle / "configs" / "evaluate.yaml").write_text("fail: 2\n")
    told = r"seed 2: evaluation ended with status 3; last in .*seed-2.log\.txt:\n(many words\n)+ out of luck$"
    with pytest.raises(RuntimeError, match=told) as error:
        _repeat(bundle)
    assert len(str(error.value).splitlines()) < 20
    assert _started(bundle) == _both(1, 2)
    assert not (bundle / "out" / "seed-2" / "metrics.json").exists(), "the figures of an earlier run"
    (bundle / "configs" / "evaluate.yaml").write_text("name: evaluate\n")
    _repeat(bundle)
    assert _started(bundle) == _both(1, 2)


def test_one_seed_has_no_spread(bundle: Path) -> None:
    result = _repeat(bundle, num=1)
    assert result["summary"]["metrics"]["roc_auc"] == pytest.approx(
        {"mean": 0.85, "sd": None, "lowest": 0.85, "highest": 0.85, "num_seeds": 1}
    )
    assert "1 seed<" in (bundle / "out" / "report.html").read_text()
    with pytest.raises(ValueError, match="n_seeds must be at least 1, got 0"):
        _repeat(bundle, num=0)


def test_same_test_images_and_no_shortcut(bundle: Path) -> None:
    _repeat(bundle)
    folders = {seed: bundle / "out" / f"seed-{seed}" for seed in (1, 2)}
    for folder in folders.values():
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics |= {"shortcut": None, "shortcut_name": None, "explanations": []}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        shutil.copy(bundle / "out" / "seed-1" / "predictions.csv", folder / "predictions.csv.new")
        (folder / "predictions.csv.new").rename(folder / "predictions.csv")
    result = summarize_seeds(folders)
    assert result["same_test"]
    assert (result["summary"]["shortcut"], result["summary"]["explanations"]) == ({}, {})
    axes = seeds_figure(result, {"roc_auc": "ROC AUC", "f1": "F1"}).axes[0]
    dots = [dots.get_offsets().data.tolist() for dots in axes.collections]
    assert dots == [[[pytest.approx(0.85), 0], [pytest.approx(0.9), 0]], [[pytest.approx(0.9), 1]]]
    result = _repeat(bundle, num=2)
    page = (bundle / "out" / "report.html").read_text()
    assert "the same for every seed" in page
    assert "hortcut" not in page
