from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_pipelines.report import Evaluation, rebuild_report, write_report
from monai_pipelines.report.embedding import embedding_figure
from monai_pipelines.report.figures import png_bytes
from monai_pipelines.report.results import class_table
from monai_pipelines.report.saved import picture

CHAIN = {"name": "image2d", "knobs": {"keys": "image", "size": 8}, "steps": {"load": {"_target_": "x"}}}
RUN = {
    **{"command": "python -m x", "source": "/data/somewhere/tiles.zip", "chain": CHAIN, "augmentation": None},
    **{"overrides": {"output_dir": "/data/somewhere"}, "settings": {"max_epochs": 3}},
}


@pytest.mark.parametrize(
    ("image", "kind", "size", "flags"),
    [
        (torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8), "png", (40, 30), {"small": True}),
        (np.random.default_rng(0).random((1, 300, 600)), "jpeg", (192, 96), {"small": False}),
        (np.zeros((1, 8, 8, 8)), "png", None, {"volume": True, "anatomical": False}),
        (MetaTensor(torch.rand(1, 8, 8, 8)), "png", None, {"volume": True, "anatomical": True}),
    ],
)
def test_pictures_are_small(image, kind, size, flags):
    small = picture("sample-3", "healthy\na.png", image)
    content = small.pop("content")
    wanted = {"caption": "healthy\na.png", "file": f"pictures/sample-3.{kind}", "volume": False, "anatomical": False}
    assert small == wanted | {"small": False, "at": None} | flags
    with Image.open(io.BytesIO(content)) as drawn:
        assert drawn.format == kind.upper()
        assert size in (None, drawn.size)


def test_small_images_are_kept_pixel_by_pixel():
    image = np.random.default_rng(0).integers(0, 256, (3, 30, 40)).astype(np.uint8)
    small = io.BytesIO(picture("a", "", image)["content"])
    np.testing.assert_array_equal(np.asarray(Image.open(small)).transpose(2, 0, 1), image)
    large = np.zeros((3, 900, 300), np.uint8)
    with Image.open(io.BytesIO(picture("b", "", large, side=600)["content"])) as drawn:
        assert drawn.size == (200, 600)


def _evaluation(folder: Path, multilabel=False) -> Evaluation:
    """An evaluation with every section."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (40, 3)) if multilabel else rng.integers(0, 2, 40)
    prob = rng.random((40, 3)) if multilabel else rng.dirichlet([1, 1], 40)
    rows = [
        {"image": f"{k}.png", "patient": f"p{k // 2}", "label": label[k], "prob": prob[k], "spread": 0.1 * (k % 3)}
        | {"split": "test", "columns": {"site": "ab"[k % 2]}, "shortcut_prob": {"size": prob[k]}}
        for k in range(40)
    ]
    image = rng.integers(0, 256, (3, 30, 40)).astype(np.uint8)
    classes = ["edema", "mass", "hernia"] if multilabel else ["healthy", "ill"]
    heatmap = {
        "results": {"relative_entropy": 0.5, "num_slides": 40},
        "pictures": [picture("looked-0-0", "a map", image, 1200)],
    }
    return Evaluation(
        title="Tiles",
        rows=[*rows, {"image": "z.png", "prob": None, "skipped": "truncated", "split": "train"}],
        classes=classes,
        threshold=[0.4, 0.5, 0.6] if multilabel else np.float64(0.4),
        threshold_by="youden",
        temperature=1.7,
        multilabel=multilabel,
        splits={"train": class_table(rows, classes), "test": class_table(rows, classes)},
        samples=[picture("sample-0", "a sample", image)],
        mistakes=[picture("mistake-0", "a mistake", np.zeros((1, 8, 8, 8)))],
        embeddings={"raw_pixels": png_bytes(embedding_figure(rng.random((40, 2)), label, classes, "Raw pixels"), 80)},
        explanations=[heatmap],
        subgroups=("site",),
    ).after_training(folder)


def _files(folder: Path):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("multilabel", [False, True])
def test_rebuilt_page_is_the_first_one_byte_for_byte(tmp_path, multilabel):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "history.json").write_text('[{"epoch": 1, "train": {"loss": 0.7}, "val": {"loss": 0.8, "roc_auc": 0.6}}]')
    (folder / "run.json").write_text(json.dumps(RUN))
    evaluation = _evaluation(folder, multilabel)
    evaluation.save(folder)
    metrics = write_report(folder, evaluation)
    assert metrics["run"]["source"] == "tiles.zip"
    assert metrics["run"]["chain"] == {"size": 8}
    assert metrics["run"]["settings"] == {"max_epochs": 3}
    assert "overrides" not in metrics["run"]
    assert list(metrics["subgroups"]["site"]) == ["a", "b"]
    assert metrics["calibration"]["temperature"] == 1.7
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "a sample" in page
    assert "a map" in page

    first = _files(folder)
    written = {"report.html", "metrics.json", "predictions.csv", "roc.png", "classes.png", "history.png"}
    kept = {"evaluation.json", "history.json", "run.json", "embedding_raw_pixels.png"}
    for name in written:
        (folder / name).unlink()
    assert kept <= {file.name for file in folder.iterdir()}
    moved = shutil.move(folder, tmp_path / "moved")
    assert rebuild_report(moved) == metrics
    assert _files(Path(moved)) == first


def test_a_later_training_is_a_warning_and_not_mixed_in(tmp_path, caplog):
    (tmp_path / "history.json").write_text(
        '[{"epoch": 1, "train": {"loss": 0.7}, "val": {"loss": 0.8, "roc_auc": 0.6}}]'
    )
    (tmp_path / "run.json").write_text(json.dumps({**RUN, "fingerprint": "f00d"}))
    _evaluation(tmp_path).save(tmp_path)
    metrics = rebuild_report(tmp_path)
    page = (tmp_path / "report.html").read_bytes()
    assert "trained again" not in caplog.text
    (tmp_path / "history.json").write_text(
        '[{"epoch": 1, "train": {"loss": 0.1}, "val": {"loss": 0.1, "roc_auc": 0.9}}]'
    )
    (tmp_path / "run.json").write_text(json.dumps({**RUN, "fingerprint": "beef"}))
    assert rebuild_report(tmp_path) == metrics
    assert metrics["run"]["fingerprint"] == "f00d"
    assert (tmp_path / "report.html").read_bytes() == page
    assert "trained again since the evaluation" in caplog.text


def test_what_cannot_be_rebuilt_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"nothing: no run: wanted the output_dir of a training"):
        rebuild_report(tmp_path / "nothing")
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    with pytest.raises(ValueError, match=r"not evaluated yet, there is no evaluation\.json: add --run_id evaluate"):
        rebuild_report(tmp_path)
    _evaluation(tmp_path).save(tmp_path)
    (tmp_path / "pictures" / "sample-0.png").unlink()
    with pytest.raises(ValueError, match=r"sample-0\.png: the picture is missing: run the evaluation again"):
        rebuild_report(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"title": "T", "rows": [{')
    with pytest.raises(ValueError, match=r"evaluation\.json: no JSON .*: run the training or evaluation again"):
        rebuild_report(tmp_path)
