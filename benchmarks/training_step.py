"""A training step of 3D ResNet-18: bf16 and float32, memory formats, compilation, gradient checkpointing.

    python benchmarks/training_step.py [--rounds 5] [--size 64] [--batch 8] [--compile]

A step is forward pass, backward pass and AdamW on the same volumes. Before anything is timed, fp32 and bf16 each train
the same initial weights for 50 steps on the same noisy volumes; the table lists the mean loss of the last ten steps,
and, as a measure of noise, that of another initialization in fp32. The reference for ratios is the precision that the
trainer chooses. Peak memory is the increase during a step on two volumes of 128^3, in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from harness import arguments, record, timed
from monai.networks.nets import DenseNet121, resnet18, resnet50
from torch import Tensor, nn
from torch.nn import functional

from monai_pipelines.engines.precision import measured_precision
from monai_pipelines.networks import checkpointed
from monai_pipelines.networks.precision import Precision, autocast

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RESNET = {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 2, "conv1_t_stride": 2, "bias_downsample": False}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: resnet18(**RESNET),
    "ResNet-50": lambda: resnet50(**RESNET),
    "DenseNet-121": lambda: DenseNet121(spatial_dims=3, in_channels=1, out_channels=2),
}


def step(network: nn.Module, images: Tensor, labels: Tensor, precision: Precision) -> list[Tensor | None]:
    """Gradients of the cross entropy."""
    network.zero_grad()
    with autocast(precision, DEVICE):
        logits = network(images)
    functional.cross_entropy(logits.float(), labels).backward()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return [parameter.grad for parameter in network.parameters()]


def trained(network: nn.Module, images: Tensor, labels: Tensor, precision: Precision) -> Callable[[], None]:
    """A function that makes one training step."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)

    def run() -> None:
        step(network, images, labels, precision)
        optimizer.step()

    return run


def final_loss(network: nn.Module, size: int, precision: Precision) -> float:
    """Mean loss of the last 10 of 50 steps on volumes that are brighter in one class."""
    generator, losses = torch.Generator().manual_seed(0), []
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for _ in range(50):
        labels = torch.arange(4) % 2
        images = torch.randn(4, 1, *[size] * 3, generator=generator) + 0.02 * labels.reshape(4, 1, 1, 1, 1)
        with autocast(precision, DEVICE):
            logits = network(images.to(DEVICE))
        loss = functional.cross_entropy(logits.float(), labels.to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-10:]) / 10


def _peak(results: Any, name: str, checkpointing: bool, precision: Precision) -> None:
    torch.set_num_threads(1)
    network = checkpointed(NETWORKS[name](), checkpointing).to(memory_format=torch.channels_last_3d)
    images = torch.rand(2, 1, 128, 128, 128)
    before = _high_water_mb()
    step(network, images, torch.tensor([0, 1]), precision)
    results.put(_high_water_mb() - before)


def _high_water_mb() -> float:
    """Of this process alone: ``ru_maxrss`` would include that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def peak_mb(*args: Any) -> int:
    """Peak memory of a step on the CPU, MB above what the process held before."""
    context = get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_peak, args=(results, *args))
    process.start()
    process.join()
    return round(results.get())


def main() -> None:
    parser = arguments(__doc__, "training_step.csv")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="time a compiled network, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def network(seed: int = 0, memory_format: torch.memory_format = torch.channels_last_3d) -> nn.Module:
        torch.manual_seed(seed)
        return NETWORKS["ResNet-18"]().to(DEVICE, memory_format=memory_format)  # type: ignore[call-overload]

    losses = {
        name: final_loss(network(seed), min(args.size, 48), precision)
        for name, seed, precision in [("fp32", 0, "fp32"), ("bf16", 0, "bf16"), ("other weights", 1, "fp32")]
    }
    print(", ".join(f"{name}: loss {loss:.3f}" for name, loss in losses.items()))
    images = torch.rand(args.batch, 1, *[args.size] * 3, device=DEVICE)
    labels = torch.arange(args.batch, device=DEVICE) % 2
    methods = {
        "fp32": trained(network(), images, labels, "fp32"),
        "fp32, contiguous": trained(network(memory_format=torch.contiguous_format), images, labels, "fp32"),
        "bf16": trained(network(), images, labels, "bf16"),
        "bf16, contiguous": trained(network(memory_format=torch.contiguous_format), images, labels, "bf16"),
    }
    probe = network()
    chosen = measured_precision(lambda precision: deepcopy(step(probe, images, labels, precision)))
    if args.compile:
        compiled = network()
        compiled.compile()
        methods[f"{chosen}, compiled"] = trained(compiled, images, labels, chosen)
    differences = {
        name: f"loss of steps 41-50: {losses[name]:.3f}, of other weights {losses['other weights']:.3f}"
        for name in ("fp32", "bf16")
    }
    differences[chosen] += "; chosen by the trainer"
    if DEVICE == "cpu":
        for name in NETWORKS:
            plain, frugal = peak_mb(name, False, "fp32"), peak_mb(name, True, "fp32")
            text = f"{name}, 2 x 128^3: peak {plain} MB, with checkpointing {frugal} ({frugal / plain:.2f})"
            print(text)
            differences["fp32"] += f"; {text}"
    data = f"3D ResNet-18, {args.batch} x {args.size}^3, {DEVICE}"
    record(args.csv, timed(methods, args.rounds), lambda name: chosen, differences, data, "torch", "monai")


if __name__ == "__main__":
    main()
