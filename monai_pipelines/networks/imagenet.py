"""ImageNet weights for MONAI's networks, from torchvision's checkpoint files."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from monai_pipelines.networks.classifier import ImageClassifier

logger = logging.getLogger(__name__)

DOWNLOAD_URL = "https://download.pytorch.org/models/"
# Blocks in each stage and names of the files, which end with the start of their SHA-256.
PUBLISHED: dict[tuple[str | int, ...], str] = {
    ("basic", 2, 2, 2, 2): "resnet18-f37072fd.pth",
    ("basic", 3, 4, 6, 3): "resnet34-b627a593.pth",
    ("bottleneck", 3, 4, 6, 3): "resnet50-0676ba61.pth",
    ("dense", 6, 12, 24, 16): "densenet121-a639ec97.pth",
}
HEADS = ("fc.", "classifier.", "class_layers.")
WANTED = f"a torchvision checkpoint, from {DOWNLOAD_URL}, or 'download'"

Network = TypeVar("Network", bound=nn.Module)


def load_imagenet(network: Network, file: str | PathLike[str] | None = None) -> Network:
    """Load ImageNet weights into MONAI's 2D ResNet-18, 34, 50 or DenseNet-121, or one in an `ImageClassifier`.

    Everything but the head must fit by name and shape; the head stays as it is. For one input channel the first
    convolution is summed over its three: a gray image then gives what it gives as three equal channels.

    Args:
        network: changed in place and returned. The published ResNet is MONAI's with ``conv1_t_stride=2`` and
            ``bias_downsample=False``.
        file: a checkpoint file of torchvision (resnet18-f37072fd.pth, ...); "download": from torch's hub folder,
            downloaded and its SHA-256 checked if missing; None: none, to train from scratch.

    Raises:
        FileNotFoundError: no such file.
        ConnectionError: the download failed; says what to place where.
        ValueError: a network or a file of another kind, a damaged file, or weights that do not fit (listed).

    Example:
        >>> from monai.networks.nets import resnet18
        >>> network = resnet18(spatial_dims=2, n_input_channels=1, conv1_t_stride=2, bias_downsample=False)
        >>> load_imagenet(network, file=None) is network
        True

    Reference:
        torchvision's checkpoint files; a DenseNet's may spell its layers ``norm.1`` or ``norm1``.
    """
    if file is None:
        return network
    target: nn.Module = network.backbone if isinstance(network, ImageClassifier) else network
    expected = {name: value for name, value in target.state_dict().items() if not name.startswith(HEADS)}
    first = "features.conv0" if "features.conv0.weight" in expected else "conv1"
    if f"{first}.weight" not in expected or expected[f"{first}.weight"].ndim != 4:
        raise ValueError(
            f"load_imagenet: wanted MONAI's 2D ResNet or DenseNet, or an ImageClassifier of one, "
            f"got {type(network).__name__}{' in 3D' if f'{first}.weight' in expected else ''}"
        )
    source = _download(set(expected)) if file == "download" else read_checkpoint(Path(file), "load_imagenet", WANTED)
    weights = {monai_name(name): value for name, value in source.items() if not name.startswith(HEADS)}
    notes = [_fit_stem(weights, f"{first}.weight", expected[f"{first}.weight"].shape[1])]
    if (stride := target.get_submodule(first).stride) != (2, 2):
        notes.append(f"first convolution has stride {stride}, the weights were trained with (2, 2)")
    problems = mismatches(weights, expected)
    if problems:
        head = f"load_imagenet: {file} does not fit {type(network).__name__} (another depth? the published ResNet has "
        head += "bias_downsample=False, conv1_t_size=7, shortcut_type='B'):"
        raise ValueError("\n  - ".join([head, *problems]))
    target.load_state_dict(weights, strict=False)
    logger.info(
        "ImageNet weights of %s: %d tensors loaded%s; the head stays as initialized.",
        file,
        len(weights),
        "".join(f"; {note}" for note in notes if note),
    )
    return network


def mismatches(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """One line for each tensor that is missing, unexpected or of another shape."""
    counters = {name for name in expected if name.endswith("num_batches_tracked")}  # missing in files from before 2018
    missing = [f"missing: {name}" for name in sorted(expected.keys() - weights.keys() - counters)]
    unexpected = [f"unexpected: {name}" for name in sorted(weights.keys() - expected.keys())]
    shapes = [
        f"shape: {name} is {tuple(weights[name].shape)}, the network's {tuple(expected[name].shape)}"
        for name in sorted(weights.keys() & expected.keys())
        if weights[name].shape != expected[name].shape
    ]
    return missing + unexpected + shapes


def monai_name(name: str) -> str:
    """Name of a torchvision tensor in MONAI's DenseNet; those of ResNets are the same."""
    return re.sub(r"(denselayer\d+)\.(norm|conv)\.?([12])\.", r"\1.layers.\2\3.", name)


def _fit_stem(weights: dict[str, Tensor], name: str, num_channels: int) -> str:
    """Fit the first convolution to the network's channels; returns a note on what was done."""
    if num_channels == 3 or name not in weights:
        return ""
    if num_channels != 1:
        raise ValueError(
            f"load_imagenet: the network takes {num_channels} channels, ImageNet weights 1 or 3 "
            "(make it with 3, or train from scratch)"
        )
    weights[name] = weights[name].sum(1, keepdim=True)
    return "first convolution summed over its 3 channels"


def _download(names: set[str]) -> dict[str, Tensor]:
    """The published weights for a network with tensors of these names."""
    if "features.conv0.weight" in names:
        block, stage = "dense", "features.denseblock"
    else:
        block, stage = "bottleneck" if "layer1.0.conv3.weight" in names else "basic", "layer"
    inner = {".".join(name[len(stage) :].split(".")[:2]) for name in names if name.startswith(stage)}  # stage.block
    file = PUBLISHED.get((block, *(sum(name.startswith(f"{n}.") for name in inner) for n in range(1, 5))))
    if file is None:
        raise ValueError(
            f"load_imagenet: weights are published for {', '.join(name.split('-')[0] for name in PUBLISHED.values())}, "
            "not for this network (give a file, or train from scratch)"
        )
    path = Path(torch.hub.get_dir(), "checkpoints", file)
    try:
        return torch.hub.load_state_dict_from_url(
            DOWNLOAD_URL + file, map_location="cpu", check_hash=True, weights_only=True
        )
    except OSError as error:
        raise ConnectionError(
            f"load_imagenet: could not download {DOWNLOAD_URL}{file} ({error}); download it elsewhere and give its "
            f"path, or place it in {path.parent}"
        ) from error
    except Exception as error:  # another hash, or a damaged file in the folder
        raise ValueError(f"load_imagenet: {path} is damaged ({error}); delete it and download it again") from error


def read_checkpoint(file: Path, subject: str, wanted: str) -> dict[str, Any]:
    """A state dict, or a run's checkpoint, whose ``model`` is one; errors name `subject` and what was `wanted`."""
    if not file.is_file():
        raise FileNotFoundError(f"{subject}: no file {file} ({wanted})")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # depends on the damage
        raise ValueError(
            f"{subject}: {file} is not a torch checkpoint, or truncated; wanted {wanted} ({error})"
        ) from error
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{subject}: {file} holds no weights; wanted {wanted}")
    return content
