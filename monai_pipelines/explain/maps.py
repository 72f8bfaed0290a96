"""Maps of the evidence for a class in an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.visualize import GradCAM, GradCAMpp
from numpy.typing import NDArray
from rich.progress import track
from scipy.ndimage import affine_transform
from torch import Tensor, nn

from monai_pipelines.explain.stages import Stage, default_stage, stages
from monai_pipelines.metrics import predicted_classes
from monai_pipelines.metrics.classification import Threshold
from monai_pipelines.networks import WindowClassifier
from monai_pipelines.probabilities import class_logits, probabilities
from monai_pipelines.report.words import METHODS

WINDOW = 0.25  # side of the occluding window over that of the image; it moves by half of its side
BATCH_SIZE = {4: 16, 5: 4}  # of occluded images (ndim 4) and volumes (ndim 5)


class Explanation(NamedTuple):
    """A map of the evidence for a class, and its resolution."""

    map: NDArray[np.float32]
    """(H, W) or (X, Y, Z), 0 to 1, with a maximum of 1; all 0 without evidence for the class."""
    method: str
    """"gradcam", "gradcam++" or "occlusion"."""
    stage: str | None
    """Name of the module with the weighted features; None for occlusion."""
    cells: tuple[int, ...]
    """Of the stage (in one window of a `WindowClassifier`), or positions of the occluding window: the map resolves
    nothing finer."""
    cell_px: tuple[float, ...]
    """Image pixels from cell to cell."""
    prob: float
    """Of the class in the whole image; without temperature."""
    window_px: tuple[int, ...] = ()
    """Size of the occluding window; empty for Grad-CAM."""

    @property
    def peak(self) -> tuple[int, ...]:
        """Pixel of the maximum; of equal ones, their mean."""
        return tuple(round(i) for i in np.argwhere(self.map == self.map.max()).mean(axis=0))


def explain_class(
    network: nn.Module,
    image: Tensor,
    class_index: int,
    method: str = "gradcam",
    stage: str | None = None,
    multilabel: bool = False,
) -> Explanation:
    """Map the evidence for a class in an image.

    The score is the log-odds of the class, ``s = log p - log(1 - p)``: with two logits their difference, with one logit
    that or its negative, with multiple labels the label's logit.

    - "gradcam": ``ReLU(sum_k w_k A_k)`` with the features A_k of a stage and ``w_k = mean(ds / dA_k)``;
    - "gradcam++": ``w_k = sum(a_k ReLU(ds / dA_k))`` with the weights a_k of Chattopadhay et al.;
    - "occlusion": the drop of s when a window of a quarter of each side is covered, averaged over the windows on a
      pixel, 0 where s rises. Windows extend over the border, so that a corner is covered as often as the center. Each
      channel is filled with its minimum in a volume (air), its mean in a 2D image.

    Grad-CAM is MONAI's, but maps are interpolated linearly between the centers of the cells (`Stage`). MONAI's
    up-sampling assumes that cells divide the image evenly, which is off along each axis by 3.5 pixels for cells of 8
    pixels and by 15.5 for 32.

    Of a `monai_pipelines.networks.WindowClassifier`, ReLU and weights are those of each window, for the score of the
    whole volume; a voxel has the mean over the windows on it.

    Args:
        network: returns logits (1, C); works on a copy of it, which holds a second set of weights.
        image: (1, channels, H, W) or (1, channels, X, Y, Z), the network's input.
        class_index: 0..C-1; with one logit (and not ``multilabel``) 0 or 1.
        method: see above.
        stage: for Grad-CAM, one of `stages`; None: `default_stage`.
        multilabel: any number of classes at once, instead of exactly one.

    Raises:
        ValueError: an unknown method, stage or class, a wrong shape, or a network without a stage.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> network = resnet10(spatial_dims=2, n_input_channels=1, num_classes=2, conv1_t_stride=2)
        >>> explanation = explain_class(network, torch.rand(1, 1, 64, 64), class_index=1)
        >>> explanation.map.shape, explanation.stage, explanation.cell_px
        ((64, 64), 'layer2', (8.0, 8.0))

    Reference:
        Selvaraju et al., ICCV 2017; Chattopadhay et al., WACV 2018; Zeiler and Fergus, ECCV 2014.
    """
    if method not in METHODS:
        raise ValueError(f"explain_class: method must be one of {', '.join(METHODS)}, got {method!r}")
    if image.ndim not in BATCH_SIZE or len(image) != 1:
        raise ValueError(f"explain_class: wanted one image (1, C, H, W) or (1, C, X, Y, Z), got {tuple(image.shape)}")
    if stage is not None and method == "occlusion":
        raise ValueError(f"explain_class: occlusion has no stage, got {stage!r} (omit it, or use gradcam)")
    network = deepcopy(network).eval().requires_grad_(False)
    layers: Iterable[Any] = network.modules()
    for layer in layers:
        if getattr(layer, "inplace", False):  # would overwrite the features that a gradient needs
            layer.inplace = False
    pixels = image.detach().as_subclass(Tensor).float()
    with torch.autocast(image.device.type, enabled=False):
        with torch.no_grad():
            prob = probabilities(network(pixels).float(), multilabel)[0]
        if not 0 <= class_index < len(prob):
            raise ValueError(f"explain_class: class_index must lie in 0..{len(prob) - 1}, got {class_index}")
        if method == "occlusion":
            drop, cells, cell_px, window_px = _occlusion(network, pixels, class_index, multilabel)
            return Explanation(_scaled(drop), method, None, cells, cell_px, float(prob[class_index]), window_px)
        chosen = _stage(network, pixels, stage)
        if isinstance(network, WindowClassifier):
            map_ = _windows_map(network, pixels, class_index, method, chosen, multilabel)
        else:
            (map_,) = _gradcam(_Score(network, class_index, multilabel), [pixels], method, chosen)
    return Explanation(_scaled(map_), method, chosen.name, chosen.cells, chosen.step_px, float(prob[class_index]))


def explained_classes(
    prob: NDArray[np.float64], threshold: Threshold = None, multilabel: bool = False
) -> NDArray[np.int64]:
    """The class to explain: the second of two, else the predicted one; multi-label: the most probable one.

    Args:
        prob: (N, C) probabilities.
        threshold, multilabel: see `monai_pipelines.metrics.predicted_classes`.

    Returns:
        (N,) class indices.

    Example:
        >>> explained_classes(np.array([[0.9, 0.1]])), explained_classes(np.array([[0.7, 0.1, 0.2]]))
        (array([1]), array([0]))
    """
    if multilabel:
        return prob.argmax(axis=1)
    return np.ones(len(prob), int) if prob.shape[1] == 2 else predicted_classes(prob, threshold)


def log_odds(logits: Tensor, multilabel: bool = False) -> Tensor:
    """Log-odds ``log p - log(1 - p)`` of the classes, for any head.

    Args:
        logits: (N, C) floating point.
        multilabel: any number of classes at once, instead of exactly one.

    Returns:
        (N, C); one logit without ``multilabel`` becomes two classes.

    Example:
        >>> log_odds(torch.tensor([[3.0]])), log_odds(torch.tensor([[1.0, 4.0]]))
        (tensor([[-3.,  3.]]), tensor([[-3.,  3.]]))
    """
    if multilabel:
        return logits
    logits = class_logits(logits)
    same = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    return logits - torch.where(same, -torch.inf, logits[:, None]).logsumexp(2)


class _Score(nn.Module):
    """Log-odds (1, 1) of a class minus their detached value, with the same gradient.

    Grad-CAM++ exponentiates the score, which would overflow for a very confident network.
    """

    def __init__(self, network: nn.Module, class_index: int, multilabel: bool) -> None:
        super().__init__()
        self.network, self.class_index, self.multilabel = network, class_index, multilabel

    def forward(self, image: Tensor) -> Tensor:
        odds = log_odds(self.network(image).float(), self.multilabel)[:, self.class_index, None]
        return odds - odds.detach()


class _WindowScore(nn.Module):
    """What a window adds to the score of its volume, (1, 1): its features times the score's gradient by them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.gradient = network, torch.empty(0)

    def forward(self, window: Tensor) -> Tensor:
        odds = (self.network(window).float() * self.gradient).sum(1, keepdim=True)
        return odds - odds.detach()


def _gradcam(score: nn.Module, images: Iterable[Tensor], method: str, stage: Stage) -> Iterator[NDArray[np.float32]]:
    """The map of each image (1, C, *size) on its pixels; `score` has the network."""
    cam = (GradCAM if method == "gradcam" else GradCAMpp)(score, f"network.{stage.name}")
    scale, first = 1 / np.array(stage.step_px), np.array(stage.first_px)
    for image in images:
        with torch.enable_grad():
            coarse = cam.compute_map(image.requires_grad_(), class_idx=0)
        values, size = coarse[0, 0].detach().cpu().numpy(), tuple(image.shape[2:])
        yield affine_transform(values, np.diag(scale), -first * scale, output_shape=size, order=1, mode="nearest")
    hooked = cam.nn_module  # its tensors and the copy of the network form a reference cycle
    hooked.score = None
    hooked.activations.clear()
    hooked.gradients.clear()


def _windows_map(
    network: WindowClassifier, volume: Tensor, class_index: int, method: str, stage: Stage, multilabel: bool
) -> NDArray[np.float32]:
    """Mean of the maps of the windows on a voxel; 0 where there is none.

    Windows are explained one by one, in the memory of one: the gradient of the score of the volume by the features of
    each comes first.
    """
    (places,) = network.places(volume)
    with torch.no_grad():
        features = network.window_features(volume, [places])
    with torch.enable_grad():
        keep = torch.ones(1, len(places), dtype=torch.bool, device=volume.device)
        odds = log_odds(network.pool(features.requires_grad_()[None], keep), multilabel)[0, class_index]
        (gradient,) = torch.autograd.grad(odds, features)
    score = _WindowScore(network.backbone)

    def windows() -> Iterator[Tensor]:
        for place, score.gradient in zip(places, gradient, strict=True):
            yield network.cut(volume[0], place)[None].clone()

    total, count = np.zeros(volume.shape[2:], np.float32), np.zeros(volume.shape[2:], np.float32)
    for place, map_ in zip(places, _gradcam(score, windows(), method, stage), strict=True):
        inside = tuple(slice(n) for n in total[place].shape)
        total[place] += map_[inside]
        count[place] += 1
    return total / count.clip(1)


def _stage(network: nn.Module, image: Tensor, name: str | None) -> Stage:
    found = stages(network, image)
    if not found:
        raise ValueError(
            f"explain_class: {type(network).__name__} has no feature maps of more than one cell (use method occlusion)"
        )
    if name is None:
        return default_stage(found)
    for stage in found:
        if stage.name == name:
            return stage
    names = ", ".join(f"{stage.name} ({' x '.join(map(str, stage.cells))} cells)" for stage in found)
    raise ValueError(f"explain_class: stage must be one of {names}, got {name!r}")


def _occlusion(
    network: nn.Module, image: Tensor, class_index: int, multilabel: bool
) -> tuple[NDArray[np.float32], tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
    """Drop of the log-odds, number of positions of the window, pixels between them, and its size.

    Not MONAI's `OcclusionSensitivity`, which fills all channels with one value, covers what is already empty, indexes
    tensors by lists (deprecated in torch), and keeps its windows inside the image: a corner then has the full drop of
    its only window, the center an average with smaller ones.
    """
    axes, size = tuple(range(2, image.ndim)), tuple(image.shape[2:])
    fill = image.amin(axes, keepdim=True) if image.ndim == 5 else image.mean(axes, keepdim=True)
    window = [max(1, round(WINDOW * n)) for n in size]
    step = [max(1, w // 2) for w in window]
    starts = [range(s - w, n, s) for n, w, s in zip(size, window, step, strict=True)]
    places = [tuple(slice(max(a, 0), a + w) for a, w in zip(start, window, strict=True)) for start in product(*starts)]
    not_empty = [place for place in places if (image[:, :, *place] != fill).any()]
    drop, count = image.new_zeros(size), image.new_zeros(size)
    for place in places:
        count[place] += 1
    with torch.no_grad():
        whole = log_odds(network(image), multilabel)[0, class_index]
        for first in track(range(0, len(not_empty), BATCH_SIZE[image.ndim]), "occluding the image", transient=True):
            batch = not_empty[first : first + BATCH_SIZE[image.ndim]]
            occluded = image.repeat(len(batch), *[1] * (image.ndim - 1))
            for copy, place in zip(occluded, batch, strict=True):
                copy[:, *place] = fill[0]
            odds = log_odds(network(occluded), multilabel)[:, class_index]
            for place, value in zip(batch, whole - odds, strict=True):
                drop[place] += value
    cells = tuple(len(start) for start in starts)
    return (drop / count).clamp(min=0).cpu().numpy(), cells, tuple(float(s) for s in step), tuple(window)


def _scaled(map_: NDArray[np.float32]) -> NDArray[np.float32]:
    top = float(map_.max())
    return (map_ / top if top > 0 else np.zeros_like(map_)).astype(np.float32)
