"""Images with the boxes of their lesions as the input of a detector: datasets, patches, batches."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property, partial
from os import PathLike
from typing import Any, Self

import torch
from monai.engines import PrepareBatch
from monai.transforms import Randomizable
from monai.utils import get_seed
from torch import Tensor
from torch.utils.data import Dataset

from monai_pipelines.chains import Chain
from monai_pipelines.data.arrays import collate_batches
from monai_pipelines.data.prepared import PreparedDataset, Splits
from monai_pipelines.data.split import Cohort, Item
from monai_pipelines.detection import Target
from monai_pipelines.metrics import Lesions
from monai_pipelines.transforms import PlaceBoxesd
from monai_pipelines.transforms.boxes import BOX_AFFINE, BOX_KEYS

LESIONS = "lesions"


def collate_boxes(fetched: Sequence[Any]) -> dict[str, Any]:
    """A ``collate_fn`` of images, or lists of patches: boxes, and images of several sizes, come as lists."""
    items = [item for part in fetched for item in (part if isinstance(part, list) else [part])]
    keys = [*BOX_KEYS, LESIONS]
    if len({item["image"].shape for item in items}) > 1:
        keys.append("image")
    lists = {key: [item[key] for item in items] for key in keys if key in items[0]}
    rest = [{key: value for key, value in item.items() if key not in lists} for item in items]
    return {**collate_batches(rest), **lists}


class DetectionDataset(PreparedDataset):
    """`PreparedDataset` of images with the boxes of their lesions, as `read_detection_cohort` lists them.

    Each item has the prepared ``image``; its ``boxes``, ``box_labels`` and ``box_ignore`` placed in it by the chain's
    own `PlaceBoxesd`; ``box_affine``; and ``lesions``, the boxes as they are in the source (`Lesions`), with which
    predictions are compared. Boxes never come from the cache.

    Args:
        data: datalist with ``image`` (path), for training and evaluation also with boxes.
        transform: a chain with the step `PlaceBoxesd`.
        cache_dir, options: of `PreparedDataset`.

    Raises:
        ValueError: a chain without that step.
    """

    collate = staticmethod(collate_boxes)

    def __init__(
        self, data: Sequence[Item], transform: Chain, cache_dir: str | PathLike[str] | None = None, **options: Any
    ) -> None:
        places = [step for step in transform.transforms if isinstance(step, PlaceBoxesd)]
        if len(places) != 1:
            raise ValueError(
                f"DetectionDataset: wanted a chain with one step PlaceBoxesd, such as lung_ct_detection, got "
                f"{len(places)} in {', '.join(transform.describe()['steps'])}"
            )
        self._place = places[0]
        super().__init__(data, transform, cache_dir, outputs=("image", BOX_AFFINE), **options)

    @property
    def num_lesions(self) -> list[int]:
        """Of each item, without those to be ignored."""
        return [int((~item["box_ignore"]).sum()) for item in self.data]

    def _transform(self, index: int) -> Item:
        item: Any = super()._transform(index)
        if BOX_KEYS[0] in item:
            item[LESIONS] = Lesions(*(item[key] for key in BOX_KEYS))
        placed: Any = self._place(item)
        return placed


class LesionPatches(Dataset, Randomizable):
    """Random patches of the images of a dataset: each item is a list of them, and a batch all of several lists.

    Args:
        dataset: a `DetectionDataset`.
        crop: makes a patch of an item, such as `monai_pipelines.transforms.RandCropLesiond`.
        num_patches: of an image each time it is drawn.

    Attributes:
        dataset: the whole images.
        data, skipped, labels, num_lesions: of the dataset.

    Raises:
        ValueError: no patches.
    """

    collate = staticmethod(collate_boxes)

    def __init__(self, dataset: DetectionDataset, crop: Any, num_patches: int = 2) -> None:
        if num_patches < 1:
            raise ValueError(f"LesionPatches: num_patches must be 1 or more, got {num_patches}")
        self.dataset, self.crop, self.num_patches = dataset, crop, num_patches
        self.set_random_state(get_seed())
        self.data, self.skipped = dataset.data, dataset.skipped
        self.labels, self.num_lesions = dataset.labels, dataset.num_lesions

    def set_random_state(self, seed: int | None = None, state: Any = None) -> Self:
        """Of the crop; MONAI's `DataLoader` gives each worker another one."""
        self.crop.set_random_state(seed, state)
        return self

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> list[Item]:
        item = self.dataset[index]
        return [self.crop(item) for _ in range(self.num_patches)]


class DetectionSplits(Splits[DetectionDataset]):
    """A `DetectionDataset` for each split of a cohort: ``train``, ``validation`` and ``test``.

    Args:
        cohort: of `read_detection_cohort`.
        transform, cache_dir, options: of the `DetectionDataset`.
        crop, num_patches: of `LesionPatches`, which ``train`` then is; None: whole images.
    """

    def __init__(
        self,
        cohort: Cohort,
        transform: Chain,
        cache_dir: str | PathLike[str] | None = None,
        crop: Any = None,
        num_patches: int = 2,
        **options: Any,
    ) -> None:
        self._crop, self._num_patches = crop, num_patches
        super().__init__(cohort, partial(DetectionDataset, transform=transform, cache_dir=cache_dir, **options))

    @cached_property
    def train(self) -> Any:
        """Whole images, or patches of them."""
        whole = super().train
        return whole if self._crop is None else LesionPatches(whole, self._crop, self._num_patches)


class PrepareDetection(PrepareBatch):
    """Move images and boxes to the device; in training augment them there, each image at random; finish the images.

    In training the detector also gets the targets, and answers with its losses.

    Args:
        finish: the end of the fixed chain (`Chain.since`), applied after the augmentation; None: nothing is left.

    Raises:
        ValueError: images of several sizes in training.
    """

    def __init__(self, finish: Chain | None = None) -> None:
        self.finish, self.chains, self.training = finish, [finish], False

    def for_training(self, augmentation: Chain | None) -> PrepareDetection:
        """The same for the trainer, with an augmentation or without."""
        prepare = copy(self)
        prepare.chains, prepare.training = [augmentation, self.finish], True
        return prepare

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        images, boxes = batchdata["image"], {key: batchdata[key] for key in BOX_KEYS if key in batchdata}
        if isinstance(images, list):
            if self.training:
                sizes = ", ".join(str(tuple(image.shape[1:])) for image in images[:2])
                raise ValueError(f"a batch has images of several sizes, such as {sizes}: train on patches of one size")
            parts = [self({"image": image[None]}, device, non_blocking, **kwargs)[0][0] for image in images]
            return parts, _targets(boxes, device, non_blocking)
        plain = torch.as_tensor(images).as_subclass(Tensor)
        batch = {**boxes, "image": plain.to(device=device, non_blocking=non_blocking, **kwargs)}
        for chain in self.chains:
            if chain is not None:
                batch = chain(batch)
        image = torch.as_tensor(batch["image"]).as_subclass(Tensor)
        targets = _targets(batch, device, non_blocking)
        return (image, targets, (targets,), {}) if self.training else (image, targets)


def _targets(batch: dict[str, Any], device: Any, non_blocking: bool) -> list[Target] | None:
    if BOX_KEYS[0] not in batch:
        return None
    boxes = zip(*(batch[key] for key in BOX_KEYS), strict=True)
    return [Target(*(part.to(device, non_blocking=non_blocking) for part in parts)) for parts in boxes]
