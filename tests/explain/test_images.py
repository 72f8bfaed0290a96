"""Explanations of an evaluation: which cases are chosen, and what is drawn and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from PIL import Image
from torch import Tensor, nn

from monai_pipelines.data import ArrayDataset, PrepareImages, collate_batches
from monai_pipelines.explain import ExplainImages, explain_class
from monai_pipelines.explain import images as explain
from monai_pipelines.probabilities import Probabilitiesd
from tests.explain.conftest import trained_with


class _Network(nn.Module):
    """Logits (N, C): the brightness of the first C rows of the image, on feature maps of its size."""

    def __init__(self, classes: int, dims: int = 2) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        self.features = nn.Sequential(conv(1, 1, 1, bias=False), nn.ReLU(inplace=True))
        nn.init.ones_(self.features[0].weight)
        self.classes = classes

    def forward(self, image: Tensor) -> Tensor:
        return self.features(image.float())[:, 0, : self.classes].flatten(2).mean(2)


def _images(logits: list[list[float]], dims: int = 2) -> Tensor:
    """(N, 1, 8, 8) or (N, 1, 8, 8, 8) that get these logits."""
    images = torch.zeros(len(logits), 1, *[8] * dims)
    for image, own in zip(images, logits, strict=True):
        for row, value in enumerate(own):
            image[0, row] = value
    return images


class _Items(Dataset):
    def __init__(self, images: Tensor, labels: list[Any] | None) -> None:
        labels = labels or [None] * len(images)
        super().__init__(
            [
                {"image": image, "name": f"scan/{k}", **({} if label is None else {"label": label})}
                for k, (image, label) in enumerate(zip(images, labels, strict=True))
            ]
        )


def _run(dataset: Any, folder: Path, classes: int, dims: int = 2, **options: Any) -> ExplainImages:
    network = _Network(classes, dims)
    names = [f"class {k}" for k in range(classes)]
    threshold, multilabel = options.pop("threshold", None), options.pop("multilabel", False)
    trained = trained_with(network, PrepareImages(), names, threshold, multilabel)
    handler = ExplainImages(folder, trained, dataset, **options)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=3, collate_fn=collate_batches),
        prepare_batch=PrepareImages(),
        network=network,
        postprocessing=Probabilitiesd("pred", multilabel),
        val_handlers=[handler],
    )
    evaluator.run()
    return handler


def test_peak_of_the_evidence_in_a_volume(tmp_path: Path) -> None:
    images = _images([[0.0, 0.0]], dims=3)
    images[0, 0, 1, 5, 2] = 1.0
    dataset = _Items(images, None)
    handler = _run(dataset, tmp_path, 2, dims=3, multilabel=True)
    assert handler.evidence_peak(dataset[0], 1) == (1, 5, 2)
    assert _run(dataset, tmp_path, 2, dims=3, method=None).evidence_peak(dataset[0], 1) is None


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments of the figures, which are not drawn."""
    calls: list[Any] = []
    monkeypatch.setattr(explain, "overlay_figure", lambda *args: calls.append(args) or Figure(figsize=(0.2, 0.1)))
    return calls


LOGITS = [[4, 0], [0, 5], [3, 0], [0, 0.1], [2, 0], [0, 3], [0, 1], [0, 6]]
LABELS = [0, 1, 0, 0, 1, 1, 1, 1]
#         sure        sure    wrong, unsure   wrong, sure


def _cases(handler: ExplainImages) -> list[tuple[str, int, str]]:
    cases = handler.results["cases"]
    return [(case["why"], int(case["image"].rpartition("/")[2]), case["class"]) for case in cases]


def test_best_worst_and_most_uncertain(tmp_path: Path, drawn: list[Any]) -> None:
    handler = _run(_Items(_images(LOGITS), LABELS), tmp_path, 2, num_cases=2, method="gradcam++")
    assert _cases(handler) == [
        ("best", 7, "class 1"),
        ("best", 0, "class 1"),
        ("worst", 4, "class 1"),
        ("worst", 3, "class 1"),
        ("uncertain", 6, "class 1"),
        ("uncertain", 2, "class 1"),
    ]
    assert handler.results["cases"][1]["prob"] == pytest.approx(1 / (1 + np.exp(4)))
    image, found, name, predicted = drawn[2]
    assert (name, predicted, handler.results["cases"][2]["predicted"]) == ("class 1", False, "class 0")
    assert drawn[0][2:] == ("class 1", True)
    assert handler.pictures[2][0] == "worst: true class 1, predicted class 0, 0.88\nscan/4"
    torch.testing.assert_close(image, _images(LOGITS)[4])
    np.testing.assert_array_equal(found.map, explain_class(_Network(2), image[None], 1, "gradcam++").map)
    assert {key: handler.results[key] for key in ("method", "stage", "cells", "mm_per_cell")} == {
        "method": "gradcam++",
        "stage": "features",
        "cells": [8, 8],
        "mm_per_cell": None,
    }
    assert handler.pictures[-1][0] == "uncertain: true class 0, predicted class 0, 0.95\nscan/2"
    assert sorted(file.name for file in tmp_path.rglob("*.png")) == [f"{k}.png" for k in range(1, 7)]
    json.dumps(handler.results)


def test_threshold_decides(tmp_path: Path, drawn: list[Any]) -> None:
    handler = _run(_Items(_images(LOGITS), LABELS), tmp_path, 2, num_cases=1, threshold=0.9)
    assert _cases(handler) == [("best", 7, "class 1"), ("worst", 4, "class 1"), ("uncertain", 5, "class 1")]
    assert handler.pictures[1][0] == "worst: true class 1, class 1 0.12, below the threshold 0.90: class 0\nscan/4"


def test_few_images_come_once(tmp_path: Path, drawn: list[Any]) -> None:
    handler = _run(_Items(_images(LOGITS[:4]), LABELS[:4]), tmp_path, 2, num_cases=3)
    assert sorted(index for _, index, _ in _cases(handler)) == [0, 1, 2, 3]
    assert len(list((tmp_path / "explanations").iterdir())) == 4


def test_without_labels_only_uncertain_ones(tmp_path: Path, drawn: list[Any]) -> None:
    handler = _run(_Items(_images(LOGITS), None), tmp_path, 2, num_cases=2)
    assert _cases(handler) == [("uncertain", 3, "class 1"), ("uncertain", 6, "class 1")]
    assert handler.pictures[0][0] == "uncertain: predicted class 1, 0.52\nscan/3"


def test_several_labels(tmp_path: Path, drawn: list[Any]) -> None:
    logits = [[5, 5, 0.1], [4, 1, 4], [0.5, 3, 3]]
    dataset = _Items(_images(logits), [[1, 1, 0], [0, 0, 0], [0, 1, 0]])
    handler = _run(dataset, tmp_path, 3, num_cases=1, multilabel=True, threshold=[0.9, 0.9, 0.9])
    assert [case[:2] for case in _cases(handler)] == [("best", 0), ("worst", 1), ("uncertain", 2)]
    captions = [caption for caption, _ in handler.pictures]
    reached = "at or above the threshold 0.90"
    assert captions[0] == f"best: true class 0 + class 1, class 0 0.99, {reached}; class 1 0.99, {reached}\nscan/0"
    assert captions[1].startswith("worst: true none, class 0 0.98, at or above ")
    assert [case["predicted"] for case in handler.results["cases"]] == [
        "class 0 + class 1",
        "class 0 + class 2",
        "class 1 + class 2",
    ]
    assert all(predicted for *_, predicted in drawn)


def test_files_are_real_pictures_and_those_of_before_go(tmp_path: Path) -> None:
    (tmp_path / "explanations").mkdir()
    (tmp_path / "explanations" / "9.png").touch()
    pixels = (40 * _images(LOGITS[:3])).to(torch.uint8)
    dataset = ArrayDataset(pixels, LABELS[:3])
    handler = _run(dataset, tmp_path, 2, num_cases=1)
    files = sorted((tmp_path / "explanations").iterdir())
    assert [file.name for file in files] == [f"{k}.png" for k in range(1, len(handler.pictures) + 1)]
    for file, (_, picture) in zip(files, handler.pictures, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1), picture)
        assert picture.dtype == np.uint8


def test_volumes_tell_mm(tmp_path: Path, drawn: list[Any]) -> None:
    images = [MetaTensor(image, affine=torch.diag(torch.tensor([mm, 2.0, 3.0, 1.0])))
              for mm, image in zip((1.0, 2.0), _images(LOGITS[:2], 3), strict=True)]  # fmt: skip
    handler = _run(_Items(images, LABELS[:2]), tmp_path, 2, 3, num_cases=1, method="occlusion")  # type: ignore[arg-type]
    assert handler.results["stage"] is None
    assert handler.results["cells"] == [9, 9, 9]
    assert handler.results["cell_px"] == [1, 1, 1]
    assert handler.results["mm_per_cell"] == [1.5, 2, 3]


def test_no_method_does_nothing(tmp_path: Path, drawn: list[Any]) -> None:
    handler = _run(_Items(_images(LOGITS), LABELS), tmp_path, 2, method=None)
    assert (handler.results, handler.pictures, drawn) == ({}, [], [])
    assert not list(tmp_path.iterdir())


def test_second_evaluation_starts_anew(tmp_path: Path, drawn: list[Any]) -> None:
    dataset = _Items(_images(LOGITS), LABELS)
    handler = _run(dataset, tmp_path, 2, num_cases=1)
    before = handler.results
    engine = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=8),
        network=handler.model.network,
        postprocessing=Probabilitiesd("pred"),
        val_handlers=[handler],
    )
    engine.run()
    assert handler.results == before
    assert len(handler.pictures) == 3


@pytest.mark.parametrize(
    ("options", "message"), [({"method": "cam"}, "method must be None or one of"), ({"num_cases": 0}, "num_cases")]
)
def test_wrong_arguments_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExplainImages(tmp_path, trained_with(_Network(2), PrepareImages(), ["a", "b"]), [], **options)


def test_another_order_is_told(tmp_path: Path) -> None:
    dataset = _Items(_images(LOGITS), LABELS)
    handler = ExplainImages(tmp_path, trained_with(_Network(2), PrepareImages(), ["a", "b"]), dataset)
    shuffled = Dataset(dataset.data[::-1])
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(shuffled, batch_size=8),
        network=_Network(2),
        postprocessing=Probabilitiesd("pred"),
        val_handlers=[handler],
    )
    with pytest.raises(ValueError, match="in the dataset's order, got scan/7 for scan/0"):
        evaluator.run()


def test_network_without_feature_maps_is_explained_by_occlusion(tmp_path: Path, drawn: list[Any]) -> None:
    torch.manual_seed(0)  # with other weights fewer than two predictions may be right
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    dataset = _Items(_images(LOGITS), LABELS)
    handler = ExplainImages(tmp_path, trained_with(network, PrepareImages(), ["a", "b"]), dataset)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=3, collate_fn=collate_batches),
        prepare_batch=PrepareImages(),
        network=network,
        postprocessing=Probabilitiesd("pred"),
        val_handlers=[handler],
    ).run()
    assert handler.results["method"] == "occlusion"
    assert len(handler.pictures) == 6
