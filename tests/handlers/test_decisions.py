"""What a checkpoint stores of how to read the network's logits, and its effect on inference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from torch import nn

from monai_pipelines.handlers import CollectPredictions
from monai_pipelines.inferers import EnsembleInferer
from monai_pipelines.losses import CrossEntropyLoss
from monai_pipelines.metrics import choose_threshold, fit_temperature, predicted_classes
from monai_pipelines.probabilities import Probabilitiesd, probabilities

pytestmark = pytest.mark.usefixtures("blank_figures")

MakeRun = Callable[..., Any]
Scans = Callable[[int, int], list[dict[str, Any]]]


def _logits(run: Any) -> list[np.ndarray]:
    """Run, and tell the logits of every validation."""
    batches: list[torch.Tensor] = []
    epochs: list[np.ndarray] = []
    run.evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: batches.append(engine.state.output["pred"].double())
    )

    def close(engine: Engine) -> None:
        epochs.append(torch.cat(batches).numpy())
        batches.clear()

    run.evaluator.add_event_handler(Events.EPOCH_COMPLETED, close)
    run.trainer.run()
    return epochs


def _two(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(N, 2) probabilities of two classes."""
    margin = logits[:, -1] - (logits[:, 0] if logits.shape[1] == 2 else 0)
    p = 1 / (1 + np.exp(-margin / temperature))
    return np.stack([1 - p, p], 1)


def _multilabel(num: int, seed: int) -> list[dict[str, Any]]:
    """Label k of an image is 1 where its corner k is bright; label 2 never is."""
    rng = np.random.default_rng(seed)
    images = rng.random((num, 1, 4, 4, 4), dtype=np.float32)
    labels = np.stack([images[:, 0, 0, 0, 0], images[:, 0, 3, 3, 3], np.zeros(num)], 1) > 0.5
    return [
        {"image": torch.from_numpy(image), "label": torch.from_numpy(label).float(), "name": f"i{k}"}
        for k, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


# ---- the card


@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("num_logits", [1, 2])
@pytest.mark.parametrize("rule", ["youden", "sensitivity=0.8", "specificity=0.8", "cost=3"])
def test_threshold_is_that_of_the_epoch_that_is_kept(
    make_run: MakeRun, tmp_path: Path, rule: str, num_logits: int, calibrate: bool
) -> None:
    """Of the tempered predictions on its validation data."""
    script = [(0.6, 1.0), (0.9, 1.0), (0.8, 0.1)]
    options = {"threshold_by": rule, "calibrate": calibrate, "num_logits": num_logits, "loss": CrossEntropyLoss()}
    epochs = _logits(make_run(script=script, **options))
    label = np.arange(10) % 2
    for name, logits in (("best.pt", epochs[1]), ("last.pt", epochs[2])):
        card = torch.load(tmp_path / name, weights_only=True)
        temperature = fit_temperature(logits, label)
        assert card["temperature"] == (pytest.approx(temperature, rel=1e-4) if calibrate else None)
        wanted = choose_threshold(_two(logits, temperature if calibrate else 1.0), label, rule)
        assert card["threshold"] == pytest.approx(wanted, abs=1e-5)
        assert (card["threshold_by"], card["num_validation"]) == (rule, 10)
    thresholds = {round(choose_threshold(_two(logits), label, rule), 4) for logits in epochs}  # type: ignore[arg-type]
    assert len(thresholds) == 3, "another threshold in every epoch"


def test_several_labels_have_thresholds_and_one_temperature(make_run: MakeRun, tmp_path: Path) -> None:
    data = _multilabel(40, 2)
    options = {"num_logits": 3, "loss": nn.BCEWithLogitsLoss(), "classes": ["a", "b", "c"], "multilabel": True}
    run = make_run(max_epochs=2, data=_multilabel(64, 1), val_data=data, threshold_by="youden", **options)
    logits = _logits(run)[-1]
    label = np.stack([item["label"].numpy() for item in data]).astype(int)
    card = torch.load(tmp_path / "last.pt", weights_only=True)
    assert card["temperature"] == pytest.approx(fit_temperature(logits, label), rel=1e-4)
    prob = 1 / (1 + np.exp(-logits / card["temperature"]))
    assert card["threshold"] == pytest.approx(choose_threshold(prob, label, "youden"), abs=1e-5)
    assert card["threshold"][2] == 0.5
    assert len({*card["threshold"]}) == 3
    assert predicted_classes(prob, card["threshold"], multilabel=True).shape == (40, 3)


def test_a_card_tells_what_the_network_is(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(max_epochs=1)
    run.trainer.run()
    card = torch.load(tmp_path / "best.pt", weights_only=True)
    assert card["network"] == {"name": "Sequential", "num_parameters": 64 * 6 + 6 + 12 + 6 * 2 + 2}
    assert set(card) == {
        *(
            "model",
            "network",
            "classes",
            "chain",
            "fingerprint",
            "epoch",
            "key_metric",
            "split",
            "precision",
            "versions",
        ),
        *("metrics", "num_validation", "temperature", "threshold", "threshold_by"),
    }


def test_no_decision_without_a_rule_or_a_validation_or_a_class(make_run: MakeRun, scans: Scans, tmp_path: Path) -> None:
    def stored(key: str) -> list[Any]:
        return [torch.load(tmp_path / name, weights_only=True)[key] for name in ("best.pt", "last.pt")]

    make_run(max_epochs=1, calibrate=False).trainer.run()
    assert stored("threshold") == stored("threshold_by") == stored("temperature") == [None, None]
    run = make_run(max_epochs=3, val_interval=2, threshold_by="youden")
    unvalidated = []
    run.trainer.add_event_handler(
        Events.EPOCH_STARTED(once=2), lambda: unvalidated.append(torch.load(tmp_path / "last.pt"))
    )
    run.trainer.run()
    assert (unvalidated[0]["epoch"], unvalidated[0]["threshold"], unvalidated[0]["temperature"]) == (1, None, None)
    assert [isinstance(threshold, float) for threshold in stored("threshold")] == [True, True]
    assert [isinstance(temperature, float) for temperature in stored("temperature")] == [True, True]
    healthy = [item for item in scans(8, 2) if item["label"] == 0]
    make_run(max_epochs=1, threshold_by="youden", val_data=healthy, key_metric="loss").trainer.run()
    assert stored("threshold") == stored("threshold_by") == [None, None]


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_threshold_near_1_means_in_inference_what_it_was_chosen_for(multilabel: bool) -> None:
    """In float32 all of these would be 1."""
    logits, label = torch.tensor([[18.0], [18.5], [19.0], [20.0]]), torch.tensor([0, 0, 1, 1])
    if multilabel:
        logits, label = logits.repeat(1, 2), label[:, None].repeat(1, 2)
    threshold = choose_threshold(probabilities(logits.double(), multilabel).numpy(), label.numpy())
    data = [{"image": own, "label": int(k > 1), "name": f"i{k}"} for k, own in enumerate(logits)]
    prob = _infer(nn.Identity(), data, None, multilabel)[0]
    assert (predicted_classes(prob, threshold, multilabel) == label.numpy()).all()
    ensemble = EnsembleInferer(SimpleInferer(), multilabel)
    ensemble.members = [(nn.Identity(), None), (nn.Identity(), 1.0)]
    mean = probabilities(ensemble(logits, nn.Identity()), multilabel).numpy()
    assert (predicted_classes(mean, threshold, multilabel) == label.numpy()).all()


@pytest.mark.parametrize(
    ("threshold_by", "classes", "message"),
    [
        (
            "youden",
            ["a", "b", "c"],
            "threshold_by is for two classes or multilabel, got 3 classes; set it to null",
        ),
        ("yuoden", ["a", "b"], r"wanted youden, sensitivity=0\.95, specificity=0\.9 .* or cost=5 .*got 'yuoden'"),
        ("sensitivity=1.5", ["a", "b"], "got 'sensitivity=1.5'"),
        ("cost", ["a", "b"], "got 'cost'"),
    ],
)
def test_wrong_threshold_rule(make_run: MakeRun, threshold_by: str, classes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_run(threshold_by=threshold_by, classes=classes)


# ---- inference


def _noisy(num: int, seed: int) -> list[dict[str, Any]]:
    """A third voxel brighter with the label; 15 of 100 labels are wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, num)
    images = rng.normal(0, 1, (num, 1, 4, 4, 4)).astype(np.float32)
    images[:, 0, :2, 0, 0] += 1.5 * (2 * truth - 1)[:, None]
    label = np.where(rng.random(num) < 0.15, 1 - truth, truth)
    return [
        {"image": torch.from_numpy(image), "label": int(own), "name": f"s{k}", "patient": f"p{k}"}
        for k, (image, own) in enumerate(zip(images, label, strict=True))
    ]


def _infer(
    network: nn.Module, data: list[dict[str, Any]], temperature: float | None, multilabel: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels by the engine and the handlers of a bundle's inference."""
    predictions = CollectPredictions()
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=200),
        network=network,
        postprocessing=Probabilitiesd("pred", multilabel, temperature),
        val_handlers=[predictions],
    ).run()
    return np.array([row["prob"] for row in predictions.rows]), np.array([row["label"] for row in predictions.rows])


def _reference_ece(prob: np.ndarray, label: np.ndarray) -> float:
    """Mean over cases of the gap of their tenth between the mean probability and how often it is true."""
    error = 0.0
    for k in range(10):
        own = (prob[:, 1] >= k / 10) & ((prob[:, 1] < (k + 1) / 10) | (k == 9))
        if own.any():
            error += own.mean() * abs(prob[own, 1].mean() - label[own].mean())
    return float(error)


def test_stored_temperature_and_threshold_change_what_inference_says(make_run: MakeRun, tmp_path: Path) -> None:
    """A network that has learnt its training set by heart is mended on held-out data."""
    options = {"threshold_by": "sensitivity=0.95", "key_metric": "accuracy", "loss": nn.CrossEntropyLoss()}
    run = make_run(max_epochs=12, data=_noisy(160, 1), val_data=_noisy(400, 2), **options)
    run.trainer.run()
    card = torch.load(tmp_path / "last.pt", weights_only=True)
    run.network.load_state_dict(card["model"])
    assert card["temperature"] > 1.5, "over-confident"

    held_out = _noisy(2000, 3)
    before, label = _infer(run.network, held_out, None)
    after, _ = _infer(run.network, held_out, card["temperature"])
    assert _reference_ece(before, label) > 0.08
    assert _reference_ece(after, label) < _reference_ece(before, label) / 2
    assert (before.argmax(1) == after.argmax(1)).all(), "the likelier class stays the same"

    called = predicted_classes(after, card["threshold"])
    assert (called != after.argmax(1)).mean() > 0.05
    assert called[label == 1].mean() == pytest.approx(0.95, abs=0.03)
    assert called[label == 1].mean() > after.argmax(1)[label == 1].mean()
