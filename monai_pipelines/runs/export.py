"""A trained network as one file that needs neither this package nor MONAI: TorchScript or ONNX."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata
from monai.utils import ensure_tuple
from torch import Tensor, nn
from torch.nn.functional import pad

from monai_pipelines.atomic import atomic_write
from monai_pipelines.detection import FasterRCNN
from monai_pipelines.features import PrepareBags
from monai_pipelines.networks import WindowClassifier
from monai_pipelines.networks.classifier import evaluating
from monai_pipelines.runs.trained import Trained
from monai_pipelines.transforms.sizes import checked_size

_AXES = {2: ("height", "width"), 3: ("x", "y", "z")}
_SIDES = {0: (), 2: (64, 64), 3: (32, 32, 32)}  # of the first trial
_OPSET = 20  # the first with GridSample for volumes
_TOLERANCE, _MOST = 1e-3, 0.95


def export(trained: Trained, file: str | PathLike[str], size: int | Sequence[int] | None = None) -> dict[str, Any]:
    """Write a trained network, on the CPU in float32, and check that the file gives what the network gives.

    The network alone is exported: its input is what the chain makes of an image, its output logits, or of a detector
    boxes and their scores before any are chosen. The chain, the temperature and the thresholds are described in the
    file. Test-time augmentation and Monte Carlo dropout are left out. TorchScript of a detector runs on the CPU only.

    Args:
        trained: of one run.
        file: ``.onnx``, or ``.ts`` for TorchScript.
        size: sides of the images or tiles, where the network takes no others; None: they are free. So are the number of
            images in a batch, except for `FasterRCNN`, which takes one, and of tiles in a bag. One number: all sides.

    Returns:
        the description: ``task``, ``classes``, ``multilabel``, ``inputs`` and ``outputs`` (axes by name),
        ``temperature``, ``threshold``, ``threshold_by``, ``chain``, and of a detector ``select``, the arguments of
        `monai_pipelines.detection.boxes.select`. The file has it as ``metadata.json`` (TorchScript, see MONAI's
        ``load_net_with_metadata``) or as one property for each entry (ONNX), in JSON.

    Raises:
        ValueError: another suffix, packages for ONNX are missing, an ensemble, a network that takes other sizes or
            cannot be converted, or a file that gives something else, which is not kept.
    """
    file = Path(file)
    if file.suffix not in (".ts", ".onnx"):
        raise ValueError(f"{file}: wanted a file that ends with .onnx, or with .ts for TorchScript")
    if file.suffix == ".onnx" and not (find_spec("onnx") and find_spec("onnxruntime")):
        raise ValueError("ONNX needs two more packages: pip install onnx onnxruntime")
    if trained.decisions.members is not None:
        raise ValueError(f"{file}: wanted one run, got an ensemble: export its runs one by one")
    network: Any = trained.model.network
    network = network.to(memory_format=torch.contiguous_format, dtype=torch.float32, device="cpu")
    trials, axes = _trials(trained, size)
    with evaluating(network), warnings.catch_warnings(), atomic_write(file) as part:
        warnings.simplefilter("ignore")  # torch's, about tracing and its own deprecated functions
        give = network.candidates if trained.model.detects else network
        try:
            wanted = [ensure_tuple(give(trial), wrap_array=True) for trial in trials]
        except Exception as error:  # depends on the network
            hint = "" if size else " (name the sides of its images with --size)"
            raise ValueError(
                f"{type(network).__name__} does not take {tuple(trials[0].shape)}: {error}{hint}"
            ) from error
        description = _describe(trained, axes, wanted[0])
        try:
            if file.suffix == ".ts":
                run = _save_torchscript(network, trials[0], part, description)
            else:
                _save_onnx(network, trials[0], part, description)
                run = _session(part)
        except Exception as error:  # likewise
            raise ValueError(f"{type(network).__name__} cannot be written as {file.suffix}: {error}") from error
        for trial, tensors in zip(trials, wanted, strict=True):
            given: Any = ensure_tuple(run(trial), wrap_array=True)
            _check_equal(file, given, tensors, proposals=isinstance(network, FasterRCNN))
    return description


def _trials(trained: Trained, size: int | Sequence[int] | None) -> tuple[list[Tensor], list[str | int]]:
    """Two inputs, which differ in every axis that is free, and the names of these axes, or the sizes of others."""
    network = trained.model.network
    layers = [one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Conv3d | nn.Linear)]
    first = next((one for one in layers if not isinstance(one, nn.Linear)), layers[0] if layers else None)
    if first is None:
        raise ValueError(f"{type(network).__name__}: wanted a network of 2D or 3D convolutions, or of features")
    dims, channels = first.weight.ndim - 2, first.weight.shape[1] * getattr(first, "groups", 1)
    channels += isinstance(network, WindowClassifier)  # the lung mask, which no layer takes
    if size and not dims:
        raise ValueError(f"size {size}: the network takes features, which have none")
    size = checked_size("size", size, dims) if size else None
    batches = (1, 1) if isinstance(network, FasterRCNN) else (2, 3)
    bag = [(4,), (6,)] if isinstance(trained.model.prepare, PrepareBags) else [(), ()]
    sides = [size] * 2 if size else [_SIDES[dims], tuple(n + 8 for n in _SIDES[dims])]
    generator = torch.Generator().manual_seed(0)
    trials = [
        torch.rand(batch, *tiles, channels, *side, generator=generator)
        for batch, tiles, side in zip(batches, bag, sides, strict=True)
    ]
    axes: list[str | int] = ["batch" if batches != (1, 1) else 1, *["tiles" for _ in bag[0]], channels]
    return trials, [*axes, *(size or (_AXES[dims] if dims else ()))]


def _describe(trained: Trained, axes: list[str | int], tensors: Sequence[Tensor]) -> dict[str, Any]:
    model, decisions = trained.model, trained.decisions
    names = ("boxes", "scores") if model.detects else ("logits",)
    return {
        "task": "detection" if model.detects else "classification",
        "classes": list(model.classes),
        "multilabel": model.multilabel,
        "inputs": {"bag" if "tiles" in axes else "image": axes},
        "outputs": {
            n: [axes[0], *["candidates"] * (t.ndim - 2), t.shape[-1]] for n, t in zip(names, tensors, strict=True)
        },
        "temperature": decisions.temperature,
        "threshold": decisions.threshold,
        "threshold_by": decisions.threshold_by,
        "chain": model.chain.describe(),
        **({"select": model.network.select} if model.detects else {}),
    }


def _save_torchscript(network: nn.Module, trial: Tensor, file: Path, description: dict[str, Any]) -> Any:
    detects = description["task"] == "detection"
    script = torch.jit.trace(network, trial, check_trace=False) if detects else torch.jit.script(network)
    save_net_with_metadata(script, str(file), include_config_vals=False, meta_values=description)
    return torch.jit.load(file)


def _save_onnx(network: nn.Module, trial: Tensor, file: Path, description: dict[str, Any]) -> None:
    import onnx

    shapes = description["inputs"] | description["outputs"]
    torch.onnx.export(
        *(network, (trial,), file),
        input_names=list(description["inputs"]),
        output_names=list(description["outputs"]),
        dynamic_axes={name: {k: n for k, n in enumerate(axes) if isinstance(n, str)} for name, axes in shapes.items()},
        opset_version=_OPSET,
        dynamo=False,  # the newer exporter keeps the sizes of 3D convolutions as constants
    )
    model = onnx.load(file)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in description.items()})
    onnx.save(model, file)


def _session(file: Path) -> Callable[[Tensor], list[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda trial: [torch.as_tensor(values) for values in session.run(None, {given.name: trial.numpy()})]


def _check_equal(file: Path, got: Sequence[Tensor], wanted: Sequence[Tensor], proposals: bool) -> None:
    """Of proposals, of which rounding changes the order and the last, nearly all must be there, and no others."""
    shapes, expected = ([tuple(one.shape) for one in tensors] for tensors in (got, wanted))
    problem = f"shapes {shapes} instead of {expected}" if shapes != expected else None
    if problem is None:
        rows, found = (torch.cat(list(tensors), dim=-1).flatten(0, -2) for tensors in (wanted, got))
        if proposals:
            rows, found = (pad(part[part[:, -1] >= 0], (0, 0, 0, 1)) for part in (rows, found))  # one is always there
            distance = torch.cdist(rows, found, p=torch.inf)
            rows, gap = torch.cat([rows, found]), torch.cat([distance.amin(1), distance.amin(0)])
        else:
            gap = (rows - found).abs().amax(1)
        equal = (gap <= _TOLERANCE * (1 + rows.abs().amax(1))).float().mean()
        problem = f"{1 - equal:.1%} of the values differ" if equal < (_MOST if proposals else 1) else None
    if problem:
        raise ValueError(f"{file}: not kept, as it does not give what the network gives: {problem}")
