"""Data loaders, and how a batch becomes the network's input."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import DataLoader
from monai.engines import PrepareBatch

from monai_pipelines import processes
from monai_pipelines.chains import Chain
from monai_pipelines.data.arrays import collate_batches
from monai_pipelines.data.sampling import batch_sampler


class PrepareImages(PrepareBatch):
    """Move images and labels to the device, augment the batch there, each image at random, and finish it.

    Args:
        augmentation: a chain that works on batches; None: no augmentation.
        finish: the end of the fixed chain (`Chain.since`), applied after the augmentation; None: nothing is left.
    """

    def __init__(self, augmentation: Chain | None = None, finish: Chain | None = None) -> None:
        self.augmentation, self.finish = augmentation, finish

    def for_training(self, augmentation: Chain | None) -> PrepareImages:
        """The same for the trainer, with an augmentation or without."""
        return PrepareImages(augmentation, self.finish)

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        image = torch.as_tensor(batchdata["image"]).as_subclass(torch.Tensor)
        image = image.to(device=device, non_blocking=non_blocking, **kwargs)
        for chain in (self.augmentation, self.finish):
            if chain is not None:
                image = torch.as_tensor(chain(image)).as_subclass(torch.Tensor)
        label = batchdata.get("label")
        return image, None if label is None else label.to(device=device, non_blocking=non_blocking)


class ResumableLoader(DataLoader):
    """MONAI's `DataLoader`, which can continue in the middle of an epoch.

    Attributes:
        skip: number of batches that the next iteration skips. They are loaded anyway, since what a worker process
            draws depends on what it has loaded before.
    """

    skip = 0

    def __iter__(self) -> Any:
        batches = super().__iter__()
        for _ in range(self.skip):
            next(batches)
        self.skip = 0
        return batches


def make_loader(
    dataset: Any,
    batch_size: int,
    sampling: str | None = None,
    num_workers: int = 0,
    seed: int = 0,
    distributed: bool = False,
) -> ResumableLoader:
    """The data loader of a bundle.

    Worker processes are used only with a GPU: on the CPU the network needs the cores, and prepared images load fast.
    In distributed training each process loads its part of the batches.

    Args:
        dataset: a `PreparedDataset`, `ArrayDataset`, `FeatureBags`, `TileBags`, `DetectionDataset` or `LesionPatches`;
            batches are made by its ``collate``, if it has one.
        batch_size: images in a batch of one process.
        sampling: None: all in order; "shuffle", "weighted", "balanced" or "lesions" for training, see
            `monai_pipelines.data.sampling.batch_sampler`: an incomplete last batch is then dropped, unless it is the
            only one.
        num_workers: processes that load.
        seed: of the order.
        distributed: without sampling: whether the processes of a distributed training share the images, instead of each
            loading all of them.

    Raises:
        ValueError: a sampling that does not suit the dataset, or fewer images than processes.
    """
    rank, num_processes = processes.rank(), processes.num_processes()
    if sampling is None:
        order: dict[str, Any] = {"batch_size": batch_size}
        if distributed and num_processes > 1:
            if len(dataset) < num_processes:
                raise ValueError(f"{num_processes} processes need as many validation images, got {len(dataset)}")
            order["sampler"] = range(rank, len(dataset), num_processes)
    else:
        if sampling == "lesions" and not hasattr(dataset, "num_lesions"):
            raise ValueError("make_loader: sampling 'lesions' wants a data set of a detector; use weighted or balanced")
        labels = dataset.num_lesions if sampling == "lesions" else dataset.labels
        order = {"batch_sampler": batch_sampler(labels, sampling, batch_size, seed, rank, num_processes)}
    cuda = torch.cuda.is_available()
    collate = getattr(dataset, "collate", collate_batches)
    return ResumableLoader(
        dataset, **order, num_workers=num_workers if cuda else 0, pin_memory=cuda, collate_fn=collate
    )
