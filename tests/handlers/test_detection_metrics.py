"""A detector inside MONAI's engines: losses of the epoch, metrics in the source, the operating threshold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError

from monai_pipelines.detection import Found, Target
from monai_pipelines.handlers import CollectDetections, DetectionMetrics, MeanLosses
from monai_pipelines.metrics import Detections, Lesions, choose_operating_threshold, detection_metrics

AFFINE = torch.tensor([[2.0, 0, 10], [0, 2, -4], [0, 0, 1]], dtype=torch.float64)


def _batch(lesions: list[Lesions], **more: Any) -> dict[str, Any]:
    num = len(lesions)
    names = [f"image{k}" for k in range(num)]
    return {
        "name": names,
        "patient": ["p", *names[1:]],
        "lesions": lesions,
        "box_affine": AFFINE.expand(num, 3, 3),
        **more,
    }


def _run(handler: Any, outputs: list[list[Found]], batches: list[dict[str, Any]]) -> Any:
    def step(engine: Engine, k: int) -> dict[str, Any]:
        engine.state.batch = batches[k]
        empty = Target(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).bool())
        return {"pred": outputs[k], "label": [empty] * len(outputs[k]), "image": torch.zeros(len(outputs[k]), 1, 8, 8)}

    engine = Engine(step)
    handler.attach(engine, "cpm") if isinstance(handler, DetectionMetrics) else handler.attach(engine)
    engine.run(range(len(outputs)), max_epochs=1)
    return engine


def _found(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> Found:
    return Found(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels or [0] * len(scores)).long()
    )


LESIONS = [
    [Lesions([[14, 0, 22, 8]]), Lesions([])],
    [Lesions([[12, 2, 14, 4], [30, 30, 40, 40]], [1, 0], [False, True])],
]
OUTPUTS = [[_found([[2, 2, 6, 6], [0, 0, 2, 2]], [0.9, 0.4]), _found([], [])], [_found([[1, 3, 2, 4]], [0.6], [1])]]
IN_SOURCE = [
    Detections([[14, 0, 22, 8], [10, -4, 14, 0]], [0.9, 0.4], [0, 0]),
    Detections([], []),
    Detections([[12, 2, 14, 4]], [0.6], [1]),
]


def test_metrics_are_those_of_boxes_in_the_source() -> None:
    metrics = DetectionMetrics(num_classes=2)
    engine = _run(metrics, OUTPUTS, [_batch(part) for part in LESIONS])
    every = [lesion for part in LESIONS for lesion in part]
    metric = detection_metrics(IN_SOURCE, every, ["p", "image1", "p"], num_classes=2, num_resamples=0)["metrics"]
    wanted = {name: metric[name] for name in metrics.names(None)}  # type: ignore[arg-type]
    assert {"cpm", "sensitivity_at_0.125", "ap", "ap50", "image_roc_auc"} <= set(wanted)
    assert engine.state.metrics == {
        name: pytest.approx(math.nan if v is None else v, nan_ok=True) for name, v in wanted.items()
    }
    assert engine.state.metrics["cpm"] == 1
    decided = metrics.decisions("false_positives=0.25", calibrate=True)
    scores = [Detections(boxes, [round(s, 6) for s in scores_], labels) for boxes, scores_, labels in IN_SOURCE]
    assert decided["threshold"] == pytest.approx(choose_operating_threshold(scores, every, 0.25, num_classes=2))
    assert (decided["num_validation"], decided["temperature"], decided["threshold_by"]) == (
        3,
        None,
        "false_positives=0.25",
    )
    assert metrics.decisions(None, calibrate=False)["threshold"] is None


def test_without_a_lesion_metrics_are_nan_and_false_alarms_count() -> None:
    engine = _run(DetectionMetrics(), [OUTPUTS[0]], [_batch([Lesions([]), Lesions([])])])
    assert math.isnan(engine.state.metrics["cpm"])
    assert math.isnan(engine.state.metrics["ap50"])
    with pytest.raises(NotComputableError):
        DetectionMetrics().compute()


@pytest.mark.parametrize("rule", ["youden", "false_positives", "false_positives=-1", "sensitivity=0.9"])
def test_a_rule_of_a_classifier_is_an_error(rule: str) -> None:
    with pytest.raises(ValueError, match="threshold_by: wanted false_positives=RATE"):
        DetectionMetrics().check_rule(rule, None)  # type: ignore[arg-type]


def test_rows_for_the_report() -> None:
    collect = CollectDetections()
    unlabeled = {key: value for key, value in _batch([Lesions([])]).items() if key != "lesions"}
    _run(collect, [OUTPUTS[0], OUTPUTS[1]], [_batch(LESIONS[0], verdict=["ok", "repaired"]), unlabeled])
    assert [set(row) for row in collect.rows] == [
        {"image", "patient", "lesions", "found"},
        {"image", "patient", "lesions", "found", "verdict"},
        {"image", "found"},
    ]
    assert collect.rows[0]["found"].boxes.tolist() == IN_SOURCE[0].boxes
    assert collect.rows[0]["lesions"] is LESIONS[0][0]


def test_mean_losses_of_an_epoch() -> None:
    losses = [{"class": 1.0, "box": 0.5}, {"class": 3.0, "box": 0.0}]
    engine = Engine(
        lambda engine, k: {
            "pred": {n: torch.tensor(v) for n, v in losses[k].items()},
            "loss": torch.tensor(sum(losses[k].values())),
        }
    )
    MeanLosses().attach(engine, "loss")
    engine.run([0, 1], max_epochs=2)
    assert engine.state.metrics == {"loss": 2.25, "class": 2.0, "box": 0.25}
    with pytest.raises(NotComputableError):
        MeanLosses().compute()
