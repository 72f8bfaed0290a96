"""All checks and benchmarks that need a GPU, on data generated here; they can be rehearsed on a CPU.

    python benchmarks/gpu.py [--rounds 5] [--device cuda] [--scale 1] [--csv benchmarks/results/gpu.csv]

1. The augmentation chains on a batch on the device against the same draws on the CPU: the largest difference in the
   image.
2. Training with `ModelSupervisedTrainer` and `precision: auto`: images per second and the share of the
   time in which the GPU was busy (kernels of the profiler): 3D ResNet-18 on volumes of 128^3, ResNet-50 on tiles of
   224^2, attention MIL on 16 bags of 10,000 tiles.
3. A step in bf16 and in fp32, with and without gradient checkpointing: time, peak memory, gradients.
4. `augment_ct` and `augment_image2d` on a batch, against MONAI's transforms on one item at a time, on the device.

It needs torch, monai, ignite, numpy, scipy, scikit-learn, scikit-image and this package. `--scale 8` divides sizes and
numbers by 8, for a rehearsal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import arguments, record, timed
from ignite.engine import Events
from monai import transforms as monai
from monai.networks.nets import resnet18, resnet50
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import get_total_norm
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from monai_pipelines import load_chain
from monai_pipelines.data import PrepareImages
from monai_pipelines.engines import Model, ModelSupervisedTrainer
from monai_pipelines.features import PrepareBags
from monai_pipelines.inferers import AutocastInferer
from monai_pipelines.networks import AttentionMIL, checkpointed
from monai_pipelines.networks.precision import Precision, autocast, used_precision

ALWAYS_3D = {f"{part}_prob": 1 for part in ("rotation", "scale", "shift", "elastic", "brightness", "contrast", "noise")}
ALWAYS_2D = {
    f"{part}_prob": 1 for part in ("rotation", "scale", "shift", "brightness", "contrast", "saturation", "hue")
}
TOLERANCE = 2e-3  # of the range 0..1


def difference(name: str, batch: Tensor, device: str, **knobs: Any) -> float:
    """Largest difference between a chain on the device and on the CPU, of the same draws."""
    results = [load_chain(name, **knobs).set_random_state(0)(batch.to(place)).cpu() for place in ("cpu", device)]
    return float((results[0] - results[1]).abs().max())


class Training(NamedTuple):
    """A network, its data and how batches are prepared."""

    network: nn.Module
    items: list[dict[str, Any]]
    batch_size: int
    prepare: Any = PrepareImages()
    augmentation: Any = None


def trainings(scale: int) -> dict[str, Training]:
    """A 3D classifier, a tile classifier and attention MIL."""
    generator = torch.Generator().manual_seed(0)

    def items(num: int, *shape: int, key: str = "image") -> list[dict[str, Any]]:
        return [{key: torch.rand(shape, generator=generator), "label": i % 2, "name": str(i)} for i in range(num)]

    volume, tile, num_tiles = 128 // scale, 224 // scale, 10_000 // scale
    published = {"num_classes": 2, "conv1_t_stride": 2, "bias_downsample": False}
    bags = [{**item, "mask": torch.ones(num_tiles, dtype=torch.bool)} for item in items(32, num_tiles, 1024, key="bag")]
    return {
        f"3D ResNet-18, 8 x {volume}^3": Training(
            resnet18(spatial_dims=3, n_input_channels=1, **published).to(memory_format=torch.channels_last_3d),
            items(64 // scale, 1, *[volume] * 3),
            8,
            augmentation=load_chain("augment_ct"),
        ),
        f"ResNet-50, 64 x {tile}^2": Training(
            resnet50(spatial_dims=2, n_input_channels=3, **published).to(memory_format=torch.channels_last),
            items(1024 // scale**2, 3, tile, tile),
            min(64, 1024 // scale**2),
            augmentation=load_chain("augment_image2d"),
        ),
        f"attention MIL, 16 x {num_tiles} tiles": Training(AttentionMIL(1024, 2), bags, 16, PrepareBags()),
    }


def train(training: Training, device: str) -> tuple[float, float, str]:
    """Images per second in the second epoch, share of the third in which the GPU was busy, and the precision."""
    inferer = AutocastInferer()
    model = Model(
        training.network.to(device), load_chain("image2d"), ["a", "b"], torch.device(device), inferer, training.prepare
    )
    loader = DataLoader(training.items, training.batch_size, shuffle=True, pin_memory=device == "cuda")  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(model.network.parameters(), 1e-4)
    trainer = ModelSupervisedTrainer(
        model, 3, loader, optimizer, nn.CrossEntropyLoss(), augmentation=training.augmentation
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: synchronize(device))
    seconds: list[float] = []
    profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])])

    def started() -> None:
        if trainer.state.epoch == 3:
            profiler.start()
        seconds.append(time.perf_counter())

    def completed() -> None:
        seconds[-1] = time.perf_counter() - seconds[-1]

    trainer.add_event_handler(Events.EPOCH_STARTED, started)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, completed)
    trainer.run()
    profiler.stop()
    busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
    return len(training.items) / seconds[1], busy / seconds[2], used_precision(inferer.precision, device)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def steps(device: str, size: int, rounds: int, csv: Path) -> None:
    """Time and memory of a step by precision and checkpointing."""
    images = torch.rand(4, 1, *[size] * 3, device=device)
    labels = torch.arange(4, device=device) % 2
    torch.manual_seed(0)
    network = resnet18(spatial_dims=3, n_input_channels=1, num_classes=2, conv1_t_stride=2, bias_downsample=False)
    network = network.to(device, memory_format=torch.channels_last_3d)
    methods: dict[str, Callable[[], Any]] = {}
    notes: dict[str, str] = {}
    wanted: list[Tensor] = []
    options: list[tuple[str, Precision, bool]] = [("step, fp32", "fp32", False), ("step, bf16", "bf16", False)]
    for name, precision, frugal in [*options, ("step, bf16, checkpointing", "bf16", True)]:
        trained = checkpointed(deepcopy(network), frugal)

        def step(trained: nn.Module = trained, precision: Precision = precision) -> list[Tensor]:
            with autocast(precision, device):
                logits = trained(images)
            gradients = torch.autograd.grad(functional.cross_entropy(logits.float(), labels), [*trained.parameters()])
            synchronize(device)
            return list(gradients)

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        gradients = step()
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), name
        wanted = wanted or gradients
        error = get_total_norm([a - b for a, b in zip(gradients, wanted, strict=True)]) / get_total_norm(wanted)
        peak = round(torch.cuda.max_memory_allocated() / 2**20) if device == "cuda" else "?"
        notes[name] = f"peak {peak} MB, gradients {error:.3f} from fp32's"
        methods[name] = step
    data = f"3D ResNet-18, 4 x {size}^3, {device}"
    record(csv, timed(methods, rounds), lambda name: "step, bf16", notes, data, "torch", "monai", device=device)


def augmentations(device: str, scale: int, rounds: int, csv: Path) -> None:
    """Our chains on batches, MONAI's transforms on each item."""
    volumes = torch.rand(8, 1, *[128 // scale] * 3, device=device)
    tiles = torch.rand(128 // scale, 3, 224 // scale, 224 // scale, device=device)
    intensity = [
        monai.RandScaleIntensity(0.1, prob=1),
        monai.RandAdjustContrast(prob=1, gamma=(0.9, 1.1)),
        monai.RandGaussianNoise(prob=1, std=0.05),
    ]
    reach = {"prob": 1, "padding_mode": "zeros", "device": device}
    affine_3d = monai.RandAffine(rotate_range=[0.17] * 3, translate_range=[5] * 3, scale_range=[0.1] * 3, **reach)
    affine_2d = monai.RandAffine(rotate_range=0.17, translate_range=[10] * 2, scale_range=[0.1] * 2, **reach)
    elastic = monai.Rand3DElastic(
        sigma_range=(5, 7),
        magnitude_range=(50, 150),
        rotate_range=[0.17] * 3,
        translate_range=[5] * 3,
        scale_range=[0.1] * 3,
        **reach,
    )
    chain_3d = load_chain("augment_ct", **ALWAYS_3D)
    chain_2d = load_chain("augment_image2d", **ALWAYS_2D)

    def each(*parts: Any) -> Callable[[Tensor], list[Tensor]]:
        chain = monai.Compose(parts)
        return lambda batch: [chain(item) for item in batch]

    def on(batch: Tensor, function: Callable[[Tensor], Any]) -> Callable[[], None]:
        def run() -> None:
            function(batch)
            synchronize(device)

        return run

    methods = {
        "augment_ct": on(volumes, chain_3d),
        "MONAI Rand3DElastic, intensity": on(volumes, each(elastic, *intensity)),
        "MONAI RandAffine, intensity": on(volumes, each(affine_3d, *intensity)),
        "augment_image2d": on(tiles, chain_2d),
        "MONAI RandAffine, intensity, 2D": on(tiles, each(affine_2d, *intensity[:2])),
    }
    data = f"batches {tuple(volumes.shape)} and {tuple(tiles.shape)}, {device}"
    two_d = ("augment_image2d", "MONAI RandAffine, intensity, 2D")
    ours = lambda name: "augment_image2d" if name in two_d else "augment_ct"  # noqa: E731
    record(csv, timed(methods, rounds), ours, {}, data, "torch", "monai", device=device)


def main() -> None:
    parser = arguments(__doc__, "gpu.csv")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scale", type=int, default=1)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    volumes = torch.rand(4, 1, *[64 // args.scale * 2] * 3, generator=generator)
    tiles = torch.rand(16, 3, 224 // args.scale, 224 // args.scale, generator=generator)
    for name, batch, knobs in [
        ("augment_ct", volumes, {**ALWAYS_3D, "flip_prob": 0.5}),
        ("augment_image2d", tiles, {**ALWAYS_2D, "stain_sigma": 0.1, "stain_prob": 1}),
    ]:
        error = difference(name, batch, args.device, **knobs)
        print(f"{name}: at most {error:.1e} from the CPU's")
        assert error < TOLERANCE, f"{name}: wanted at most {TOLERANCE}"
    seconds, notes = {}, {}
    for name, training in trainings(args.scale).items():
        rate, busy, precision = train(training, args.device)
        seconds[f"training, {name}"] = [1 / rate]
        notes[f"training, {name}"] = f"{rate:.1f} items/s, GPU busy {busy:.0%}, {precision}"
    data = f"tensors in memory, {args.device}"
    record(args.csv, seconds, lambda name: name, notes, data, "torch", "monai", device=args.device)
    steps(args.device, 128 // args.scale, args.rounds, args.csv)
    augmentations(args.device, args.scale, args.rounds, args.csv)
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
