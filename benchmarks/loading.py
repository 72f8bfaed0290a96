"""An epoch over prepared volumes of 128^3, per volume: our data set and loader, and MONAI's caching data sets.

    python benchmarks/loading.py [--scans 16] [--rounds 7] [--csv benchmarks/results/loading.csv]

All hold the output of `lung_ct` on the same phantoms (float32, `image` and `shortcut`), prepared beforehand, and yield
batches of 2 in one process. "on disk": files in the system's cache, checked by their checksum here and not by MONAI.
`CacheDataset` copies each item unless `copy_cache=False`, where a random step may change what is cached.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from harness import arguments, record, timed
from monai.data import CacheDataset, DataLoader, Dataset, PersistentDataset
from monai.transforms import Compose, SelectItemsd

from monai_pipelines import load_chain
from monai_pipelines.data import PreparedDataset, make_loader
from monai_pipelines.phantoms import thorax_phantom, write_dicom_series

OURS_DISK, OURS_MEMORY = "PreparedDataset on disk", "PreparedDataset in memory"
BATCH = 2


def write_scans(folder: Path, num: int) -> list[dict]:
    """Phantoms as DICOM series, and their datalist."""
    data = []
    for seed in range(num):
        scan = thorax_phantom(seed, diseased=False, matrix=128, slice_mm=5)
        series = write_dicom_series(folder / f"scan{seed}", scan.hu, scan.affine)
        data.append({"image": str(series), "name": series.name, "label": seed % 2})
    return data


def epoch(loader: Iterable) -> None:
    """Read every batch."""
    for batch in loader:
        batch["image"][..., 0].sum()


def main() -> None:
    parser = arguments(__doc__, "loading.csv", rounds=7)
    parser.add_argument("--scans", type=int, default=16)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        data = write_scans(Path(folder), args.scans)
        chain = load_chain("lung_ct")
        kept = Compose([*chain.transforms, SelectItemsd(["image", "shortcut", "label"])])
        prepare = partial(PreparedDataset, data, chain)
        sets: dict[str, Dataset] = {
            OURS_DISK: prepare(f"{folder}/float32"),
            f"{OURS_DISK}, uint8": prepare(f"{folder}/uint8", storage="uint8"),
            OURS_MEMORY: prepare(),
            "MONAI PersistentDataset": PersistentDataset(data, kept, f"{folder}/monai"),
            "MONAI CacheDataset": CacheDataset(data, kept, progress=False),
            "MONAI CacheDataset, copy_cache=False": CacheDataset(data, kept, progress=False, copy_cache=False),
        }
        expected = [torch.as_tensor(item["image"]) for item in sets[OURS_MEMORY]]
        differences = {
            name: f"largest difference {largest_difference(made, expected):.4f}" for name, made in sets.items()
        }
        methods: dict[str, Callable[[], None]] = {
            name: partial(epoch, DataLoader(made, BATCH) if name.startswith("MONAI") else make_loader(made, BATCH))
            for name, made in sets.items()
        }
        seconds = timed(methods, args.rounds)
    items = {name: [value / args.scans for value in values] for name, values in seconds.items()}
    record(args.csv, items, partner, differences, f"{args.scans} volumes of 128^3 float32", "torch", "monai")


def largest_difference(made: Dataset, expected: list[torch.Tensor]) -> float:
    """Largest absolute difference between the images of two data sets."""
    images = (torch.as_tensor(item["image"]) for item in made)
    return max(float((image - other).abs().max()) for image, other in zip(images, expected, strict=True))


def partner(name: str) -> str:
    """Our data set with the same kind of storage."""
    return OURS_MEMORY if "CacheDataset" in name or name == OURS_MEMORY else OURS_DISK


if __name__ == "__main__":
    main()
