from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_pipelines.losses import AttentionEntropyLoss, CrossEntropyLoss
from monai_pipelines.networks import AttentionMIL


def _network(**options: object) -> AttentionMIL:
    torch.manual_seed(0)
    return AttentionMIL(6, 3, hidden=8, attention=5, dropout=0, **options)


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    return torch.randn(3, 9, 6, generator=generator), mask, torch.tensor([0, 2, 1])


def _reference_entropy(attention: Tensor, mask: Tensor) -> float:
    """Mean over bags and branches, from the real tiles alone, in float64."""
    entropies = []
    for bag, real in zip(attention.detach().numpy().astype(float), mask.numpy(), strict=True):
        entropies += [-(a[real] * np.log(a[real])).sum() for a in bag]
    return float(np.mean(entropies))


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("weight", [0.0, 0.001, 2.0])
def test_formula(branches: int, weight: float) -> None:
    network = _network(branches=branches)
    bag, mask, label = _batch()
    logits = network(bag, mask)
    assert network.attention_weights is not None
    loss = AttentionEntropyLoss(network, CrossEntropyLoss(), weight)(logits, label).item()
    entropy = _reference_entropy(network.attention_weights, mask)
    assert loss == pytest.approx(CrossEntropyLoss()(logits, label).item() + weight * entropy, abs=1e-5)


def test_hand_worked() -> None:
    network = nn.Module()
    network.attention_weights = torch.tensor([[[0.5, 0.5, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0]]])
    loss = AttentionEntropyLoss(network, lambda logits, label: logits.sum(), weight=1)
    assert loss(torch.zeros(2, 1, requires_grad=True), torch.zeros(2)).item() == pytest.approx(np.log(2) / 2)


def test_metrics_get_the_loss_alone() -> None:
    network = _network()
    bag, mask, label = _batch()
    loss = AttentionEntropyLoss(network, CrossEntropyLoss(), weight=1)
    with torch.no_grad():
        logits = network.eval()(bag, mask)
    assert loss(logits, label) == CrossEntropyLoss()(logits, label)
    twice, labels = torch.cat([logits, logits]), label.repeat(2)  # as many bags as an epoch has
    assert loss(twice, labels) == CrossEntropyLoss()(twice, labels)


def test_networks_without_attention_train_at_weight_0() -> None:
    bag, mask, label = _batch()
    logits = _network(pooling="mean")(bag, mask)
    loss = AttentionEntropyLoss(_network(pooling="mean"), CrossEntropyLoss(), weight=0.0)
    assert loss(logits, label) == CrossEntropyLoss()(logits, label)


def test_gradient_concentrates_attention_and_is_finite() -> None:
    network = _network()
    bag, mask, label = _batch()
    bag.requires_grad_()
    loss = AttentionEntropyLoss(network, lambda logits, label: 0 * logits.sum(), weight=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    values = []
    for _ in range(40):
        value = loss(network(bag, mask), label)
        value.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    assert bag.grad is not None
    assert bag.grad.isfinite().all()
    assert (bag.grad[~mask] == 0).all()
    assert values[-1] < 0.5 * values[0]


def test_underflowing_attention_has_no_gradient() -> None:
    scores = torch.tensor([[[300.0, 0.0, 0.0]]], requires_grad=True)
    network = nn.Module()
    network.attention_weights = scores.softmax(2)
    loss = AttentionEntropyLoss(network, lambda logits, label: logits.sum(), weight=1)
    loss(torch.zeros(1, 1, requires_grad=True), torch.zeros(1)).backward()
    assert scores.grad is not None
    assert (scores.grad == 0).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"weight must be 0 or more, got -1"):
        AttentionEntropyLoss(_network(), CrossEntropyLoss(), -1)
    bag, mask, label = _batch()
    mean = _network(pooling="mean")
    with pytest.raises(ValueError, match="wanted the attention of 3 bags, AttentionMIL keeps none"):
        AttentionEntropyLoss(mean, CrossEntropyLoss())(mean(bag, mask), label)
    network = _network()
    network(bag[:2], mask[:2])
    with pytest.raises(ValueError, match="wanted the attention of 3 bags, AttentionMIL keeps that of 2"):
        AttentionEntropyLoss(network, CrossEntropyLoss())(mean(bag, mask), label)
