"""Two-dimensional embeddings of images, from raw pixels or a network's features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from monai_pipelines.report.figures import COLORS, plain

_MARKERS = ("o", "^", "s", "D")
_MIN_POINTS = 5


def stratified_indices(label: ArrayLike, num: int) -> NDArray[np.int64]:
    """Choose at most ``num`` images in proportion to the classes; ascending indices.

    Args:
        label: (N,) classes, or (N, C) of 0 and 1, where each combination counts as a class.
        num: number of images.

    Example:
        >>> stratified_indices([0, 0, 0, 0, 1, 1], 3).shape
        (3,)
    """
    truth = np.asarray(label)
    _, stratum = np.unique(truth, axis=0, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(truth))
    place = np.empty(len(truth))  # rank within the class, 0..1
    for k in range(stratum.max() + 1):
        members = order[stratum[order] == k]
        place[members] = np.arange(len(members)) / len(members)
    return np.sort(order[np.argsort(place[order], kind="stable")[:num]])


def principal_components(features: ArrayLike, num: int = 50) -> NDArray[np.float32] | None:
    """The first principal components (N, at most ``num``) of features (N, F).

    None for fewer than five images or fewer than two varying features, which are too few for :func:`embed`.

    Example:
        >>> principal_components(np.eye(6), num=2).shape
        (6, 2)
        >>> principal_components(np.eye(4)) is None
        True
    """
    from sklearn.decomposition import PCA

    values = np.asarray(features, dtype=np.float32)
    if len(values) < _MIN_POINTS or (np.ptp(values, axis=0) > 0).sum() < 2:
        return None
    return PCA(min(num, *values.shape), random_state=0).fit_transform(values)


def embed(components: ArrayLike) -> NDArray[np.float32]:
    """Embed images in two dimensions by t-SNE: nearby points are similar.

    Distances between groups, their sizes and the axes carry no meaning. A few thousand points take seconds to minutes:
    see :func:`stratified_indices`.

    Args:
        components: (N, F) of at least five images, from :func:`principal_components`.

    Returns:
        (N, 2).

    Example:
        >>> embed(principal_components(np.eye(6))).shape
        (6, 2)

    Reference: van der Maaten and Hinton, Visualizing data using t-SNE, JMLR, 2008.
    """
    from sklearn.manifold import TSNE

    values = np.asarray(components, dtype=np.float32)
    perplexity = min(30.0, (len(values) - 1) / 3)
    with threadpool_limits(1):  # on busy cores its threads wait for each other: 21 s instead of 0.1 s for 40 points
        return TSNE(2, perplexity=perplexity, init="pca", max_iter=500, random_state=0).fit_transform(values)


def embedding_figure(points: ArrayLike, label: ArrayLike, classes: Sequence[str], title: str) -> Figure:
    """Draw points colored by class; beyond seven classes also by marker.

    Args:
        points: (N, 2), from :func:`embed`.
        label: (N,) classes; or (N, C) of 0 and 1, drawn as the class if there is exactly one, else "several" or "none".
        classes: C class names.
        title: above the points.

    Example:
        >>> figure = embedding_figure([[0, 0], [1, 1]], [0, 1], ["healthy", "ill"], "Raw pixels")
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['healthy', 'ill']
    """
    positions, truth, names = np.asarray(points), np.asarray(label), list(classes)
    if truth.ndim == 2:
        number = truth.sum(axis=1)
        truth = np.where(number == 1, truth.argmax(axis=1), np.where(number > 1, len(names), len(names) + 1))
        names += ["several", "none"]
    shown = [k for k in range(len(names)) if (truth == k).any()]
    columns = min(len(shown), 3, max(1, 54 // (7 + max(len(names[k]) for k in shown))))
    figure = Figure(figsize=(5.4, 5.0 + 0.24 * -(-len(shown) // columns)), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(4000 / len(positions), 12, 40))
    for k in shown:
        color, marker = COLORS[k % len(COLORS)], _MARKERS[k // len(COLORS) % len(_MARKERS)]
        members = positions[truth == k]
        name = plain(names[k], 34, lines=1)
        axes.scatter(members[:, 0], members[:, 1], size, color, marker=marker, alpha=0.8, linewidths=0, label=name)
    axes.set_title(plain(title, 50), fontsize=12)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#c9d1d9")
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=11, markerscale=(40 / size) ** 0.5)
    return figure
