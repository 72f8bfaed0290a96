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

from monai_pipelines.atomic import atomic_write
from monai_pipelines.detection import FasterRCNN
from monai_pipelines.features import PrepareBags
from monai_pipelines.networks.classifier import evaluating
from monai_pipelines.runs.trained import Trained

_AXES = {2: ("height", "width"), 3: ("x", "y", "z")}
_SIDES = {0: (), 2: (64, 64), 3: (32, 32, 32)}  # of the first trial
_OPSET = 20  # the first with GridSample for volumes
_TOLERANCE, _MOST = 1e-3, 0.95


def export(trained: Trained, file: str | PathLike[str], size: Sequence[int] | None = None) -> dict[str, Any]:
    """Write a trained network, on the CPU in float32, and check that the file gives what the network gives.

    The network alone is exported: its input is what the chain makes of an image, its output logits, or of a detector
    boxes and their scores before any are chosen. The chain, the temperature and the thresholds are described in the
    file. Test-time augmentation and Monte Carlo dropout are left out.

    Args:
        trained: of one run.
        file: ``.onnx``, or ``.ts`` for TorchScript.
        size: sides of the images or tiles, where the network takes no others; None: they are free. So are the number of
            images in a batch, except for `FasterRCNN`, which takes one, and of tiles in a bag.

    Returns:
        the description: ``task``, ``classes``, ``multilabel``, ``inputs`` and ``outputs`` (axes by name),
        ``temperature``, ``threshold``, ``threshold_by``, ``chain``, and of a detector ``select``, the arguments of
        `monai_pipelines.detection.boxes.select`. The file has it as ``metadata.json`` (TorchScript, see MONAI's
        ``load_net_with_metadata``) or as one property for each entry (ONNX), in JSON.

    Raises:
        ValueError: another suffix, packages for ONNX are missing, an ensemble, a network that takes other sizes, or a
            file that gives something else, which is not kept.
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
        try:
            traced = torch.jit.trace(network, trials[0], check_trace=False) if trained.model.detects else None
            give = network.candidates if trained.model.detects else network
            wanted = [ensure_tuple(give(trial), wrap_array=True) for trial in trials]
        except Exception as error:  # depends on the network
            got = tuple(trials[0].shape)
            raise ValueError(
                f"{type(network).__name__} does not take {got}: {error} (name the sides of its images with --size)"
            ) from error
        description = _describe(trained, axes, wanted[0])
        if file.suffix == ".ts":
            save_net_with_metadata(traced or torch.jit.script(network), str(part), False, meta_values=description)
            run = torch.jit.load(part)
        else:
            _save_onnx(network, trials[0], part, description)
            run = _session(part)
        for trial, tensors in zip(trials, wanted, strict=True):
            given: Any = ensure_tuple(run(trial), wrap_array=True)
            _check_equal(file, given, tensors, proposals=isinstance(network, FasterRCNN))
    return description


def _trials(trained: Trained, size: Sequence[int] | None) -> tuple[list[Tensor], list[str | int]]:
    """Two inputs, which differ in every axis that is free, and the names of these axes, or the sizes of others."""
    weights = list(trained.model.network.parameters())
    weight = next((one for one in weights if one.ndim > 2), weights[0])  # of the first convolution
    dims = weight.ndim - 2
    batches = (1, 1) if isinstance(trained.model.network, FasterRCNN) else (2, 3)
    bag = [(4,), (6,)] if isinstance(trained.model.prepare, PrepareBags) else [(), ()]
    first = _SIDES[dims]
    sides = [tuple(size)] * 2 if size else [first, tuple(n + 8 for n in first)]
    generator = torch.Generator().manual_seed(0)
    trials = [
        torch.rand(batch, *tiles, weight.shape[1], *side, generator=generator)
        for batch, tiles, side in zip(batches, bag, sides, strict=True)
    ]
    axes: list[str | int] = ["batch" if batches != (1, 1) else 1, *["tiles" for _ in bag[0]], weight.shape[1]]
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
    """Of proposals, of which rounding changes the order and the last, nearly all must be there."""
    shapes, expected = ([tuple(one.shape) for one in tensors] for tensors in (got, wanted))
    problem = f"shapes {shapes} instead of {expected}" if shapes != expected else None
    if problem is None:
        rows, found = (torch.cat(list(tensors), dim=-1).flatten(0, -2) for tensors in (wanted, got))
        gap = torch.cdist(rows, found, p=torch.inf).amin(1) if proposals else (rows - found).abs().amax(1)
        equal = (gap <= _TOLERANCE * (1 + rows.abs().amax(1))).float().mean()
        problem = f"{1 - equal:.1%} of the values differ" if equal < (_MOST if proposals else 1) else None
    if problem:
        raise ValueError(f"{file}: not kept, as it does not give what the network gives: {problem}")
