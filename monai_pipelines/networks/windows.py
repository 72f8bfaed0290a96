"""Classification of volumes that are too large for memory, by windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from monai_pipelines.networks.classifier import last_linear
from monai_pipelines.networks.mil import AttentionMIL
from monai_pipelines.networks.recompute import recomputed
from monai_pipelines.transforms.sizes import checked_size

WindowPooling = Literal["mean", "max", "attention"]
_T = TypeVar("_T")
Place = tuple[slice, slice, slice]
EMBEDDED, ATTENDED = 128, 64  # hidden units of the attention


class WindowClassifier(nn.Module):
    """Classify volumes by overlapping windows.

    Windows start every ``stride`` voxels, the last along each axis ends with the volume. Those whose share of lung is
    below ``min_lung`` are left out; if no window has as much, the one with the most is kept. The backbone sees each
    window with air (0) outside the lungs, but not the mask. Volumes smaller than a window are padded with 0.

    - "mean": the mean of the windows' logits;
    - "max": of each class the largest logit of a window;
    - "attention": `AttentionMIL` on the features of the windows, instead of the backbone's last linear layer.

    In training, activations are recomputed chunk by chunk in the backward pass, so that memory does not depend on the
    size of the volume.

    Args:
        backbone: 3D classifier (M, 1, *window) -> (M, num_classes) whose last linear layer makes the logits, such as
            MONAI's ResNet or DenseNet, or `ImageClassifier`; modified in place: that layer becomes the head.
        window: voxels (X, Y, Z), or one number.
        stride: voxels (X, Y, Z), or one number; at most the window. None: half of the window.
        min_lung: share of a window that is lung, 0..1.
        pooling: "mean", "max" or "attention".
        num_train_windows: windows drawn at random from each volume in training, by torch's global generator; None: all.
            Fewer take less time, but may all miss a finding.
        chunk: windows in each pass of the backbone. In training, batch normalization sees one chunk at a time.
        checkpointing: whether to recompute activations in training; False stores those of all chunks.

    Attributes:
        features: (N, F), inputs of the backbone's last linear layer in the last forward pass, mean over the windows.

    Raises:
        ValueError: an argument out of range, or a backbone without a linear layer; later, volumes without a mask.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> backbone = resnet10(spatial_dims=3, n_input_channels=1, num_classes=2, conv1_t_stride=2)
        >>> network = WindowClassifier(backbone, window=32, stride=16, pooling="attention").eval()
        >>> volume = torch.zeros(1, 2, 64, 48, 32)
        >>> volume[:, 1, :32] = 1  # lung
        >>> len(network.places(volume)[0]), network(volume).shape
        (4, torch.Size([1, 2]))

    Reference: Ilse et al., Attention-based deep multiple instance learning, ICML 2018. MONAI's
    ``sliding_window_inference`` gives one value for each voxel, and takes windows without lung too.
    """

    def __init__(
        self,
        backbone: nn.Module,
        window: int | Sequence[int] = 64,
        stride: int | Sequence[int] | None = None,
        min_lung: float = 0.1,
        pooling: WindowPooling = "mean",
        num_train_windows: int | None = None,
        chunk: int = 8,
        checkpointing: bool = True,
    ) -> None:
        super().__init__()
        sides = checked_size("WindowClassifier: window", window, 3)
        half = [max(1, side // 2) for side in sides]
        steps = checked_size("WindowClassifier: stride", half if stride is None else stride, 3)
        if any(step > side for step, side in zip(steps, sides, strict=True)):
            raise ValueError(
                f"WindowClassifier: stride must be at most the window {sides}, got {steps} (voxels would be left out)"
            )
        if pooling not in get_args(WindowPooling):
            raise ValueError(
                f"WindowClassifier: pooling must be one of {', '.join(get_args(WindowPooling))}, got {pooling!r}"
            )
        if not 0 <= min_lung <= 1 or chunk < 1 or (num_train_windows is not None and num_train_windows < 1):
            raise ValueError(
                "WindowClassifier: min_lung must lie in 0..1, chunk and num_train_windows be 1 or more, "
                f"got {min_lung}, {chunk} and {num_train_windows}"
            )
        self.window, self.stride = list(sides), list(steps)
        self.min_lung, self.pooling = min_lung, pooling
        self.num_train_windows, self.chunk, self.checkpointing = num_train_windows, chunk, checkpointing
        linear, attends = _without_last_linear(backbone), pooling == "attention"
        size = linear.in_features, linear.out_features
        self.backbone = backbone
        self.head: nn.Module = nn.Identity() if attends else linear
        self.attention = AttentionMIL(*size, hidden=EMBEDDED, attention=ATTENDED) if attends else None
        self.features = torch.empty(0)

    def forward(self, volume: Tensor) -> Tensor:
        """Logits (N, num_classes) of volumes (N, 2, X, Y, Z), the lung mask in the second channel.

        A trace or script also takes volumes of any size; it passes all windows through the backbone at once.
        """
        if not torch.jit.is_scripting() and not torch.jit.is_tracing():
            places = self.places(volume)
            parts = self.window_features(volume, places).split([len(of_volume) for of_volume in places])
            self.features = torch.stack([part.detach().mean(0) for part in parts])
            keep = pad_sequence([torch.ones_like(part[:, 0], dtype=torch.bool) for part in parts], True)
            return self.pool(pad_sequence(list(parts), True), keep)
        starts = [_starts(volume, axis, self.window[axis], self.stride[axis]) for axis in range(3)]
        keep = self._kept(volume, starts)
        windows = _all_windows(_in_lungs(volume, dim=1), starts, self.window)
        return self.pool(self.backbone(windows).reshape(keep.shape[0], keep.shape[1], -1), keep)

    def places(self, volume: Tensor) -> list[list[Place]]:
        """Positions of the windows of each volume; in training, of those drawn.

        Args:
            volume: (N, 2, X, Y, Z).

        Raises:
            ValueError: volumes without a mask.
        """
        if volume.ndim != 5 or volume.shape[1] != 2:
            raise ValueError(
                "WindowClassifier: wanted volumes (N, 2, X, Y, Z) with the lung mask as second channel, got "
                f"{tuple(volume.shape)} (set masking to channel)"
            )
        starts = [_starts(volume, axis, self.window[axis], self.stride[axis]) for axis in range(3)]
        corners = list(product(*(start.tolist() for start in starts)))
        places: list[list[Place]] = []
        for row in self._kept(volume, starts).cpu():
            chosen = row.nonzero()[:, 0]
            if self.training and self.num_train_windows is not None:
                chosen = chosen[torch.randperm(len(chosen))[: self.num_train_windows]]
            places.append([self._place(corners[k]) for k in chosen.tolist()])
        return places

    def _place(self, corner: Sequence[int]) -> Place:
        x, y, z = (slice(start, start + side) for start, side in zip(corner, self.window, strict=True))
        return x, y, z

    def cut(self, volume: Tensor, place: Place) -> Tensor:
        """The window (1, *window) of a volume (2, X, Y, Z), 0 (air) outside the lungs."""
        window = _in_lungs(volume[:, *place], dim=0)
        missing = [side - n for side, n in zip(self.window, window.shape[1:], strict=True)]
        return functional.pad(window, [0, missing[2], 0, missing[1], 0, missing[0]]) if any(missing) else window

    def window_features(self, volume: Tensor, places: Sequence[Sequence[Place]]) -> Tensor:
        """Features (M, F) of all windows of the volumes in turn."""
        where = [(number, place) for number, of_volume in enumerate(places) for place in of_volume]
        parts: list[Tensor] = []
        for part in _evenly(where, self.chunk):

            def run(volume: Tensor, part: Sequence[tuple[int, Place]] = part) -> Tensor:
                return self.backbone(torch.stack([self.cut(volume[number], place) for number, place in part]))

            parts.append(recomputed(self.backbone, volume, forward=run) if self.checkpointing else run(volume))
        return torch.cat(parts)

    def pool(self, features: Tensor, keep: Tensor) -> Tensor:
        """Logits (N, num_classes) float32 of volumes from the features of their windows.

        Args:
            features: (N, W, F), of W windows of N volumes.
            keep: (N, W) bool, False where there is none.
        """
        if self.attention is not None:
            logits = self.attention(features, keep)
            return logits if isinstance(logits, Tensor) else logits[0]
        logits = self.head(features).float()
        if self.pooling == "max":
            return logits.masked_fill(~keep[:, :, None], -torch.inf).amax(1)
        return logits.masked_fill(~keep[:, :, None], 0).sum(1) / keep.sum(1, keepdim=True)

    def _kept(self, volume: Tensor, starts: list[Tensor]) -> Tensor:
        """(N, W) bool: windows with enough lung, or the one with the most if there is none."""
        share = (volume[:, 1] > 0.5).float()
        for axis in range(3):  # the first of three axes becomes windows, and the last
            windows = _along(share, 1, starts[axis], self.window[axis])
            share = windows.mean(2).permute(0, 2, 3, 1)
        share = share.flatten(1)
        enough = share >= self.min_lung
        most = torch.arange(share.shape[1], device=share.device) == share.argmax(1, keepdim=True)
        return enough | (most & ~enough.any(1, keepdim=True))


def _in_lungs(volume: Tensor, dim: int) -> Tensor:
    """The first channel along an axis, set to 0 outside the mask, which is the second."""
    image, mask = volume.split(1, dim)
    return image * (mask > 0.5)  # augmentation blurs the mask


def _without_last_linear(backbone: nn.Module) -> nn.Linear:
    """Replace the last linear layer of a backbone by the identity; returns the layer."""
    linear = last_linear(backbone)
    name = next(name for name, module in backbone.named_modules() if module is linear)
    parent, _, last = name.rpartition(".")
    setattr(backbone.get_submodule(parent), last, nn.Identity())
    return linear


def _starts(volume: Tensor, axis: int, side: int, step: int) -> Tensor:
    """First voxel of each window along a spatial axis, by tensor operations that can be traced."""
    length = volume.shape[2 + axis]
    starts = torch.arange(length, device=volume.device)[::step]
    starts = starts[(starts < length - side + step) | (starts == 0)]
    return starts.clamp(max=length - side).clamp(min=0)


def _along(values: Tensor, dim: int, starts: Tensor, side: int) -> Tensor:
    """Windows along one axis, (..., n, ...) -> (..., windows, side, ...); 0 beyond its end."""
    length = values.shape[dim]
    index = starts[:, None] + torch.arange(side, device=values.device)
    windows = values.index_select(dim, index.clamp(max=length - 1).flatten())
    shape = list(values.shape)
    windows = windows.reshape(shape[:dim] + [-1, side] + shape[dim + 1 :])
    inside = (index < length).to(values.dtype)
    return windows * inside.reshape([1] * dim + [-1, side] + [1] * (len(shape) - dim - 1))


def _all_windows(volume: Tensor, starts: list[Tensor], sides: list[int]) -> Tensor:
    """(N * W, C, *sides)."""
    windows = _along(volume, 2, starts[0], sides[0])
    windows = _along(windows, 4, starts[1], sides[1])
    windows = _along(windows, 6, starts[2], sides[2])
    ordered = windows.permute(0, 2, 4, 6, 1, 3, 5, 7)
    return ordered.reshape(-1, volume.shape[1], sides[0], sides[1], sides[2])


def _evenly(items: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    """Split into nearly equal parts of at most `most`: batch normalization cannot take a single small window."""
    num = -(-len(items) // most)
    bounds = [len(items) * k // num for k in range(num + 1)]
    for first, end in pairwise(bounds):
        yield items[first:end]
