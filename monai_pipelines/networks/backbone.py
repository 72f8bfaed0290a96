"""A network that turns tiles into feature vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_pipelines.networks.classifier import evaluating
from monai_pipelines.networks.imagenet import HEADS, mismatches, monai_name, read_checkpoint
from monai_pipelines.transforms.image2d.normalize import IMAGENET

NUM_LISTED = 10  # mismatches in a message
WANTED = "best.pt of a run, or a state dict"


class TileBackbone(nn.Module):
    """Feature vectors of tiles: normalized pixels through a network without its head.

    Pixels become ``(x - mean) / std``, x in [0, 1]. The features are the input of the network's last linear layer if
    its output is that of the network, (N, classes); otherwise the network's output, (N, F) or (N, F, 1, 1).

    Args:
        network: any network for (N, 3, H, W), such as MONAI's or timm's (``num_classes=0`` or with its head); modified
            in place: its head is removed.
        weights: path of a run's checkpoint (``best.pt`` of a tile bundle) or of a state dict (torchvision's files fit
            MONAI's networks); None: those of the network.
        mean: of red, green and blue, in [0, 1]; None: as the run's checkpoint was trained, else ImageNet's.
        std: likewise, above 0.
        name: of the network in `describe`; None: its class.
        needs_weights: whether `describe`, which every use of the features starts with, is an error without weights.
        tile_px: side of a trial tile; networks of fixed input size (most vision transformers) need theirs.

    Attributes:
        num_features: F.
        weights: the argument.

    Raises:
        TypeError: `network` is not a module.
        FileNotFoundError: no such file of weights.
        ValueError: a network that does not take such a tile or returns no vectors, mean or std out of range, or weights
            that do not fit; lists the differences. The head in a file is ignored.

    Example:
        >>> from monai.networks.nets import resnet18
        >>> network = resnet18(spatial_dims=2, n_input_channels=3, conv1_t_stride=2, bias_downsample=False)
        >>> backbone = TileBackbone(network, name="resnet18").eval()
        >>> backbone(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape, backbone.describe()["num_features"]
        (torch.Size([2, 512]), 512)
    """

    def __init__(
        self,
        network: nn.Module,
        weights: str | PathLike[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        name: str | None = None,
        tile_px: int = 224,
        needs_weights: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"TileBackbone: network must be a torch.nn.Module, got {type(network).__name__} "
                "(call its factory; wrap a function in a Module)"
            )
        content = {} if weights is None else read_checkpoint(Path(weights), "TileBackbone", WANTED)
        trained = content.get("chain", {}).get("steps", {}).get("normalize", {})
        mean = _three(trained.get("mean") if mean is None else mean, "mean")
        std = _three(trained.get("std", trained.get("sd")) if std is None else std, "std")  # sd: until 0.1
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"TileBackbone: mean and std are three numbers, std above 0, got {mean} and {std}")
        self.name, self.weights, self.needs_weights = name or type(network).__name__, weights, needs_weights
        self.mean = nn.Buffer(torch.tensor(mean)[:, None, None], persistent=False)
        self.std = nn.Buffer(torch.tensor(std)[:, None, None], persistent=False)
        head, self.num_features = _probe(network, tile_px)
        if head is not None:
            network.set_submodule(head, nn.Identity())
        self.network = network
        if weights is not None:
            _load(network, Path(weights), content.get("model", content), () if head is None else (f"{head}.",))

    def forward(self, tiles: Tensor) -> Tensor:
        """Features (N, F) float32 of tiles (N, 3, H, W), uint8 or floating point in [0, 1].

        Raises:
            ValueError: another shape or dtype.
        """
        if not torch.jit.is_scripting():
            self._check(tiles)
        unit = 255.0 if tiles.dtype == torch.uint8 else 1.0
        return self.network(tiles / (unit * self.std) - self.mean / self.std).flatten(1).float()

    def describe(self) -> dict[str, Any]:
        """What the features depend on, as plain data: name, num_features, mean, std, hashes of layers and weights.

        Raises:
            ValueError: no weights, where they are needed.
        """
        if self.needs_weights and self.weights is None:
            raise ValueError(
                "no weights for the tile network: name them with --backbone_weights, best.pt of a tile bundle or "
                "torchvision's file, the same in training, evaluation and inference"
            )
        return {
            "name": self.name,
            "num_features": self.num_features,
            "mean": [round(value, 6) for value in self.mean.flatten().tolist()],
            "std": [round(value, 6) for value in self.std.flatten().tolist()],
            "layers": description_hash({name: _kind(module) for name, module in self.network.named_modules()}),
            "weights": _digest(self.network.state_dict()),
        }

    def _check(self, tiles: Tensor) -> None:
        if tiles.ndim != 4 or tiles.shape[1] != 3 or not (tiles.dtype == torch.uint8 or tiles.is_floating_point()):
            raise ValueError(
                "TileBackbone: wanted tiles (N, 3, H, W), uint8 or floating point in [0, 1], "
                f"got {tiles.dtype} {tuple(tiles.shape)}"
            )


class GivenFeatures(nn.Module):
    """Takes the place of a `TileBackbone` where another tool made the features: all their files must exist.

    Args:
        num_features: F.
        name: of the network that made them; a model trained on them accepts no other.

    Example:
        >>> GivenFeatures(1024, "uni").describe()
        {'name': 'uni', 'num_features': 1024}
    """

    def __init__(self, num_features: int, name: str) -> None:
        super().__init__()
        self.num_features, self.name = num_features, name

    def forward(self, tiles: Tensor) -> Tensor:
        """Always raises a ValueError: there is no network."""
        raise ValueError(
            f"GivenFeatures: wanted a file of features of {self.name} for every slide, got a slide without one "
            "(make it with the tool that made the others, or use a TileBackbone)"
        )

    def describe(self) -> dict[str, Any]:
        """What is known of the network, as plain data."""
        return {"name": self.name, "num_features": self.num_features}


def _kind(module: nn.Module) -> list[Any]:
    """Type and settings of a layer, which its weights do not show."""
    settings = ("kernel_size", "stride", "padding", "dilation", "groups", "eps", "num_heads")
    return [type(module).__name__, *(str(getattr(module, name, None)) for name in settings)]


def description_hash(described: dict[str, Any]) -> str:
    """16 hex digits that change with any of these plain data."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _probe(network: nn.Module, tile_px: int) -> tuple[str | None, int]:
    """Name of the linear layer that is the head, or None, and the number of features, from one black tile."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    last = network.get_submodule(linear[-1]) if linear else nn.Identity()
    outputs: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    device = next(network.parameters(), torch.empty(0)).device
    try:
        with evaluating(network):
            result = network(torch.zeros(1, 3, tile_px, tile_px, device=device))
    except Exception as error:  # depends on the network
        raise ValueError(
            f"TileBackbone: {type(network).__name__} does not take tiles (1, 3, {tile_px}, {tile_px}) in float32: "
            f"{error} (set tile_px to the side it takes)"
        ) from error
    finally:
        hook.remove()
    if isinstance(last, nn.Linear) and isinstance(result, Tensor) and result.ndim == 2 and result is outputs[-1]:
        return linear[-1], last.in_features
    if not isinstance(result, Tensor) or result.ndim < 2 or result.shape[2:].numel() != 1:
        output = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(
            f"TileBackbone: {type(network).__name__} must return one vector for each tile, (N, F), got {output} "
            "(pool it, or pick the vector, in a wrapping Module)"
        )
    return None, result.shape[1]


def _three(value: Any, name: str) -> tuple[float, ...]:
    """Three numbers from what `NormalizeImage` takes: one number, three, or "imagenet"."""
    if value is None or value == "imagenet":
        return IMAGENET[name]
    return (value,) * 3 if isinstance(value, int | float) else tuple(value)


def _load(network: nn.Module, file: Path, weights: dict[str, Tensor], head: tuple[str, ...]) -> None:
    """Load all weights but those of the head, which the network no longer has."""
    expected = network.state_dict()
    heads = (*head, *HEADS, "head.")
    body = {name: value for name, value in weights.items() if name in expected or not name.startswith(heads)}
    renamed = {name if name in expected else monai_name(name): value for name, value in body.items()}
    problems = mismatches(renamed, expected)
    if problems:
        more = [f"and {len(problems) - NUM_LISTED} more"] if len(problems) > NUM_LISTED else []
        title = f"TileBackbone: {file} does not fit {type(network).__name__} (made with other arguments?):"
        raise ValueError("\n  - ".join([title, *problems[:NUM_LISTED], *more]))
    network.load_state_dict(renamed, strict=False)


def _digest(weights: dict[str, Tensor]) -> str:
    """16 hex digits of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
