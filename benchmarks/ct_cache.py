"""Time for the data of an epoch: the first, which prepares the scans, and those that read them from the cache.

    python benchmarks/ct_cache.py [--scans 6] [--rounds 3] [--csv benchmarks/results/ct_cache.csv]

Phantom series of 512 x 512 pixels are prepared by the chain `lung_ct` (128 x 128 x 128) into a `PreparedDataset` with a
new cache and read in batches of 2, in one process: "first". "next run" makes the dataset again on that cache, as a
second training does; "second" reads the same dataset once more. ``times_faster`` is relative to the first epoch.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from harness import arguments, record, speedups, timed

from monai_pipelines import load_chain
from monai_pipelines.data import PreparedDataset, make_loader
from monai_pipelines.data.cache import Storage
from monai_pipelines.phantoms import thorax_phantom, write_dicom_series
from monai_pipelines.phantoms.scanners import SCANNERS


def epoch(dataset: PreparedDataset) -> None:
    """Read every batch."""
    for batch in make_loader(dataset, 2):
        batch["image"].sum()


class Epochs:
    """The epochs that are timed, one after the other; the first has a new cache."""

    def __init__(self, data: list[dict], folder: Path, storage: Storage) -> None:
        self.data, self.folder, self.storage = data, folder, storage

    def first(self) -> None:
        self.cache = tempfile.mkdtemp(dir=self.folder)
        self.next_run()

    def next_run(self) -> None:
        self.dataset = PreparedDataset(self.data, load_chain("lung_ct"), self.cache, storage=self.storage)
        epoch(self.dataset)

    def second(self) -> None:
        epoch(self.dataset)


def main() -> None:
    parser = arguments(__doc__, "ct_cache.csv", rounds=3)
    parser.add_argument("--scans", type=int, default=6)
    parser.add_argument("--slice-mm", type=float, default=2.5)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        data = []
        for seed in range(args.scans):
            scan = thorax_phantom(
                seed, diseased=True, matrix=512, slice_mm=args.slice_mm, lesion_mm=(20, 40), scanner=SCANNERS[0]
            )
            series = write_dicom_series(Path(folder) / f"scan{seed}", scan.hu, scan.affine)
            data.append({"image": str(series), "name": series.name, "label": seed % 2})
        volume = "x".join(map(str, scan.hu.shape))
        for storage in ("float32", "uint8"):
            epochs = Epochs(data, Path(folder), storage)
            seconds = timed({"first": epochs.first, "next run": epochs.next_run, "second": epochs.second}, args.rounds)
            extra = {"times_faster": speedups(seconds, "first")}
            record(
                args.csv, seconds, lambda name: "second", {}, f"{args.scans} scans {volume}, {storage} in the cache",
                "torch", "monai", "numba", extra=extra,
            )  # fmt: skip


if __name__ == "__main__":
    main()
