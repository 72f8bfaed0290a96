"""Detectors through MONAI's engines, on cohorts of which most images have no lesion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from monai_pipelines import load_chain
from monai_pipelines.data import DetectionSplits, PrepareDetection, make_loader, read_detection_cohort
from monai_pipelines.detection import DetectionInferer, SumOfLosses
from monai_pipelines.engines import (
    Model,
    ModelSupervisedEvaluator,
    ModelSupervisedTrainer,
    TrainedSupervisedEvaluator,
    evaluate,
    predict,
)
from monai_pipelines.handlers import TrainingHandlers
from monai_pipelines.metrics import choose_operating_threshold
from monai_pipelines.runs import Trained
from tests.detection.blobs import make_detector

NUM = {"train": 40, "validation": 10, "test": 10}
SHARE = 0.1  # of the images have a lesion
SIDE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, and in one of ten images a bright block."""
    folder = tmp_path_factory.mktemp("blocks")
    rng = np.random.default_rng(0)
    rows, boxes = ["image,patient,split"], ["image,x_min,y_min,x_max,y_max"]
    for split, num in NUM.items():
        for k in range(num):
            name = f"{split}-{k}.png"
            pixels = rng.integers(0, 60, (SIDE, SIDE)).astype(np.uint8)
            if k < SHARE * num:
                y, x = rng.integers(2, SIDE - 14, 2)
                pixels[y : y + 11, x : x + 11] += 180
                boxes.append(f"{name},{x},{y},{x + 11},{y + 11}")
            Image.fromarray(pixels).save(folder / name)
            rows.append(f"{name},{split}-{k},{split}")
    (folder / "table.csv").write_text("\n".join(rows))
    (folder / "boxes.csv").write_text("\n".join(boxes))
    return folder


def _setup(folder: Path, output: Path, max_epochs: int) -> dict[str, Any]:
    torch.manual_seed(0)
    cohort = read_detection_cohort(folder, one_class="block")
    chain = load_chain("xray_detection", size=[SIDE, SIDE])
    datasets = DetectionSplits(cohort, chain.until("normalize"))
    prepare = PrepareDetection(chain.since("normalize"))
    network = make_detector("retinanet", 2)
    model = Model(network, chain, ["block"], torch.device("cpu"), DetectionInferer(), prepare)
    optimizer = torch.optim.AdamW(network.parameters(), 0.003)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1)
    loss = SumOfLosses()
    validator = ModelSupervisedEvaluator(model, datasets.validation, 5, loss, key_metric="cpm")
    handlers = TrainingHandlers(
        validator,
        output,
        schedule,
        interval=max_epochs,
        threshold_by="false_positives=0.5",
        split=cohort.split_card,
    )
    loader = make_loader(datasets.train, 8, "weighted")
    augmentation = load_chain("augment_image2d", flip_prob=0.5, rotation_deg=0, fill=0, saturation=0, hue_turns=0)
    trainer = ModelSupervisedTrainer(model, max_epochs, loader, optimizer, loss, augmentation, "cpm", [handlers])
    return {"trainer": trainer, "validator": validator, "datasets": datasets, "model": model, "cohort": cohort}


@pytest.mark.slow
def test_mostly_empty_images_are_learned_evaluated_and_predicted(folder: Path, tmp_path: Path) -> None:
    made = _setup(folder, tmp_path, max_epochs=14)
    made["trainer"].run()
    metrics = made["validator"].state.metrics
    assert metrics["cpm"] > 0.9
    assert metrics["image_roc_auc"] == 1
    assert set(made["trainer"].state.metrics) == {"loss", "class", "box"}
    card = torch.load(tmp_path / "best.pt", weights_only=True)
    counted = made["validator"].epoch_metrics
    assert card["threshold"] == choose_operating_threshold(counted.found, counted.lesions, 0.5)
    assert (card["threshold_by"], card["temperature"], card["key_metric"]) == ("false_positives=0.5", None, "cpm")

    trained = Trained(made["model"], tmp_path / "best.pt")
    result = evaluate(
        TrainedSupervisedEvaluator(trained, made["datasets"].test, 5),
        *(made["datasets"], tmp_path, "Blocks"),
        unit="image",
        key_metric="cpm",
    )
    assert result["metrics"]["cpm"] > 0.9
    assert result["threshold"] == card["threshold"]
    assert result["baseline"]["metrics"]["cpm"] > 0.9, "brightness alone is enough here"
    unlabeled = made["datasets"].test
    rows = predict(TrainedSupervisedEvaluator(trained, unlabeled, 3), tmp_path / "again")
    assert [row["image"] for row in rows] == [item["name"] for item in unlabeled.data]
    assert (tmp_path / "again" / "predictions.csv").read_text().count("\n") > len(unlabeled)

    ensemble = Trained(made["model"], "", ensemble=[tmp_path / "best.pt", tmp_path / "last.pt"])
    evaluator = TrainedSupervisedEvaluator(ensemble, unlabeled, 5)
    evaluator.run()
    assert ensemble.decisions.threshold == card["threshold"], "the mean of two equal ones"
    alone = TrainedSupervisedEvaluator(trained, unlabeled, 5)
    alone.run()
    for both, one in zip(evaluator.predictions.rows, alone.predictions.rows, strict=True):
        np.testing.assert_allclose(both["found"].boxes[:1], one["found"].boxes[:1], atol=1e-3)


def test_a_rule_or_metric_of_classifiers_is_an_error(folder: Path, tmp_path: Path) -> None:
    validator = _setup(folder, tmp_path, 1)["validator"]
    with pytest.raises(ValueError, match="threshold_by: wanted false_positives=RATE"):
        TrainingHandlers(validator, tmp_path, None, threshold_by="youden")
    validator.key_metric = "roc_auc"
    with pytest.raises(ValueError, match=r"key_metric must be one of .*cpm.*, got 'roc_auc'"):
        TrainingHandlers(validator, tmp_path, None)
