from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from monai_pipelines.report.embedding import embed, embedding_figure, principal_components, stratified_indices


def test_subset_keeps_the_proportions_of_the_classes():
    label = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [600, 380, 20]))
    chosen = stratified_indices(label, 100)
    assert len(set(chosen.tolist())) == 100
    assert (np.diff(chosen) > 0).all()
    assert np.abs(np.bincount(label[chosen]) - [60, 38, 2]).max() <= 1
    np.testing.assert_array_equal(stratified_indices(label, 100), chosen)
    np.testing.assert_array_equal(stratified_indices(label, 5000), np.arange(1000))


def test_multilabel_subset_has_every_combination():
    label = np.array([[0, 1]] * 50 + [[1, 1]] * 50 + [[0, 0]])
    assert {tuple(row) for row in label[stratified_indices(label, 10)].tolist()} == {(0, 1), (1, 1), (0, 0)}


def test_components_equal_a_decomposition():
    values = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    u, s, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(principal_components(values, num=4)), np.abs(u * s)[:, :4], atol=1e-4)
    assert principal_components(values).shape == (30, 6)
    assert principal_components(values[:5]).shape == (5, 5)


def test_groups_stay_together():
    rng = np.random.default_rng(0)
    label = np.arange(120) % 3
    points = embed(principal_components(rng.normal(size=(120, 80)) + 6 * np.eye(80)[label]))
    assert points.shape == (120, 2)
    near = KNeighborsClassifier(5).fit(points[:90], label[:90]).score(points[90:], label[90:])
    assert near > 0.9
    assert embed(rng.normal(size=(20, 4))).shape == (20, 2)


@pytest.mark.parametrize("num", [5, 6, 10])
def test_few_images_are_embedded(num):
    points = embed(principal_components(np.random.default_rng(0).normal(size=(num, 7))))
    assert points.shape == (num, 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize(
    "features", [np.random.default_rng(0).random((4, 9)), np.ones((30, 9)), np.arange(30.0)[:, None]]
)
def test_too_few_features_have_no_components(features):
    assert principal_components(features) is None


def test_several_labels_and_none_are_groups():
    figure = embedding_figure(np.zeros((4, 2)), [[1, 0], [0, 1], [1, 1], [0, 0]], ["nodule", "effusion"], "t")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["nodule", "effusion", "several", "none"]


def test_absent_class_is_not_in_the_legend():
    figure = embedding_figure([[0, 0], [1, 1]], [0, 2], ["a", "b", "$c$"], "t")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", r"\$c\$"]
