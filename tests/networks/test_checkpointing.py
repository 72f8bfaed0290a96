"""Gradient checkpointing: the same step in less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from monai.networks.nets import DenseNet, resnet10, resnet18
from torch import Tensor, nn
from torch.nn import functional

from monai_pipelines.explain.stages import stages
from monai_pipelines.networks import ImageClassifier, checkpointed
from monai_pipelines.networks.precision import autocast


def _resnet(dims: int = 3, **options: object) -> nn.Module:
    shape = {"spatial_dims": dims, "n_input_channels": 1, "num_classes": 2, "widen_factor": 0.25}
    return resnet10(**shape, bias_downsample=False, **options)


def _densenet(dims: int = 3) -> nn.Module:
    return DenseNet(dims, 1, 2, init_features=8, growth_rate=4, block_config=(2, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet": lambda: _resnet(conv1_t_stride=2),
    "ResNet 2D without pooling": lambda: _resnet(2, no_max_pool=True),
    "ResNet with instance norm": lambda: _resnet(norm=("instance", {"affine": True})),
    "DenseNet": _densenet,
    "ImageClassifier of a ResNet": lambda: ImageClassifier(_resnet(), 3, hidden=4, attention=True),
    "ImageClassifier of a DenseNet": lambda: ImageClassifier(_densenet(2), 1),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bf16", [False, True])
def test_step_is_the_same(name: str, bf16: bool) -> None:
    torch.manual_seed(0)
    plain = NETWORKS[name]()
    frugal = checkpointed(copy.deepcopy(plain))
    frugal = copy.deepcopy(frugal)  # as ensembles do
    dims = next(plain.parameters()).ndim - 2
    image = torch.rand(2, 1, *[32] * dims)
    assert list(plain.state_dict()) == list(frugal.state_dict())
    assert type(plain).__name__ == type(frugal).__name__
    for network in (plain, frugal):
        with autocast("bf16" if bf16 else "fp32", "cpu"):
            logits = network(image)
        logits.float().square().sum().backward()
    for (parameter, one), other in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        error = (one.grad - other.grad).norm() / one.grad.norm()
        assert error < (0.02 if bf16 else 1e-4), parameter
    for (buffer, one), other in zip(plain.named_buffers(), frugal.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=buffer)  # running averages
    torch.testing.assert_close(plain.eval()(image), frugal.eval()(image))
    assert stages(plain, image[:1]) == stages(frugal, image[:1])


def test_keeps_less_for_the_backward_pass() -> None:
    def kept(network: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.rand(2, 1, 64, 64, 64))
        weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
        return sum(size for place, size in sizes.items() if place not in weights)

    for make in (lambda: _resnet(conv1_t_stride=2), _densenet):
        plain, frugal = kept(make()), kept(checkpointed(make()))
        assert frugal < 0.4 * plain


def _peak_mb(checkpointing: bool, results: object) -> None:
    torch.set_num_threads(1)
    network = resnet18(spatial_dims=3, n_input_channels=1, num_classes=2, conv1_t_stride=2, bias_downsample=False)
    network = checkpointed(network, checkpointing).to(memory_format=torch.channels_last_3d)
    image = torch.rand(2, 1, 128, 128, 128)
    before = _high_water_mb()
    functional.cross_entropy(network(image), torch.tensor([0, 1])).backward()
    results.put(_high_water_mb() - before)  # type: ignore[attr-defined]


def _high_water_mb() -> float:
    """Of this process alone: ``ru_maxrss`` would include that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="wants Linux's /proc")
def test_peak_memory_of_a_step() -> None:
    context, peaks = get_context("spawn"), []
    for checkpointing in (False, True):
        results = context.Queue()
        process = context.Process(target=_peak_mb, args=(checkpointing, results))
        process.start()
        peaks.append(results.get(timeout=120))
        process.join()
    assert peaks[1] < 0.7 * peaks[0], f"{peaks} MB"


def test_off_changes_nothing_and_others_are_refused() -> None:
    network = nn.Linear(2, 2)
    assert checkpointed(network, enabled=False) is network
    with pytest.raises(TypeError, match="wanted MONAI's ResNet or DenseNet, or an ImageClassifier, got Linear"):
        checkpointed(network)
