"""One epoch of a data set of PathMNIST's size (90,000 x 28 x 28 x 3): time for the data, against training and PIL.

    python benchmarks/medmnist_loading.py [--rounds 5] [--batches 100] [--csv benchmarks/results/medmnist_loading.csv]

Ours: all images in memory; a batch of 128 is gathered, augmented (`augment_image2d`) and normalized as a whole. The
plain loader follows torchvision's tutorials, here without torchvision: PIL image, flip, jitter of brightness, contrast
and saturation, to tensor, normalize, `default_collate`. "Flip and jitter" is the same for both; "all" is the chain with
its defaults (flip, rotation, scale, shift, brightness, contrast, saturation, hue). Training: ResNet-18 with the small
stem, Adam, one step of 128 in float32 or with bfloat16 autocast.

Methods alternate; each is timed on some batches (or steps) and scaled to the 703 batches of an epoch. Appended to the
CSV: medians, images/s, and the data's share of data + training (one process, nothing overlaps).
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import resnet18
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import default_collate

from monai_pipelines import Chain, load_chain
from monai_pipelines.data import ArrayDataset, collate_batches
from monai_pipelines.transforms import NormalizeImage

NUM_IMAGES, BATCH = 90_000, 128
EPOCH = NUM_IMAGES // BATCH
FLIP_AND_JITTER = {"rotation_prob": 0, "scale_prob": 0, "shift_prob": 0, "hue_prob": 0}
JITTERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class PlainDataset(Dataset):
    """One image at a time, by PIL."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.images[index])
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for jitter in JITTERS:
            if random.random() < 0.5:
                image = jitter(image).enhance(random.uniform(0.9, 1.1))
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        return tensor.sub_(0.5).div_(0.5), int(self.labels[index])


def ours(images: np.ndarray, labels: np.ndarray, augmentation: Chain) -> Iterator[torch.Tensor]:
    """Endless batches, ready for the network."""
    dataset = ArrayDataset(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)
    loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True, collate_fn=collate_batches)
    normalize = NormalizeImage(0.5, 0.5)
    while True:
        for batch in loader:
            yield normalize(augmentation(batch["image"]))


def plain(images: np.ndarray, labels: np.ndarray, num_workers: int) -> Iterator[torch.Tensor]:
    """Endless batches of the plain loader."""
    dataset = PlainDataset(images, labels)
    loader = DataLoader(
        dataset, BATCH, shuffle=True, drop_last=True, num_workers=num_workers, collate_fn=default_collate
    )
    while True:
        for image, _ in loader:
            yield image


def training(bfloat16: bool) -> Callable[[], None]:
    """One training step."""
    network = resnet18(
        spatial_dims=2, n_input_channels=3, num_classes=9, conv1_t_size=3, conv1_t_stride=1, no_max_pool=True,
        bias_downsample=False,
    )  # fmt: skip
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    image = torch.randn(BATCH, 3, 28, 28).contiguous(memory_format=torch.channels_last)
    label = torch.randint(9, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = torch.nn.functional.cross_entropy(network(image), label)
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=100, help="of data, timed per round")
    parser.add_argument("--steps", type=int, default=4, help="of training, timed per round")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "medmnist_loading.csv")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, 28, 28, 3), dtype=np.uint8)
    labels = rng.integers(0, 9, NUM_IMAGES)
    sources = {
        "ours, flip and jitter": ours(images, labels, load_chain("augment_image2d", **FLIP_AND_JITTER)),
        "ours, all": ours(images, labels, load_chain("augment_image2d")),
        "PIL per image, 0 workers, flip and jitter": plain(images, labels, 0),
        "PIL per image, 2 workers, flip and jitter": plain(images, labels, 2),
    }
    methods: dict[str, tuple[Callable[[], Any], int]] = {
        name: (source.__next__, args.batches) for name, source in sources.items()
    }
    methods["training, float32"] = training(bfloat16=False), args.steps
    methods["training, bfloat16"] = training(bfloat16=True), args.steps
    epochs: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(args.rounds + 1):
        for name, (do, count) in methods.items():
            if name in sources and "2 workers" in name:  # workers would keep working while others are timed
                source = plain(images, labels, 2)
                next(source)
                do = source.__next__
            start = time.perf_counter()
            for _ in range(count if round_ else 2):
                do()
            if round_:
                epochs[name].append((time.perf_counter() - start) / count * EPOCH)
            if "2 workers" in name:
                source.close()
    write_results(args, epochs)


def write_results(args: argparse.Namespace, epochs: dict[str, list[float]]) -> None:
    """Print the medians and append them to the CSV."""
    seconds = {name: statistics.median(values) for name, values in epochs.items()}
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    new = not args.csv.exists()
    columns = ["date", "method", "epoch_s", "min_s", "max_s", "images_per_s", "share_float32", "share_bfloat16"]
    with args.csv.open("a", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        if new:
            out.writerow([*columns, "rounds", "batches", "steps", "machine", "command"])
        for name, values in epochs.items():
            row: list[Any] = [name, *(round(v, 1) for v in (seconds[name], min(values), max(values)))]
            row.append(round(EPOCH * BATCH / seconds[name]))
            for kind in ("float32", "bfloat16"):
                share = seconds[name] / (seconds[name] + seconds[f"training, {kind}"])
                row.append("" if name.startswith("training") else round(share, 4))
            conditions = [args.rounds, args.batches, args.steps]
            out.writerow([datetime.date.today(), *row, *conditions, machine, shlex.join(["python", *sys.argv])])
            shares = "" if name.startswith("training") else f"  share {row[5]:.1%} of float32, {row[6]:.1%} of bfloat16"
            print(f"{name:42} {row[1]:7} s/epoch ({row[2]}-{row[3]}) {row[4]:7} images/s{shares}")


if __name__ == "__main__":
    main()
