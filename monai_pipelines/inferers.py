"""Inferers for any bundle.

Those that make several passes over a batch make the plain one last, with the network and the images as they are: what
the network or hooks keep of the last pass (attention, features) belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, combinations, product
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch.nn import functional
from torch.nn.modules.dropout import _DropoutNd

from monai_pipelines.networks.precision import Precision, autocast, check_precision
from monai_pipelines.probabilities import probabilities


class AutocastInferer(SimpleInferer):
    """Forward pass in bf16 autocast, on CPU as on GPU; the result is float32.

    MONAI's ``amp=True`` works on CUDA only. bf16 needs no gradient scaling.

    Args:
        precision: "bf16", "fp32", or "auto": bf16 on CUDA devices and CPUs with AMX. Training on a CPU replaces "auto"
            by the choice of `monai_pipelines.engines.precision.measured_precision`.

    Example:
        >>> import torch
        >>> AutocastInferer("bf16")(torch.ones(1, 2), torch.nn.Linear(2, 3)).dtype
        torch.float32
    """

    def __init__(self, precision: Precision = "auto") -> None:
        super().__init__()
        self.precision = check_precision(precision)

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        with autocast(self.precision, inputs.device.type):
            return super().__call__(inputs, network, *args, **kwargs).float()


class TestTimeInferer(AutocastInferer):
    """Mean class probabilities over flipped and rotated views of each image, and their spread.

    The views are the different ones among all combinations of flips and rotations: flips along both axes of a square
    and its rotations by 90 degrees make 8 views, not 16. Returns logits of the mean probabilities, like any inferer:
    ``log sum_v softmax(z_v)``, or the logit of ``mean_v sigmoid(z_v)`` for one logit and for multi-label heads.

    Args:
        flip_axes: spatial axes along which the anatomy may be mirrored, from 0: in (B, C, H, W) axis 1 is left-right.
        rotate90_axes: two spatial axes of equal length whose plane is rotated by 90 degrees; None: no rotations.
        multilabel: any number of classes at once, instead of exactly one.
        precision: see `AutocastInferer`.

    Attributes:
        spread: of the last batch, (N,): standard deviation over the views of the probability of the likeliest class,
            before any temperature.

    Raises:
        ValueError: invalid axes, or images that lack them or are not square in the plane of rotation.

    Example:
        >>> inferer = TestTimeInferer(flip_axes=[0, 1], rotate90_axes=[0, 1])
        >>> len(inferer.views)
        8
        >>> image = torch.zeros(2, 1, 4, 4)
        >>> image[0, 0, 0, 0] = 1
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> inferer(image, network).shape
        torch.Size([2, 3])
        >>> inferer.spread[1]
        tensor(0.)
    """

    __test__ = False  # not a pytest class
    spread: torch.Tensor | None = None

    def __init__(
        self,
        flip_axes: Sequence[int],
        rotate90_axes: Sequence[int] | None = None,
        multilabel: bool = False,
        precision: Precision = "auto",
    ) -> None:
        super().__init__(precision)
        plane = () if rotate90_axes is None else tuple(rotate90_axes)
        if len(set(plane)) != len(plane) or len(plane) not in (0, 2) or any(a < 0 for a in (*flip_axes, *plane)):
            raise ValueError(
                "TestTimeInferer: flip_axes must be spatial axes, from 0, and rotate90_axes two of them or None, "
                f"got {list(flip_axes)} and {rotate90_axes}"
            )
        self.rotate90_axes, self.multilabel = plane, multilabel
        self.num_axes = max((*flip_axes, *plane), default=-1) + 1
        axes = sorted(set(flip_axes))
        flips = chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1))
        probe = torch.arange(3.0**self.num_axes).reshape(1, 1, *[3] * self.num_axes)
        unique: dict[tuple[float, ...], tuple[tuple[int, ...], int]] = {}
        for view in product(flips, range(4) if plane else (0,)):
            unique.setdefault(tuple(self._view(probe, *view).flatten().tolist()), view)
        self.views = list(unique.values())

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        sides = inputs.shape[2:]
        if self.num_axes > len(sides):
            raise ValueError(
                f"TestTimeInferer: wanted images with {self.num_axes} spatial axes, got shape {tuple(inputs.shape)}"
            )
        if len({sides[axis] for axis in self.rotate90_axes}) > 1:
            raise ValueError(
                f"TestTimeInferer: rotations by 90 degrees need images with equal sides, got {tuple(sides)} "
                "(crop or pad them to a square, or set rotate90_axes to null)"
            )
        infer = super().__call__
        logits = [infer(self._view(inputs, *view), network, *args, **kwargs) for view in reversed(self.views)]
        mean, self.spread = _mean_and_spread(torch.stack(logits), self.multilabel)
        return mean

    def _view(self, images: torch.Tensor, flips: tuple[int, ...], turns: int) -> torch.Tensor:
        flipped = images.flip([axis + 2 for axis in flips])
        return flipped.rot90(turns, [axis + 2 for axis in self.rotate90_axes]) if turns else flipped


class DropoutInferer(AutocastInferer):
    """Monte Carlo dropout: mean class probabilities over passes with active dropout, and their spread.

    Only dropout layers are active; batch normalization uses its running averages. Each batch starts from the same seed,
    so results are reproducible. Returns logits of the mean probabilities, see `TestTimeInferer`.

    The network needs dropout layers with a probability above 0: MONAI's DenseNet with ``dropout_prob``,
    `monai_pipelines.networks.ImageClassifier` with ``dropout``, `monai_pipelines.networks.AttentionMIL`. Functional
    dropout stays off, such as that of the weights in `torch.nn.MultiheadAttention`.

    Args:
        num_passes: forward passes with dropout.
        multilabel: any number of classes at once, instead of exactly one.
        precision: see `AutocastInferer`.

    Attributes:
        spread: of the last batch, (N,): standard deviation over the passes of the probability of the likeliest class,
            before any temperature.

    Raises:
        ValueError: fewer than 2 passes; later, a network without such a layer.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)).eval()
        >>> inferer = DropoutInferer(num_passes=10)
        >>> inferer(torch.ones(2, 16), network).shape, inferer.spread.shape
        (torch.Size([2, 3]), torch.Size([2]))

    Reference: Gal and Ghahramani, Dropout as a Bayesian approximation, ICML 2016.
    """

    spread: torch.Tensor | None = None

    def __init__(self, num_passes: int = 20, multilabel: bool = False, precision: Precision = "auto") -> None:
        super().__init__(precision)
        if num_passes < 2:
            raise ValueError(f"DropoutInferer: num_passes must be 2 or more, got {num_passes}")
        self.num_passes, self.multilabel = num_passes, multilabel

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        forward = partial(super().__call__, inputs, network, *args, **kwargs)
        with _active_dropout(network, inputs.device):
            logits = torch.stack([forward() for _ in range(self.num_passes)])
        forward()
        mean, self.spread = _mean_and_spread(logits, self.multilabel)
        return mean


@contextmanager
def _active_dropout(network: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Dropout layers drop as in training, from a fixed seed that leaves torch's generators alone."""
    layers = [module for module in network.modules() if isinstance(module, _DropoutNd) and module.p > 0]
    if not layers:
        raise ValueError(
            f"DropoutInferer: {type(network).__name__} has no dropout layer with a probability above 0, so every pass "
            "would be the same; train it with dropout, or use another inferer"
        )
    before, fast = [layer.training for layer in layers], torch.backends.mha.get_fastpath_enabled()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            torch.backends.mha.set_fastpath_enabled(False)  # it skips the dropout layers of transformers
            for layer in layers:
                layer.train()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for layer, training in zip(layers, before, strict=True):
            layer.train(training)


class EnsembleInferer(Inferer):
    """Mean class probabilities of the members of an ensemble, each at its temperature, and their spread.

    Returns float64 logits of the mean: its logarithm, or its log-odds for one logit and for multi-label heads.

    Args:
        inferer: makes the passes, such as an `AutocastInferer`.
        multilabel: any number of classes at once, instead of exactly one.

    Attributes:
        members: networks and their temperatures (None: 1), empty until set; the first is the network of the call and
            makes the last pass.
        spread: of the last batch, (N,): standard deviation over the members of the probability of the likeliest class.

    Raises:
        ValueError: no members.

    Example:
        >>> networks = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]
        >>> inferer = EnsembleInferer(AutocastInferer())
        >>> inferer.members = [(networks[0], None), (networks[1], 2.0)]
        >>> inferer(torch.ones(2, 4), networks[0]).dtype, inferer.spread.shape
        (torch.float64, torch.Size([2]))

    Reference: Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep ensembles,
    NeurIPS 2017.
    """

    def __init__(self, inferer: Callable[..., torch.Tensor], multilabel: bool = False) -> None:
        super().__init__()
        self.inferer, self.multilabel = inferer, multilabel
        self.members: list[tuple[torch.nn.Module, float | None]] = []
        self.spread: torch.Tensor | None = None

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if not self.members:
            raise ValueError("EnsembleInferer: wanted members, got none (set them to networks and temperatures)")
        logits = [
            self.inferer(inputs, member, *args, **kwargs).double() / (temperature or 1)
            for member, temperature in reversed(self.members)
        ]
        mean, self.spread = _mean_and_spread(torch.stack(logits[::-1]), self.multilabel)
        return mean if self.multilabel or mean.shape[1] == 1 else mean.log_softmax(1)


def _mean_and_spread(logits: torch.Tensor, multilabel: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits (V, N, C): logits (N, C) of the mean probability, and std (N,) of the likeliest class."""
    prob = probabilities(logits.detach(), multilabel)
    likeliest = prob.mean(0).argmax(1)
    spread = prob.std(0, correction=0).gather(1, likeliest[:, None])[:, 0]
    if multilabel or logits.shape[2] == 1:
        return functional.logsigmoid(logits).logsumexp(0) - functional.logsigmoid(-logits).logsumexp(0), spread
    return logits.log_softmax(2).logsumexp(0), spread
