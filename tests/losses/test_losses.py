from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from monai_pipelines.losses import (
    AsymmetricLoss,
    ClassificationLoss,
    CrossEntropyLoss,
    FocalDiceLoss,
    FocalLoss,
    SoftDiceLoss,
)

HEADS = ("one logit", "multi-class", "multi-label")
ALL = [CrossEntropyLoss, FocalLoss, SoftDiceLoss, FocalDiceLoss, AsymmetricLoss]
WEIGHTS = (None, [0.2, 2.0, 0.8])
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)

Arrays = tuple[np.ndarray, np.ndarray]


def _batch(head: str, absent: bool = False, num: int = 40) -> Arrays:
    """Logits and labels; with `absent`, the last class has no samples (multi-label: no positives)."""
    rng = np.random.default_rng(0)
    num_classes = 2 if head == "one logit" else 3
    logits = rng.normal(0, 3, (num, 1 if head == "one logit" else 3))
    if head == "multi-label":
        labels = rng.integers(0, 2, (num, 3))
        labels[:, 2] *= not absent
    else:
        labels = rng.integers(0, num_classes - absent, num)
    return logits, labels


def _weights(head: str, weight: list[float] | None) -> list[float] | None:
    return weight[:2] if weight and head == "one logit" else weight


def _apply(loss: nn.Module, logits: np.ndarray, labels: np.ndarray) -> float:
    return loss(torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(labels)).item()


def _prob(logits: np.ndarray, multilabel: bool) -> np.ndarray:
    """(N, C) probabilities; one logit gives two columns."""
    if multilabel or logits.shape[1] == 1:
        p = 1 / (1 + np.exp(-logits))
        return p if multilabel else np.concatenate([1 - p, p], axis=1)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def _reference_focal(
    logits: np.ndarray, labels: np.ndarray, gamma: float, weight: list[float] | None, smoothing: float = 0.0
) -> float:
    """Focal loss, sample by sample; cross-entropy, also with smoothed labels, where gamma is 0."""
    multilabel = labels.ndim == 2
    p = _prob(logits, multilabel)
    w = np.ones(p.shape[1]) if weight is None else np.array(weight)
    total, norm = 0.0, 0.0
    for i, c in itertools.product(*map(range, p.shape)):
        if multilabel:
            y = labels[i, c] * (1 - smoothing) + smoothing / 2
            total += -w[c] * y * (1 - p[i, c]) ** gamma * np.log(p[i, c])
            total += -(1 - y) * p[i, c] ** gamma * np.log(1 - p[i, c])
            norm += 1
        else:
            y = (labels[i] == c) * (1 - smoothing) + smoothing / p.shape[1]
            total += -w[c] * y * (1 - p[i, c]) ** gamma * np.log(p[i, c])
            norm += w[c] * (labels[i] == c)
    return total / norm


def _reference_dice(logits: np.ndarray, labels: np.ndarray, weight: list[float] | None, smooth: float) -> float:
    p = _prob(logits, labels.ndim == 2)
    total, norm = 0.0, 0.0
    for c in range(p.shape[1]):
        y = labels[:, c] if labels.ndim == 2 else (labels == c).astype(int)
        if y.sum():
            w = 1.0 if weight is None else weight[c]
            total += w * (1 - (2 * (p[:, c] * y).sum() + smooth) / (p[:, c].sum() + y.sum() + smooth))
            norm += w
    return total / norm


def _reference_asymmetric(
    logits: np.ndarray, labels: np.ndarray, gamma_pos: float, gamma_neg: float, clip: float, weight: list[float] | None
) -> float:
    multilabel, single = labels.ndim == 2, logits.shape[1] == 1 and labels.ndim == 1
    p = _prob(logits, multilabel)
    p = p[:, 1:] if single else p
    w = np.ones(3) if weight is None else np.array(weight)
    total, norm = 0.0, 0.0
    for i, c in itertools.product(*map(range, p.shape)):
        y = labels[i, c] if multilabel else labels[i] == (1 if single else c)
        q = max(p[i, c] - clip, 0)
        loss = (1 - p[i, c]) ** gamma_pos * np.log(p[i, c]) if y else q**gamma_neg * np.log(1 - q)
        total -= loss * ((w[c] if y else 1) if multilabel else w[labels[i]])
        norm += 1 if multilabel else w[labels[i]] / p.shape[1]
    return total / norm


@pytest.mark.parametrize(
    ("head", "absent", "weight", "smoothing"), list(itertools.product(HEADS, (False, True), WEIGHTS, (0.0, 0.1, 0.5)))
)
def test_cross_entropy(head: str, absent: bool, weight: list[float] | None, smoothing: float) -> None:
    logits, labels = _batch(head, absent)
    w = _weights(head, weight)
    expected = _reference_focal(logits, labels, 0, w, smoothing)
    assert _apply(CrossEntropyLoss(w, smoothing), logits, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_cross_entropy_equals_torch(weight: list[float] | None) -> None:
    w = None if weight is None else torch.tensor(weight)
    logits, labels = map(torch.from_numpy, _batch("multi-class"))
    logits = logits.float()
    torch.testing.assert_close(
        CrossEntropyLoss(w, 0.1)(logits, labels), nn.CrossEntropyLoss(w, label_smoothing=0.1)(logits, labels)
    )
    logits, labels = map(torch.from_numpy, _batch("multi-label"))
    torch.testing.assert_close(
        CrossEntropyLoss(w)(logits.float(), labels), nn.BCEWithLogitsLoss(pos_weight=w)(logits.float(), labels.float())
    )
    logits, labels = map(torch.from_numpy, _batch("one logit"))
    torch.testing.assert_close(
        CrossEntropyLoss()(logits, labels), nn.BCEWithLogitsLoss()(logits[:, 0], labels.double())
    )


@pytest.mark.parametrize(
    ("head", "absent", "weight", "gamma"), list(itertools.product(HEADS, (False, True), WEIGHTS, GAMMAS))
)
def test_focal(head: str, absent: bool, weight: list[float] | None, gamma: float) -> None:
    logits, labels = _batch(head, absent)
    w = _weights(head, weight)
    loss = _apply(FocalLoss(gamma, w), logits, labels)
    assert loss == pytest.approx(_reference_focal(logits, labels, gamma, w), rel=1e-5)
    if gamma == 0:
        assert loss == pytest.approx(_apply(CrossEntropyLoss(w), logits, labels), rel=1e-5)


@pytest.mark.parametrize(
    ("head", "absent", "weight", "smooth"), list(itertools.product(HEADS, (False, True), WEIGHTS, (1e-5, 1.0)))
)
def test_soft_dice(head: str, absent: bool, weight: list[float] | None, smooth: float) -> None:
    logits, labels = _batch(head, absent)
    w = _weights(head, weight)
    expected = _reference_dice(logits, labels, w, smooth)
    assert _apply(SoftDiceLoss(w, smooth), logits, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("head", "absent", "weight", "gamma", "lambdas", "smooth"),
    list(itertools.product(HEADS, (False, True), WEIGHTS, (0.0, 2.0), ((1, 1), (0, 2), (0.5, 0)), (1e-5, 1.0))),
)
def test_focal_dice(
    head: str, absent: bool, weight: list[float] | None, gamma: float, lambdas: tuple[float, float], smooth: float
) -> None:
    logits, labels = _batch(head, absent)
    w = _weights(head, weight)
    focal, dice = _reference_focal(logits, labels, gamma, w), _reference_dice(logits, labels, w, smooth)
    loss = _apply(FocalDiceLoss(gamma, w, *lambdas, smooth), logits, labels)
    assert loss == pytest.approx(lambdas[0] * focal + lambdas[1] * dice, rel=1e-5)


@pytest.mark.parametrize(
    ("head", "absent", "weight", "gamma_pos", "gamma_neg", "clip"),
    list(itertools.product(HEADS, (False, True), WEIGHTS, (0.0, 1.0), (0.0, 0.5, 4.0), (0.0, 0.05, 0.3))),
)
def test_asymmetric(
    head: str, absent: bool, weight: list[float] | None, gamma_pos: float, gamma_neg: float, clip: float
) -> None:
    logits, labels = _batch(head, absent)
    w = _weights(head, weight)
    loss = _apply(AsymmetricLoss(gamma_pos, gamma_neg, clip, w), logits, labels)
    assert loss == pytest.approx(_reference_asymmetric(logits, labels, gamma_pos, gamma_neg, clip, w), rel=1e-5)
    if head != "multi-class" and gamma_pos == gamma_neg == clip == 0:
        assert loss == pytest.approx(_apply(CrossEntropyLoss(w), logits, labels), rel=1e-5)


def test_hand_worked_values() -> None:
    logits, labels = torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1]])), torch.tensor([0, 1])
    easy, hard = 0.1**2 * -np.log(0.9), 0.9**2 * -np.log(0.1)
    assert FocalLoss(2.0)(logits, labels).item() == pytest.approx((easy + hard) / 2, rel=1e-5)
    # p is unweighted: a weight of 3 counts a sample three times and changes nothing else
    assert FocalLoss(2.0, [1, 3])(logits, labels).item() == pytest.approx((easy + 3 * hard) / 4, rel=1e-5)
    # class 0: 2 * 0.9 / (1.8 + 1); class 1: 2 * 0.1 / (0.2 + 1)
    assert SoftDiceLoss()(logits, labels).item() == pytest.approx(1 - (1.8 / 2.8 + 0.2 / 1.2) / 2, rel=1e-4)
    # only class 0 occurs in the batch
    assert SoftDiceLoss()(logits[:1], labels[:1]).item() == pytest.approx(1 - 1.8 / 1.9, rel=1e-4)

    one = torch.logit(torch.tensor([[0.9], [0.03]]))
    # positive: -log 0.9 unfocused; negative at 0.03 lies below the clip of 0.05
    assert AsymmetricLoss()(one, torch.tensor([1, 0])).item() == pytest.approx(-np.log(0.9) / 2, rel=1e-5)
    assert AsymmetricLoss()(one, torch.tensor([0, 1])).item() == pytest.approx(
        (-(0.85**4) * np.log(0.15) - np.log(0.03)) / 2, rel=1e-5
    )


@pytest.mark.parametrize("loss", [CrossEntropyLoss, FocalLoss, SoftDiceLoss, FocalDiceLoss])
def test_one_logit_is_two_classes(loss: type[ClassificationLoss]) -> None:
    logits, labels = map(torch.from_numpy, _batch("one logit"))
    two = torch.cat([torch.full_like(logits, 7.0), logits + 7.0], 1)
    weighted = loss(weight=[1, 4]).double()
    torch.testing.assert_close(weighted(logits, labels), weighted(two, labels))


@pytest.mark.parametrize(
    "make",
    [
        CrossEntropyLoss,
        *[lambda gamma=gamma: FocalLoss(gamma) for gamma in (0.0, 0.5, 1.0, 2.0)],
        SoftDiceLoss,
        FocalDiceLoss,
        AsymmetricLoss,
        *[lambda g=g, clip=clip: AsymmetricLoss(g, g, clip) for g in (0.0, 0.5, 2.0) for clip in (0.0, 0.05)],
    ],
)
@pytest.mark.parametrize("head", HEADS)
def test_gradient_is_finite_at_certainty(make: Callable[[], nn.Module], head: str) -> None:
    extreme = torch.tensor([[100.0], [-100.0], [100.0], [-100.0], [0.0]])
    logits = extreme if head == "one logit" else extreme * torch.tensor([1, -1, 0.5])
    logits.requires_grad_()
    labels = torch.tensor([1, 1, 0, 0, 0])
    labels = torch.stack([labels, labels, 1 - labels], 1) if head == "multi-label" else labels
    loss = make()(logits, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[4].abs().max() > 0


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), FocalLoss(0.5), FocalLoss(2.0), AsymmetricLoss(clip=0.0)])
@pytest.mark.parametrize("head", HEADS)
def test_certain_and_wrong_has_a_gradient(loss: nn.Module, head: str) -> None:
    logits = torch.full((1, 1), -60.0) if head == "one logit" else torch.tensor([[60.0, -60.0, -60.0]])
    labels = torch.tensor([[0, 1, 0]]) if head == "multi-label" else torch.tensor([1])
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad[0, -1 if head == "one logit" else 1] < -0.1


@pytest.mark.parametrize(
    "loss", [FocalLoss(0.5), FocalLoss(2.0, [1, 2, 3]), SoftDiceLoss([1, 2, 3]), AsymmetricLoss(1, 4, 0.05, [1, 2, 3])]
)
@pytest.mark.parametrize("head", ["multi-class", "multi-label"])
def test_gradient_by_finite_differences(loss: nn.Module, head: str) -> None:
    logits, labels = map(torch.from_numpy, _batch(head, num=4))
    assert torch.autograd.gradcheck(lambda x: loss.double()(x, labels), logits.requires_grad_())


def test_multi_label_batch_without_positives_has_no_dice_loss() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = SoftDiceLoss()(logits, torch.zeros(4, 3, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("label", [-100, -1, 3])
def test_no_label_is_ignored(loss: type[nn.Module], label: int) -> None:
    labels = torch.tensor([0, 1, label])
    for num_logits in (1, 3):
        with pytest.raises((IndexError, RuntimeError)):
            loss()(torch.zeros(3, num_logits), labels)


@pytest.mark.parametrize("make", ALL)
def test_weights_are_pickled_and_moved(make: Any) -> None:
    loss = pickle.loads(pickle.dumps(make(weight=[1, 2]))).to(torch.float64)
    buffers = list(loss.buffers())
    assert buffers
    assert all(buffer.dtype == torch.float64 for buffer in buffers)
    logits, labels = torch.tensor([[0.5, 0.0], [0.0, 0.0]], dtype=torch.float64), torch.tensor([0, 1])
    torch.testing.assert_close(loss(logits, labels).float(), make(weight=[1, 2])(logits.float(), labels))


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("weight", [[1, -1], [1, 0], [[1.0, 2.0]], [1, float("nan")], 3.0])
def test_weight_errors(make: Any, weight: Any) -> None:
    with pytest.raises(ValueError, match=r"weight must be \(C,\), each above 0"):
        make(weight=weight)


@pytest.mark.parametrize("make", ALL)
def test_shape_errors(make: Any) -> None:
    for logits, labels in [((4, 2), (4, 1)), ((4, 2), (3,)), ((4,), (4,)), ((4, 2, 2), (4, 2, 2))]:
        with pytest.raises(ValueError, match=r"wanted logits \(N, C\) with labels \(N,\) or \(N, C\)"):
            make()(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))
    for logits, labels, num_weights in [((4, 3), (4,), 3), ((4, 1), (4, 1), 1), ((4, 3), (4, 3), 3)]:
        with pytest.raises(ValueError, match=f"wanted {num_weights} weights, one for each class, got 2"):
            make(weight=[1, 2])(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


def test_argument_errors() -> None:
    with pytest.raises(ValueError, match="label_smoothing must be 0 or more and below 1, got 1"):
        CrossEntropyLoss(label_smoothing=1)
    with pytest.raises(ValueError, match="gamma must be 0 or more, got -1"):
        FocalLoss(-1)
    with pytest.raises(ValueError, match="smooth must be above 0, got 0"):
        SoftDiceLoss(smooth=0)
    with pytest.raises(ValueError, match="not both 0, got 0 and 0"):
        FocalDiceLoss(lambda_focal=0, lambda_dice=0)
    with pytest.raises(ValueError, match="gamma_pos and gamma_neg must be 0 or more, got 0 and -4"):
        AsymmetricLoss(0, -4)
    with pytest.raises(ValueError, match="clip must be 0 or more and below 1, got 1"):
        AsymmetricLoss(clip=1)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("head", HEADS)
def test_dtypes(make: Any, head: str) -> None:
    logits, labels = map(torch.from_numpy, _batch(head))
    loss = make(weight=_weights(head, WEIGHTS[1]))
    expected = loss(logits.float(), labels)
    for kind in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(loss(logits.float(), labels.to(kind)), expected)
    torch.testing.assert_close(loss(logits, labels).float(), expected)
    for half in (torch.float16, torch.bfloat16):
        out = loss(logits.to(half), labels)
        assert out.dtype == torch.float32
        assert torch.equal(out, loss(logits.to(half).float(), labels))
    if head != "multi-label":
        with pytest.raises(TypeError, match=r"wanted integer labels \(N,\), got torch.float32 .*labels.long\(\)"):
            loss(logits.float(), labels.float())


def test_base_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ClassificationLoss()


def test_all_losses_are_tested() -> None:
    def kinds(base: type) -> set[type]:
        return {c for k in base.__subclasses__() for c in {k, *kinds(k)}}

    assert kinds(ClassificationLoss) == {*ALL}
