"""Boxes around lesions: into the image's tensor, along with random changes of the image, and back to the source.

Boxes are (N, 2 d), all minima before all maxima, in the order of the axes: (y_min, x_min, y_max, x_max) in an image
(C, H, W), (x_min, y_min, z_min, x_max, y_max, z_max) in a volume (C, X, Y, Z). In a tensor a coordinate is an edge:
voxel k reaches from k to k + 1, and its center, which an affine maps, is k + 0.5. In the source they are RAS mm for
scans, and edges of the stored, upright image's pixels in 2D.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import InvertibleTransform, MapTransform, Transform
from monai.utils import convert_to_tensor, ensure_tuple, ensure_tuple_rep
from torch import Tensor

from monai_pipelines.transforms.inverse import NoWayBack
from monai_pipelines.transforms.random import RandStep, RandStepd

BOX_KEYS = ("boxes", "box_labels", "box_ignore")
BOX_AFFINE = "box_affine"
MIN_VISIBLE = 0.3


def move_boxes(boxes: NdarrayOrTensor, affine: NdarrayOrTensor) -> Tensor:
    """Move boxes by an affine.

    A box stands for the ellipsoid that touches its sides, as lesions are round: the result touches the moved ellipsoid.
    Under shifts, scales, flips and quarter turns this is the moved box. A lesion given by center and diameter keeps its
    size through oblique scans, there and back, where a box around the corners grows with each turn.

    Args:
        boxes: (N, 2 d).
        affine: (d + 1, d + 1), of box coordinates.

    Returns:
        (N, 2 d) float32, on the device of the boxes.

    Raises:
        ValueError: boxes and affine of other dimensions.

    Example:
        >>> turn = torch.tensor([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
        >>> move_boxes(torch.tensor([[-5.0, -5.0, 5.0, 5.0]]), turn).tolist()
        [[-5.0, -5.0, 5.0, 5.0]]

    Reference: Kalra et al., Towards Rotation Invariance in Object Detection, ICCV 2021.
    """
    values = _checked(boxes)
    matrix = torch.as_tensor(affine).as_subclass(Tensor).to(values.device, torch.float64)
    dims = matrix.shape[-1] - 1
    if matrix.shape != (dims + 1, dims + 1) or values.shape[1] != 2 * dims:
        raise ValueError(
            f"move_boxes: wanted boxes (N, 2 d) and an affine (d + 1, d + 1), got {tuple(values.shape)} and "
            f"{tuple(matrix.shape)}"
        )
    low, high = values.double().chunk(2, dim=1)
    center = (low + high) / 2 @ matrix[:dims, :dims].T + matrix[:dims, dims]
    half = (((high - low) / 2).square() @ matrix[:dims, :dims].T.square()).sqrt()
    return torch.cat([center - half, center + half], dim=1).float()


def edges_affine(affine: Tensor) -> Tensor:
    """An affine between voxel centers (..., d + 1, d + 1) as one between voxel edges."""
    half = torch.eye(affine.shape[-1], dtype=affine.dtype, device=affine.device)
    half[:-1, -1] = 0.5
    return half @ affine @ torch.linalg.inv(half)


def find_box_affine(img: NdarrayOrTensor) -> Tensor:
    """From box coordinates in an image's tensor to those of its source.

    Args:
        img: image (C, H, W) or volume (C, X, Y, Z). A MetaTensor's affine locates it, in 2D relative to
            ``meta["original_affine"]`` (that of the image as stored; without it, the identity).

    Returns:
        (d + 1, d + 1) float64: to RAS mm for volumes, to pixels of the stored image (row, column) in 2D.

    Raises:
        ValueError: neither an image nor a volume.

    Example:
        >>> find_box_affine(torch.zeros(1, 4, 4, 4))[0]  # without an affine, the first voxel's center is at 0 mm
        tensor([ 1.0000,  0.0000,  0.0000, -0.5000], dtype=torch.float64)
    """
    image: Any = convert_to_tensor(img, track_meta=True)
    dims = image.ndim - 1
    if dims not in (2, 3):
        raise ValueError(f"PlaceBoxes: wanted (C, H, W) or (C, X, Y, Z), got shape {tuple(image.shape)}")
    rows = torch.tensor([*range(dims), 3])
    affine = image.affine.cpu().double()[rows][:, rows]
    if dims == 2:
        original = torch.as_tensor(image.meta.get("original_affine", torch.eye(4)), dtype=torch.float64)
        return edges_affine(torch.linalg.inv(original[rows][:, rows]) @ affine)
    affine[:dims, dims] -= affine[:dims, :dims].sum(dim=1) / 2
    return affine


def boxes_to_original(boxes: NdarrayOrTensor, box_affine: NdarrayOrTensor) -> Tensor:
    """Boxes in the tensor that a chain returned, such as predictions, in the coordinates of their source.

    Args:
        boxes: (N, 2 d), edges in the tensor.
        box_affine: (d + 1, d + 1): the item's ``box_affine``, of `PlaceBoxesd`.

    Returns:
        (N, 2 d) float32: RAS mm for scans, pixels of the stored image in 2D.

    Example:
        >>> boxes_to_original(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.diag(torch.tensor([2.0, 2, 1])))
        tensor([[0., 2., 4., 6.]])
    """
    return move_boxes(boxes, box_affine)


def clip_boxes(
    boxes: Tensor, labels: NdarrayOrTensor, ignore: NdarrayOrTensor, size: Sequence[int], min_visible: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of boxes that lie in an image.

    A box outside is dropped. One of which less than ``min_visible`` is left is kept, but to be ignored: it is neither a
    lesion to be found nor background.

    Args:
        boxes: (N, 2 d).
        labels, ignore: (N,), of the boxes.
        size: of the image, without channels.
        min_visible: share of a box's area or volume, 0..1.

    Returns:
        boxes (M, 2 d) float32, labels (M,) int64, ignore (M,) bool.
    """
    dims = len(size)
    if boxes.shape[1] != 2 * dims or not len(boxes) == len(labels) == len(ignore):
        raise ValueError(
            f"boxes in an image of {tuple(size)}: wanted (N, {2 * dims}) with N labels and N ignore, got "
            f"{tuple(boxes.shape)}, {len(labels)} and {len(ignore)}"
        )
    limit = torch.tensor([*size, *size], dtype=boxes.dtype, device=boxes.device)
    inside = torch.minimum(boxes.clamp(min=0), limit)
    share = _extent(inside) / _extent(boxes)
    keep = share > 0
    names, ignored = (torch.as_tensor(part).as_subclass(Tensor).to(boxes.device) for part in (labels, ignore))
    return inside[keep], names.long()[keep], (ignored.bool() | (share < min_visible))[keep]


class PlaceBoxes(Transform):
    """Place the boxes of a source in the tensor that a chain made of its image; the last step of a detection chain.

    The image's affine gives the position of the boxes after any reading, cropping, resampling, padding and flipping:
    no other step of a fixed chain handles them. A box outside the tensor is dropped, one of which less than
    ``min_visible`` is left becomes one to be ignored. Evaluation should therefore compare in the coordinates of the
    source, with the boxes of the datalist: there, a lesion that the chain cut off is missed.

    Args:
        min_visible: share of a box's area or volume, 0..1.

    Returns:
        boxes (M, 2 d) float32, edges in the tensor; labels (M,) int64; ignore (M,) bool; box_affine (d + 1, d + 1)
        float64, see `find_box_affine`.

    Raises:
        ValueError: ``min_visible`` out of range, an image that is neither (C, H, W) nor (C, X, Y, Z), boxes of another
            shape.

    Example:
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.zeros(1, 10, 10), affine=torch.diag(torch.tensor([2.0, 2, 1, 1])))
        >>> boxes, labels, ignore, _ = PlaceBoxes()(image, torch.tensor([[2.0, 4.0, 6.0, 8.0]]), [0], [False])
        >>> boxes  # pixels of a stored image that is twice as large; both centers lie half a pixel from the edge
        tensor([[1.2500, 2.2500, 3.2500, 4.2500]])
    """

    def __init__(self, min_visible: float = MIN_VISIBLE) -> None:
        self.min_visible = checked_share("PlaceBoxes", min_visible)

    def __call__(  # type: ignore[override]
        self,
        img: NdarrayOrTensor,
        boxes: NdarrayOrTensor,
        box_labels: NdarrayOrTensor,
        box_ignore: NdarrayOrTensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        affine = find_box_affine(img)
        return (*self.place(boxes, box_labels, box_ignore, affine, img.shape[1:]), affine)

    def place(
        self,
        boxes: NdarrayOrTensor,
        box_labels: NdarrayOrTensor,
        box_ignore: NdarrayOrTensor,
        box_affine: NdarrayOrTensor,
        size: Sequence[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Place boxes in a tensor of ``size``, without channels, whose ``box_affine`` is known, as from a cache."""
        to_tensor = torch.linalg.inv(torch.as_tensor(box_affine, dtype=torch.float64))
        return clip_boxes(move_boxes(boxes, to_tensor), box_labels, box_ignore, size, self.min_visible)


class PlaceBoxesd(MapTransform, InvertibleTransform):
    """`PlaceBoxes` for dictionaries.

    ``boxes``, ``box_labels`` and ``box_ignore`` of an item are placed in its image; an item without them, such as one
    to be predicted, gets only ``box_affine``. An item that has ``box_affine`` already (its image comes from a cache,
    which keeps that instead of the affine) is placed by it.

    Args:
        keys: one key, the image.
        min_visible: of `PlaceBoxes`.
        allow_missing_keys: whether the image may be missing.
    """

    def __init__(
        self, keys: KeysCollection, min_visible: float = MIN_VISIBLE, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"PlaceBoxesd: wanted one key, as boxes belong to one image, got {list(self.keys)}")
        self.step = PlaceBoxes(min_visible)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if BOX_AFFINE not in d:
                d[BOX_AFFINE] = find_box_affine(d[key])
            if BOX_KEYS[0] in d:
                boxes, labels, ignore = (d[k] for k in BOX_KEYS)
                placed = self.step.place(boxes, labels, ignore, d[BOX_AFFINE], d[key].shape[1:])
                d |= dict(zip(BOX_KEYS, placed, strict=True))
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Boxes, such as predictions, back in the source by the item's ``box_affine``, which it loses."""
        d = dict(data)
        if BOX_KEYS[0] in d:
            d[BOX_KEYS[0]] = boxes_to_original(d[BOX_KEYS[0]], d.pop(BOX_AFFINE))
        return d


class RandSpatial(RandStep):
    """Base of the random steps that move voxels, and boxes with them."""

    mode: str
    fill: str | float
    moves_masks = False  # keeps their values and dtype

    @abstractmethod
    def to_input(self, shape: Sequence[int]) -> Tensor:
        """(B, d + 1, d + 1) float64: from voxel of the output to voxel of an input of ``shape``, by the last draws."""

    def moved_boxes(self, boxes: Sequence[NdarrayOrTensor], shape: Sequence[int]) -> list[Tensor]:
        """Where the last draws moved the boxes (N, 2 d) of each image of a batch; not clipped."""
        to_output = torch.linalg.inv(edges_affine(self.to_input(shape)))
        return [move_boxes(*one) for one in zip(boxes, to_output, strict=True)]

    def _unit(self, values: Tensor) -> Tensor:
        return values if self.moves_masks else super()._unit(values)


class RandSpatiald(RandStepd, NoWayBack):
    """Base of their twins: ``boxes``, ``box_labels``, ``box_ignore`` and ``box_affine``, if there, follow the image.

    In a batch the first three are lists with an entry for each image, and ``box_affine`` is (B, d + 1, d + 1).

    ``mode`` is one for all keys, or one for each: there "nearest" is for masks, which keep their values and dtype and
    get 0, instead of the image's value, outside.
    """

    step: RandSpatial

    def __init__(
        self,
        keys: KeysCollection,
        kind: Callable[..., RandSpatial],
        mode: str | Sequence[str],
        allow_missing_keys: bool,
        min_visible: float,
        **knobs: Any,
    ) -> None:
        keys = ensure_tuple(keys)
        steps = [kind(mode=m, **knobs) for m in ensure_tuple_rep(mode, len(keys))]
        super().__init__(keys, steps[0], allow_missing_keys)
        self.steps = dict(zip(keys, steps, strict=True))
        self.min_visible = checked_share(type(self).__name__, min_visible)
        for step in [] if isinstance(mode, str) else [step for step in steps if step.mode == "nearest"]:
            step.moves_masks = True
            step.fill = step.fill if isinstance(step.fill, str) else 0.0

    def _step(self, key: Hashable, img: NdarrayOrTensor) -> Tensor:
        step = self.steps[key]
        step.draws = self.step.draws
        return step(img, randomize=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = super().__call__(data)
        key = next((key for key in self.keys if key in d), None)
        if key is None or not d.keys() & {BOX_KEYS[0], BOX_AFFINE}:
            return d
        dims = self.step.spatial_dims
        shape, size = data[key].shape[-dims:], d[key].shape[-dims:]
        single = data[key].ndim == dims + 1
        if BOX_KEYS[0] in d:
            boxes, labels, ignore = ([d[k]] if single else d[k] for k in BOX_KEYS)
            moved = [
                clip_boxes(*one, size, self.min_visible)
                for one in zip(self.step.moved_boxes(boxes, shape), labels, ignore, strict=True)
            ]
            for k, parts in zip(BOX_KEYS, zip(*moved, strict=True), strict=True):
                d[k] = parts[0] if single else list(parts)
        if BOX_AFFINE in d:
            moves = edges_affine(self.step.to_input(shape))
            affine = torch.as_tensor(d[BOX_AFFINE])
            d[BOX_AFFINE] = affine @ (moves[0] if single else moves).to(affine)
        return d


def _checked(boxes: NdarrayOrTensor) -> Tensor:
    values = torch.as_tensor(boxes).as_subclass(Tensor)
    if values.ndim != 2 or values.shape[1] not in (4, 6):
        raise ValueError(f"boxes: wanted (N, 4) in 2D or (N, 6) in 3D, got shape {tuple(values.shape)}")
    return values


def _extent(boxes: Tensor) -> Tensor:
    low, high = boxes.chunk(2, dim=1)
    return (high - low).clamp(min=0).prod(dim=1)


def checked_share(name: str, min_visible: float) -> float:
    """`min_visible` of a step, or a ValueError."""
    if not 0 <= min_visible <= 1:
        raise ValueError(f"{name}: min_visible is a share of a box, wanted 0..1, got {min_visible}")
    return float(min_visible)
