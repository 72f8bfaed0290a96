from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from monai_pipelines.errors import CohortError
from monai_pipelines.losses import FocalLoss, class_weights


def _reference_focal(logits: np.ndarray, labels: np.ndarray, gamma: float, weight: np.ndarray | None) -> float:
    total, norm = 0.0, 0.0
    for row, label in zip(logits.astype(float), labels, strict=True):
        p = np.exp(row[label]) / np.exp(row).sum()
        w = 1.0 if weight is None else weight[label]
        total += w * (1 - p) ** gamma * -np.log(p)
        norm += w
    return total / norm


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weight", [None, [0.2, 2.0, 0.8]])
def test_focal_loss(gamma: float, weight: list[float] | None) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (40, 3)).astype(np.float32), rng.integers(0, 3, 40)
    loss = FocalLoss(gamma, weight)(torch.from_numpy(logits), torch.from_numpy(labels))
    expected = _reference_focal(logits, labels, gamma, None if weight is None else np.array(weight))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.2, 2.0, 0.8])])
def test_gamma_0_is_cross_entropy(weight: torch.Tensor | None) -> None:
    logits, labels = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
    torch.testing.assert_close(FocalLoss(0, weight)(logits, labels), nn.CrossEntropyLoss(weight)(logits, labels))


def test_hand_worked_values() -> None:
    logits = torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1]]))
    labels = torch.tensor([0, 1])
    easy, hard = 0.1**2 * -np.log(0.9), 0.9**2 * -np.log(0.1)
    assert FocalLoss(2.0)(logits, labels).item() == pytest.approx((easy + hard) / 2, rel=1e-5)
    # p comes from the unweighted probability: a weight of 3 counts a sample three times and changes nothing else
    assert FocalLoss(2.0, [1, 3])(logits, labels).item() == pytest.approx((easy + 3 * hard) / 4, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradient_is_finite_at_certainty(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0], [0.0, 0.0]], requires_grad=True)
    FocalLoss(gamma)(logits, torch.tensor([0, 0, 1])).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1].abs().min() > 0.1
    doubles = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: FocalLoss(gamma)(x, torch.tensor([0, 1, 2, 0])), doubles)


def test_focal_loss_travels_with_its_weight() -> None:
    loss = pickle.loads(pickle.dumps(FocalLoss(weight=[1, 2]))).to(torch.float64)
    assert loss.weight.dtype == torch.float64
    assert loss(torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0, 1])).item() == pytest.approx(np.log(2) / 4)


@pytest.mark.parametrize(("scheme", "beta"), list(itertools.product(["inverse", "effective"], [0.0, 0.9, 0.999])))
def test_class_weights(scheme: str, beta: float) -> None:
    counts = [3, 50, 700]
    labels = np.repeat([0, 1, 2], counts)
    raw = [1 / n if scheme == "inverse" else 1 / sum(beta**k for k in range(n)) for n in counts]
    expected = [3 * w / sum(raw) for w in raw]
    for given in [labels, labels.tolist(), torch.from_numpy(labels), labels[::-1].astype(np.int8)]:
        weights = class_weights(given, 3, scheme, beta)
        assert weights.dtype == torch.float32
        np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_errors() -> None:
    with pytest.raises(CohortError) as error:
        class_weights([0, 0, 5, -1, 5], 3)
    assert error.value.problems == [
        "label -1 (1x) lies outside 0..2",
        "label 5 (2x) lies outside 0..2",
        "class 1 has no sample",
        "class 2 has no sample",
    ]
    with pytest.raises(CohortError, match="class 0 has no sample"):
        class_weights([], 1)
    with pytest.raises(TypeError, match="labels must be integers, got float64"):
        class_weights([0.0, 1.0], 2)
    with pytest.raises(ValueError, match=r"labels must be \(N,\), got shape \(1, 2\)"):
        class_weights([[0, 1]], 2)
    with pytest.raises(ValueError, match="scheme must be one of inverse, effective, got 'balanced'"):
        class_weights([0, 1], 2, "balanced")
    with pytest.raises(ValueError, match="beta must be"):
        class_weights([0, 1], 2, "effective", beta=1)
    with pytest.raises(ValueError, match="gamma must be 0 or more"):
        FocalLoss(-1)
    with pytest.raises(ValueError, match="weight must be"):
        FocalLoss(weight=[1, -1])
    with pytest.raises(ValueError, match=r"wanted logits \(N, C\) and labels \(N,\), got \(4, 2\) and \(4, 1\)"):
        FocalLoss()(torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.int64))
