"""One epoch of a data set of PathMNIST's size (90,000 x 28 x 28 x 3): time for the data, against training and PIL.

    python benchmarks/medmnist_loading.py [--rounds 5] [--batches 100] [--csv benchmarks/results/medmnist_loading.csv]

Ours: all images in memory; a batch of 128 is gathered, augmented (`augment_image2d`) and normalized as a whole. The
plain loader follows torchvision's tutorials, here without torchvision: PIL image, flip, jitter of brightness, contrast
and saturation, to tensor, normalize, `default_collate`. "Flip and jitter" is the same for both; "all" is the chain with
its defaults (flip, rotation, scale, shift, brightness, contrast, saturation, hue). Training: ResNet-18 with the small
stem, Adam, one step of 128 in float32 or with bfloat16 autocast.

Methods alternate; each is timed on some batches (or steps) and scaled to the 703 batches of an epoch. Appended to the
CSV: also images/s, and the data's share of data + training (one process, nothing overlaps).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from harness import arguments, medians, per_second, record, timed
from monai.networks.nets import resnet18
from PIL import Image, ImageEnhance
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import default_collate

from monai_pipelines import Chain, load_chain
from monai_pipelines.data import ArrayDataset, collate_batches
from monai_pipelines.transforms import NormalizeImage

OURS = "ours, flip and jitter"
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


class Source:
    """Endless batches, of which some are taken at a time."""

    def __init__(self, make: Callable[[], Iterator[torch.Tensor]]) -> None:
        self.make = make

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Its workers have started; they do not go on while others are timed."""
        self.batches = self.make()
        next(self.batches)
        yield
        self.batches.close()

    def take(self, num_batches: int) -> None:
        for _ in range(num_batches):
            next(self.batches)


def steps(step: Callable[[], None], num_steps: int) -> None:
    """Several training steps."""
    for _ in range(num_steps):
        step()


def main() -> None:
    parser = arguments(__doc__, "medmnist_loading.csv")
    parser.add_argument("--batches", type=int, default=100, help="of data, timed per round")
    parser.add_argument("--steps", type=int, default=4, help="of training, timed per round")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_IMAGES, 28, 28, 3), dtype=np.uint8)
    labels = rng.integers(0, 9, NUM_IMAGES)
    sources = {
        OURS: Source(partial(ours, images, labels, load_chain("augment_image2d", **FLIP_AND_JITTER))),
        "ours, all": Source(partial(ours, images, labels, load_chain("augment_image2d"))),
        "PIL per image, 0 workers, flip and jitter": Source(partial(plain, images, labels, 0)),
        "PIL per image, 2 workers, flip and jitter": Source(partial(plain, images, labels, 2)),
    }
    methods: dict[str, Callable[[], None]] = {
        name: partial(source.take, args.batches) for name, source in sources.items()
    }
    trainings = {kind: f"training, {kind}" for kind in ("float32", "bfloat16")}
    for kind, name in trainings.items():
        methods[name] = partial(steps, training(bfloat16=kind == "bfloat16"), args.steps)
    seconds = timed(methods, args.rounds, {name: source.opened for name, source in sources.items()})
    counts = {name: args.batches if name in sources else args.steps for name in methods}
    epochs = {name: [value / counts[name] * EPOCH for value in values] for name, values in seconds.items()}
    times = medians(epochs)
    extra = {"images_per_s": per_second(epochs, EPOCH * BATCH)}
    for kind, name in trainings.items():
        extra[f"share_{kind}"] = {source: round(times[source] / (times[source] + times[name]), 4) for source in sources}
    data = (
        f"{NUM_IMAGES} images of 28x28x3, scaled from {args.batches} batches of {BATCH} and {args.steps} training steps"
    )
    record(args.csv, epochs, lambda name: OURS, {}, data, "torch", "monai", "pillow", extra=extra)


if __name__ == "__main__":
    main()
