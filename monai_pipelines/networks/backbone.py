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

from monai_pipelines.networks.imagenet import HEADS, misfits, monai_name
from monai_pipelines.transforms.image2d.normalize import IMAGENET

NUM_LISTED = 10  # misfits in a message


class TileBackbone(nn.Module):
    """Tiles to feature vectors: pixels normalised, then a network without its head.

    Pixels become ``(x - mean) / std``, x in [0, 1]. The features are what the network's last linear layer gets, where
    its output is that of the network, (N, classes); otherwise what the network returns, (N, F) or (N, F, 1, 1).

    Args:
        network: any network for (N, 3, H, W), of MONAI, timm (``num_classes=0`` or with its head) or your own; taken
            over, its head left out.
        weights: path of a checkpoint of a run (``best.pt`` of a tile bundle), or of weights by name (torchvision's
            files fit MONAI's networks); None leaves the network as it comes.
        mean: of red, green and blue, in [0, 1]; None: what the run's checkpoint was trained with, else ImageNet's.
        std: the same, above 0.
        name: what `describe` calls the network; None: its class.
        tile_px: side of the tile that it is tried with; a network for one size (most vision transformers) wants that.

    Attributes:
        num_features: F.
        weights: as given.

    Raises:
        TypeError: no network.
        FileNotFoundError: no such file of weights.
        ValueError: a network that takes no such tile or returns no vectors, mean or std out of range, or weights that
            do not fit; says what differs. The head in a file is never read.

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
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"TileBackbone: network must be a torch.nn.Module, got {type(network).__name__} "
                "(call what makes it; wrap a function in a Module)"
            )
        content = {} if weights is None else _read(Path(weights))
        trained = content.get("chain", {}).get("steps", {}).get("normalize", {})
        mean = _three(trained.get("mean") if mean is None else mean, "mean")
        std = _three(trained.get("sd") if std is None else std, "sd")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"TileBackbone: mean and std are three numbers, std above 0, got {mean} and {std}")
        self.name, self.weights = name or type(network).__name__, weights
        self.mean = nn.Buffer(torch.tensor(mean)[:, None, None], persistent=False)
        self.std = nn.Buffer(torch.tensor(std)[:, None, None], persistent=False)
        head, self.num_features = _try(network, tile_px)
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
        """What the features depend on, as plain data: name, num_features, mean, std, hashes of layers and weights."""
        return {
            "name": self.name,
            "num_features": self.num_features,
            "mean": [round(value, 6) for value in self.mean.flatten().tolist()],
            "std": [round(value, 6) for value in self.std.flatten().tolist()],
            "layers": _hash({name: _kind(module) for name, module in self.network.named_modules()}),
            "weights": _digest(self.network.state_dict()),
        }

    def fingerprint(self) -> str:
        """16 hex digits that change whenever the description does."""
        return _hash(self.describe())

    def _check(self, tiles: Tensor) -> None:
        if tiles.ndim != 4 or tiles.shape[1] != 3 or not (tiles.dtype == torch.uint8 or tiles.is_floating_point()):
            raise ValueError(
                "TileBackbone: wanted tiles (N, 3, H, W), uint8 or floating point in [0, 1], "
                f"got {tiles.dtype} {tuple(tiles.shape)}"
            )


class GivenFeatures(nn.Module):
    """Stands where a `TileBackbone` would, for features that another tool made: their files must all be there.

    Args:
        num_features: F.
        name: of the network that made them; a model trained on them is refused under another name.

    Example:
        >>> GivenFeatures(1024, "uni").describe()
        {'name': 'uni', 'num_features': 1024}
    """

    def __init__(self, num_features: int, name: str) -> None:
        super().__init__()
        self.num_features, self.name = num_features, name

    def forward(self, tiles: Tensor) -> Tensor:
        """Nothing: there is no network.

        Raises:
            ValueError: always; tells the way out.
        """
        raise ValueError(
            f"GivenFeatures: wanted a file of features of {self.name} for every slide, got a slide without one "
            "(make it with the tool that made the others, or name a TileBackbone)"
        )

    def describe(self) -> dict[str, Any]:
        """What the features depend on, as far as it is known."""
        return {"name": self.name, "num_features": self.num_features}

    def fingerprint(self) -> str:
        """16 hex digits that change whenever the description does."""
        return _hash(self.describe())


def _kind(module: nn.Module) -> list[Any]:
    """What a layer does, as far as its weights do not tell."""
    told = ("kernel_size", "stride", "padding", "dilation", "groups", "eps", "num_heads")
    return [type(module).__name__, *(str(getattr(module, name, None)) for name in told)]


def _hash(described: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _try(network: nn.Module, tile_px: int) -> tuple[str | None, int]:
    """Name of the linear layer that is the head, or None, and the number of features, from one black tile."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    last = network.get_submodule(linear[-1]) if linear else nn.Identity()
    outputs: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    modes = {module: module.training for module in network.modules()}
    device = next(network.parameters(), torch.empty(0)).device
    try:
        with torch.no_grad():
            result = network.eval()(torch.zeros(1, 3, tile_px, tile_px, device=device))
    except Exception as error:  # whatever a network says to a tile of another kind than it takes
        raise ValueError(
            f"TileBackbone: {type(network).__name__} does not take tiles (1, 3, {tile_px}, {tile_px}) in float32: "
            f"{error} (tile_px is the side it takes)"
        ) from error
    finally:
        hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if isinstance(last, nn.Linear) and isinstance(result, Tensor) and result.ndim == 2 and result is outputs[-1]:
        return linear[-1], last.in_features
    if not isinstance(result, Tensor) or result.ndim < 2 or result.shape[2:].numel() != 1:
        came = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(
            f"TileBackbone: {type(network).__name__} must return one vector for each tile, (N, F), got {came} "
            "(pool it, or pick the vector, in a Module around it)"
        )
    return None, result.shape[1]


def _three(value: Any, name: str) -> tuple[float, ...]:
    """As `NormalizeImage` takes it: one number, three, or "imagenet"."""
    if value is None or value == "imagenet":
        return IMAGENET[name]
    return (value,) * 3 if isinstance(value, int | float) else tuple(value)


def _read(file: Path) -> dict[str, Any]:
    """A run's checkpoint, or weights by name."""
    if not file.is_file():
        raise FileNotFoundError(f"TileBackbone: no file {file} (best.pt of a run, or weights by name)")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises depends on the damage
        raise ValueError(f"TileBackbone: {file} is no checkpoint file of torch, or cut off ({error})") from error
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"TileBackbone: wanted a run's checkpoint or tensors by name in {file}, got other things")
    return content


def _load(network: nn.Module, file: Path, weights: dict[str, Tensor], head: tuple[str, ...]) -> None:
    """Load all weights but those of the head; the network has none any more."""
    wanted = network.state_dict()
    heads = (*head, *HEADS, "head.")
    kept = {name: value for name, value in weights.items() if name in wanted or not name.startswith(heads)}
    found = {name if name in wanted else monai_name(name): value for name, value in kept.items()}
    problems = misfits(found, wanted)
    if problems:
        more = [f"and {len(problems) - NUM_LISTED} more"] if len(problems) > NUM_LISTED else []
        title = f"TileBackbone: {file} does not fit {type(network).__name__} (made with other arguments?):"
        raise ValueError("\n  - ".join([title, *problems[:NUM_LISTED], *more]))
    network.load_state_dict(found, strict=False)


def _digest(weights: dict[str, Tensor]) -> str:
    """16 hex digits of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
