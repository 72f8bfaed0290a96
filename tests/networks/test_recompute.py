"""Activations computed again, against those kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from monai_pipelines.networks.recompute import recomputed


@pytest.mark.parametrize("momentum", [0.1, None])
def test_gradients_dropout_and_running_averages(momentum: float | None) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=momentum), nn.Dropout(0.5), nn.Linear(5, 2))
    again, calls = copy.deepcopy(plain), []
    again.register_forward_pre_hook(lambda *_: calls.append(1))
    rows = torch.randn(2, 9, 6)
    for network in (plain, again):
        torch.manual_seed(1)
        for batch in rows:  # the second backward pass starts from averages that have moved on
            (network(batch) if network is plain else recomputed(network, batch)).square().sum().backward()
    assert len(calls) == 4
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)


def test_two_passes_before_one_backward_pass() -> None:
    """What the second forward pass adds to the running averages is kept."""
    plain = nn.BatchNorm1d(3)
    again, rows = copy.deepcopy(plain), torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    for network in (plain, again):
        parts = [network(batch) if network is plain else recomputed(network, batch) for batch in rows]
        torch.cat(parts).square().sum().backward()
    torch.testing.assert_close(again.running_mean, plain.running_mean)
    assert again.num_batches_tracked == plain.num_batches_tracked == 2


def test_a_forward_of_its_own() -> None:
    norm, rows = nn.BatchNorm1d(3), torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0))
    recomputed(norm, rows, forward=lambda values: norm(values[:, 1])).square().sum().backward()
    torch.testing.assert_close(norm.running_mean, 0.1 * rows[:, 1].mean(0))
    assert norm.num_batches_tracked == 1
