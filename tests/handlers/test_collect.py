"""What an evaluator saw and said of each image: predictions, their spread, features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.networks.nets import DenseNet, resnet10
from monai.transforms import Activationsd
from torch import nn

from monai_pipelines.data import ArrayDataset, PrepareImages, make_loader
from monai_pipelines.handlers import CollectFeatures, CollectPredictions
from monai_pipelines.inferers import AutocastInferer, DropoutInferer, TestTimeInferer
from monai_pipelines.networks import ImageClassifier, WindowClassifier
from monai_pipelines.probabilities import Probabilitiesd

Scans = Callable[[int, int], list[dict[str, Any]]]


def _network(num_logits: int, num_values: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(num_values, 6), nn.ReLU(), nn.Linear(6, num_logits)).eval()


def _evaluate(network: nn.Module, loader: Any, *handlers: Any, runs: int = 1, **options: Any) -> Any:
    post = options.pop("postprocessing", Probabilitiesd("pred"))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=network,
        prepare_batch=PrepareImages(),
        postprocessing=post,
        val_handlers=list(handlers),
        **options,
    )
    for _ in range(runs):
        evaluator.run()
    return evaluator


def _images(num: int, *shape: int) -> torch.Tensor:
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(3))


def _loader(images: torch.Tensor, batch_size: int = 2) -> DataLoader:
    return make_loader(Dataset([{"image": image, "name": f"i{k}"} for k, image in enumerate(images)]), batch_size)


# ---- predictions


@pytest.mark.parametrize("post", [Activationsd("pred", softmax=True), Probabilitiesd("pred")])
def test_predictions_row_by_row(scans: Scans, post: Any) -> None:
    data = [{**item, "patient": f"p{item['name']}"} for item in scans(5, 3)]
    network, predictions = _network(2), CollectPredictions()
    _evaluate(network, DataLoader(Dataset(data), batch_size=2), predictions, runs=2, postprocessing=post)
    with torch.no_grad():
        wanted = network(torch.stack([item["image"] for item in data])).softmax(1)
    assert predictions.rows == [  # a second run starts anew
        {"image": item["name"], "prob": pytest.approx(prob), "label": item["label"], "patient": item["patient"]}
        for item, prob in zip(data, wanted.tolist(), strict=True)
    ]


def test_one_logit_gives_two_probabilities(scans: Scans) -> None:
    data = [{**item, "patient": "p"} for item in scans(3, 3)]
    network, predictions = _network(1), CollectPredictions()
    _evaluate(network, DataLoader(Dataset(data), batch_size=2), predictions)
    with torch.no_grad():
        p = network(torch.stack([item["image"] for item in data])).sigmoid()[:, 0]
    assert [row["prob"] for row in predictions.rows] == [pytest.approx([1 - own, own]) for own in p.tolist()]
    assert [row["label"] for row in predictions.rows] == [0, 1, 0]


def test_several_labels_of_an_array() -> None:
    """A batch that never was a list of items."""
    labels = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    pixels = (_images(3, 1, 4, 4) * 255).to(torch.uint8)
    network, predictions = _network(3, 16), CollectPredictions()
    loader = make_loader(ArrayDataset(pixels, labels, ["x", "y", "z"]), 2)
    options = {"postprocessing": Probabilitiesd("pred", multilabel=True), "to_kwargs": {"dtype": torch.float32}}
    _evaluate(network, loader, predictions, **options)
    with torch.no_grad():
        wanted = network(pixels.float()).sigmoid().tolist()
    assert predictions.rows == [
        {"image": name, "prob": pytest.approx(prob, rel=1e-5), "label": label, "patient": None}
        for name, prob, label in zip("xyz", wanted, labels, strict=True)
    ]
    assert all(isinstance(value, int) for row in predictions.rows for value in row["label"])


def test_unlabelled_images_have_rows_without_label() -> None:
    predictions = CollectPredictions()
    _evaluate(_network(2), _loader(_images(3, 1, 4, 4, 4)), predictions)
    assert [set(row) for row in predictions.rows] == [{"image", "prob"}] * 3
    assert [row["image"] for row in predictions.rows] == ["i0", "i1", "i2"]


@pytest.mark.parametrize("num_logits", [1, 3])
def test_spread_over_the_views(num_logits: int) -> None:
    """Standard deviation of the likeliest class's probability in the image and its mirror image."""
    images, network = _images(5, 1, 8, 8), _network(num_logits)
    inferer = TestTimeInferer(flip_axes=[1], precision="fp32")
    predictions = CollectPredictions(inferer)
    _evaluate(network, _loader(images), predictions, inferer=inferer)
    with torch.no_grad():
        views = torch.stack([network(images), network(images.flip(3))]).double().numpy()
    if num_logits == 1:
        views = np.concatenate([np.zeros_like(views), views], 2)
    prob = np.exp(views) / np.exp(views).sum(axis=2, keepdims=True)
    mean = prob.mean(axis=0)
    wanted = [abs(prob[0, k, c] - prob[1, k, c]) / 2 for k, c in enumerate(mean.argmax(axis=1))]
    assert min(wanted) > 1e-4
    assert [row["spread"] for row in predictions.rows] == pytest.approx(wanted, rel=1e-3)
    assert np.array([row["prob"] for row in predictions.rows]) == pytest.approx(mean, rel=1e-4)


def test_an_inferer_of_one_view_has_no_spread() -> None:
    predictions = CollectPredictions(AutocastInferer("fp32"))
    _evaluate(_network(2), _loader(_images(3, 1, 4, 4, 4)), predictions)
    assert [set(row) for row in predictions.rows] == [{"image", "prob"}] * 3


# ---- features


def test_features_are_what_the_last_layer_gets() -> None:
    images, network = _images(5, 1, 4, 4, 4), _network(2)
    features = CollectFeatures(network)
    _evaluate(network, _loader(images), features, runs=2)
    with torch.no_grad():
        wanted = network[:-1](images)
        network(images)
    assert features.features.dtype == np.float32
    assert features.features == pytest.approx(wanted.numpy())  # in order; a second run starts anew, others do not count
    assert len(network[-1]._forward_pre_hooks) == 0


def _networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    grey = {"spatial_dims": 2, "n_input_channels": 1}
    return {
        "resnet": resnet10(**grey, num_classes=3),
        "densenet": DenseNet(2, 1, 3, init_features=4, growth_rate=4, block_config=(2, 2)),
        "hidden": ImageClassifier(resnet10(**grey, feed_forward=True), 1, dropout=0.5, hidden=7, attention=True),
    }


@pytest.mark.parametrize("name", ["resnet", "densenet", "hidden"])
def test_the_last_layer_makes_the_logits_of_the_features(name: str) -> None:
    network = _networks()[name].eval()
    features = CollectFeatures(network)
    logits: list[torch.Tensor] = []
    loader = _loader(_images(3, 1, 32, 32))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=loader, network=network, val_handlers=[features]
    )
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: logits.extend(o["pred"] for o in engine.state.output)
    )
    evaluator.run()
    (last,) = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == len(logits[0])]
    with torch.no_grad():
        found = torch.from_numpy(features.features) @ last.weight.T + last.bias
    assert torch.allclose(found, torch.stack(logits), atol=1e-5)


@pytest.mark.parametrize(
    "inferer",
    [TestTimeInferer(flip_axes=[0, 1], rotate90_axes=[0, 1], precision="fp32"), DropoutInferer(3, precision="fp32")],
)
def test_of_several_passes_the_features_of_the_plain_one_count(inferer: Any) -> None:
    """The image as it is, not its mirror images; the network as it is, nothing dropped."""
    images, network = _images(5, 1, 8, 8), _network(2).insert(1, nn.Dropout(0.5)).eval()
    features = CollectFeatures(network)
    _evaluate(network, _loader(images), features, inferer=inferer)
    with torch.no_grad():
        wanted, mirrored = network[:-1](images).numpy(), network[:-1](images.flip(3)).numpy()
    assert features.features == pytest.approx(wanted, abs=1e-6)
    assert features.features != pytest.approx(mirrored, abs=1e-3)


def test_features_of_volumes_are_the_mean_over_their_windows() -> None:
    images = _images(5, 2, 12, 8, 8)
    network = WindowClassifier(_network(2, 8**3), window=8, stride=4, min_lung=0, chunk=4).eval()
    features = CollectFeatures(network)
    _evaluate(network, _loader(images), features)
    with torch.no_grad():
        lungs = images[:, :1] * (images[:, 1:] > 0.5)
        wanted = (network.backbone(lungs[:, :, :8]) + network.backbone(lungs[:, :, 4:])) / 2
    assert features.features == pytest.approx(wanted.numpy(), abs=1e-6)


def test_features_in_bf16_are_float32() -> None:
    images, network = _images(4, 1, 8, 8), _network(2)
    features = CollectFeatures(network)
    _evaluate(network, _loader(images), features, inferer=AutocastInferer("bf16"))
    with torch.no_grad():
        wanted = network[:-1](images).numpy()
    assert features.features.dtype == np.float32
    assert features.features == pytest.approx(wanted, abs=0.02)


def test_a_network_without_linear_layer() -> None:
    with pytest.raises(ValueError, match="Conv2d has no linear layer"):
        CollectFeatures(nn.Conv2d(1, 1, 1))
