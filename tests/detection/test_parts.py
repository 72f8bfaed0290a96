"""RoIAlign, losses, matching, windows and fusion against independent implementations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data.box_utils import batched_nms
from scipy.ndimage import map_coordinates

from monai_pipelines.detection import DetectionInferer, Found, GridDetector, RetinaNet, SumOfLosses, fuse, roi_align
from monai_pipelines.detection.boxes import non_maximum_suppression, select
from monai_pipelines.detection.losses import distance_iou, focal_loss, hard_negatives
from tests.detection.blobs import make_detector, make_target


def _reference_roi_align(features: np.ndarray, box: np.ndarray, stride: int, cells: int, samples: int) -> np.ndarray:
    """(C, P, ...) of one map (C, ...): every point by `map_coordinates`."""
    dims = features.ndim - 1
    out = np.zeros((len(features), *[cells] * dims))
    for cell in itertools.product(range(cells), repeat=dims):
        values = []
        for sample in itertools.product(range(samples), repeat=dims):
            edge = [
                box[k] + (cell[k] + (sample[k] + 0.5) / samples) * (box[dims + k] - box[k]) / cells for k in range(dims)
            ]
            at = [[np.clip(e / stride - 0.5, 0, features.shape[1 + k] - 1)] for k, e in enumerate(edge)]
            values.append([float(map_coordinates(channel, at, order=1)[0]) for channel in features])
        out[(slice(None), *cell)] = np.mean(values, axis=0)
    return out


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("cells", [1, 3])
def test_roi_align(dims: int, stride: int, cells: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 3, *[7, 5, 6][:dims]))
    boxes = []
    for number in (3, 0):
        low = rng.uniform(-3, 15, (number, dims))
        boxes.append(np.concatenate([low, low + rng.uniform(0.5, 20, (number, dims))], axis=1))
    found = roi_align(
        torch.tensor(features, dtype=torch.float32),
        [torch.tensor(b, dtype=torch.float32) for b in boxes],
        stride,
        cells,
    )
    wanted = np.stack([_reference_roi_align(features[0], box, stride, cells, 2) for box in boxes[0]])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_roi_align_of_bf16_features_is_where_it_is_in_float32() -> None:
    """bf16 has 8 bits: at the far end of a map of 512 pixels its coordinates are 1 pixel apart."""
    ramp = torch.arange(512.0).expand(1, 1, 4, 512).bfloat16()
    box = torch.tensor([[0.0, 500.0, 4.0, 503.0]])
    assert torch.equal(roi_align(ramp, [box], 1, 3), roi_align(ramp.float(), [box], 1, 3))


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.0)])
def test_focal_loss(alpha: float, gamma: float) -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 3, 50), rng.integers(0, 2, 50)
    prob = 1 / (1 + np.exp(-logits))
    right = np.where(target == 1, prob, 1 - prob)
    wanted = (np.where(target == 1, alpha, 1 - alpha) * (1 - right) ** gamma * -np.log(right)).sum()
    found = focal_loss(torch.tensor(logits), torch.tensor(target, dtype=torch.float64), alpha, gamma)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_distance_iou_by_hand() -> None:
    box = torch.tensor([[0.0, 0, 2, 2]])
    np.testing.assert_allclose(distance_iou(box, box), [1])
    np.testing.assert_allclose(distance_iou(box, torch.tensor([[1.0, 0, 3, 2]])), [2 / 6 - 1 / 13], rtol=1e-6)
    np.testing.assert_allclose(distance_iou(box, torch.tensor([[4.0, 0, 6, 2]])), [0 - 16 / 40], rtol=1e-6)
    cube = torch.tensor([[0.0, 0, 0, 2, 2, 2]])
    np.testing.assert_allclose(distance_iou(cube, cube + 1), [1 / 15 - 3 / 27], rtol=1e-5)


def test_hard_negatives() -> None:
    torch.manual_seed(0)
    labels = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, -1, -1, 1])
    prob = torch.tensor([0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.2, 0.1, 0.99, 0.99, 0.1])
    chosen = hard_negatives(labels, prob, ratio=2, pool=1, min_negatives=1)
    assert chosen.nonzero().squeeze(1).tolist() == [0, 1, 2, 3, 4, 10]
    none = hard_negatives(torch.where(labels == 1, 0, labels), prob, ratio=2, pool=1, min_negatives=3)
    assert none.nonzero().squeeze(1).tolist() == [1, 2, 3]
    assert not hard_negatives(torch.full((4,), -1), prob[:4], 2, 1, 3).any()


def test_select() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [10, 10, 14, 40], [-9, -9, -2, -2]])
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.7], [0.3, 0.01], [1.0, 1.0]])
    found = select(boxes, scores, (20, 20), min_score=0.05, max_iou=0.5)
    assert found.boxes.tolist() == [[0, 0, 4, 4], [0, 0, 4, 5], [10, 10, 14, 20]]
    assert found.labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.3])
    assert len(select(boxes, scores, (20, 20), min_score=0.95).boxes) == 0


def test_cells_of_the_grid() -> None:
    """Each lesion is learned on one level; the smaller of two in one cell."""
    detector = make_detector("grid", 2)
    assert isinstance(detector, GridDetector)
    maps = detector.pyramid(torch.zeros(1, 1, 64, 64))
    centers, strides = detector._cells(maps)
    target = make_target([[0, 0, 64, 64], [20, 20, 26, 26], [40, 40, 41, 41], [0, 40, 20, 60]], ignored=1)
    match = detector.match(target, centers, strides)
    assert strides[match == 1].unique().tolist() == [2]
    assert strides[match == 0].unique().tolist() == [8]
    assert (match == 2).sum() == 1, "smaller than a cell"
    inside = (centers[:, 0] < 20) & (centers[:, 1] >= 40) & (centers[:, 1] < 60)
    assert set(match[inside].tolist()) <= {-2, 0}
    np.testing.assert_allclose(centers[match == 1].mean(0), [23, 23])


def test_anchors_of_the_head() -> None:
    detector = make_detector("retinanet", 3)
    assert isinstance(detector, RetinaNet)
    maps = detector.pyramid(torch.zeros(1, 1, 32, 32, 32))
    levels = detector.head.grid(maps)
    assert [len(level) for level in levels] == [2 * 16**3, 2 * 8**3, 2 * 4**3]
    assert levels[0][0].tolist() == [-2, -2, -2, 4, 4, 4], "of 6 pixels, around the middle of the first cell"
    target = make_target([[8, 8, 8, 18, 18, 18], [1, 1, 1, 9, 9, 9]], dims=3, ignored=1)
    match = detector.head.match(target, levels)
    anchors = torch.cat(levels)
    assert set(match.tolist()) == {-2, -1, 0}
    near = (anchors[match == 0].unflatten(1, (2, 3)).mean(1) - 13).abs().max()
    assert near < 6


# ---- views


class _Finds(torch.nn.Module):
    """Finds the blocks of ones that lie wholly in what it sees."""

    def forward(self, images: torch.Tensor) -> list[Found]:
        found = []
        for image in images:
            places = torch.nonzero(image[0] > 0.5)
            if len(places) == 4 ** (image.ndim - 1):
                box = torch.cat([places.min(0).values, places.max(0).values + 1]).float()[None]
                found.append(Found(box, torch.tensor([0.9]), torch.tensor([0])))
            else:
                found.append(Found(torch.zeros(0, 2 * (image.ndim - 1)), torch.zeros(0), torch.zeros(0).long()))
        return found


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("low", [0, 5, 9, 15])
@pytest.mark.parametrize("flips", [(), (0,), (0, 1)])
def test_windows_and_flips(dims: int, low: int, flips: tuple[int, ...]) -> None:
    images = torch.zeros(2, 1, *[19, 21, 23][:dims])
    images[(0, 0, *[slice(low, low + 4)] * dims)] = 1
    inferer = DetectionInferer(window=[8] * dims, overlap=0.5, flip_axes=flips)
    found = inferer(images, _Finds())
    assert found[0].boxes.tolist() == [[low] * dims + [low + 4] * dims]
    np.testing.assert_allclose(found[0].scores, [0.9], rtol=1e-6)
    assert len(found[1].boxes) == 0


def test_images_smaller_than_the_window() -> None:
    images = torch.zeros(1, 1, 5, 30)
    images[0, 0, 1:5, 26:30] = 1
    (found,) = DetectionInferer(window=[8, 16], overlap=0.25)(images, _Finds())
    assert found.boxes.tolist() == [[1, 26, 5, 30]]


def test_targets_go_to_the_network() -> None:
    detector = make_detector("grid", 2)
    losses = DetectionInferer(window=[8, 8])(torch.zeros(1, 1, 32, 32), detector, [make_target([[1, 1, 9, 9]])])
    assert set(losses) == {"object", "class", "box"}


def test_fusion_by_hand() -> None:
    def view(*rows: tuple[list[float], float, int]) -> Found:
        boxes, scores, labels = zip(*rows, strict=True)
        return Found(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels))

    one = view(([0, 0, 10, 10], 0.9, 0), ([0, 0, 10, 10], 0.4, 1))
    two = view(([0, 0, 10, 12], 0.3, 0), ([30, 30, 40, 40], 0.8, 0))
    found = fuse([one, two], min_iou=0.5)
    np.testing.assert_allclose(found.boxes[0], [0, 0, 10, 10.5])
    np.testing.assert_allclose(found.scores, [0.6, 0.4, 0.2], rtol=1e-6)
    assert found.labels.tolist() == [0, 0, 1]
    assert found.boxes[1].tolist() == [30, 30, 40, 40]
    nothing = Found(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long())
    assert len(fuse([nothing, nothing]).boxes) == 0


def test_weak_neighbors_in_one_view_do_not_lower_a_fused_score() -> None:
    weak = torch.tensor([[0.0, 0, 10, 6], [0.0, 0, 6, 10]])
    one, two = (Found(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([s]), torch.tensor([0])) for s in (0.9, 0.7))
    more = Found(torch.cat([one.boxes, weak]), torch.tensor([0.9, 0.1, 0.1]), torch.zeros(3, dtype=torch.long))
    assert fuse([more, two], min_iou=0.5).scores.tolist() == pytest.approx([0.8])
    assert fuse([one, two], min_iou=0.5).scores.tolist() == pytest.approx([0.8])


@pytest.mark.parametrize("arguments", [{"overlap": 1}, {"overlap": -0.1}, {"window": [8, 0]}])
def test_wrong_arguments_of_the_inferer(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"wanted overlap in 0\.\.1 and a window above 0"):
        DetectionInferer(**arguments)


@pytest.mark.parametrize("dims", [2, 3])
def test_non_maximum_suppression_is_monais(dims: int) -> None:
    generator = torch.Generator().manual_seed(dims)
    for case in range(60):
        num = 1 + 5 * case
        low = torch.rand(num, dims, generator=generator) * 40
        boxes = torch.cat([low, low + 1 + torch.rand(num, dims, generator=generator) * 20], dim=1)
        scores, labels = torch.rand(num, generator=generator), torch.randint(0, 3, (num,), generator=generator)
        for max_iou, num_boxes in ((0.3, 100), (0.1, 7), (1.0, 20)):
            found = non_maximum_suppression(Found(boxes, scores, labels), max_iou, num_boxes)
            wanted = torch.as_tensor(batched_nms(boxes, scores, labels, max_iou, num_boxes))
            for got, part in zip(found, (boxes, scores, labels), strict=True):
                assert torch.equal(got, part[wanted])
    nothing = non_maximum_suppression(Found(torch.zeros(0, 2 * dims), torch.zeros(0), torch.zeros(0).long()), 0.3, 5)
    assert nothing.boxes.shape == (0, 2 * dims)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("num_proposals", [5, 100, 1000])
def test_proposals_are_those_of_non_maximum_suppression(dims: int, num_proposals: int) -> None:
    detector = make_detector("faster_rcnn", dims)
    detector.num_proposals = num_proposals
    torch.nn.init.normal_(detector.head.score.cls_logits.weight, std=0.1)
    size = (48, 64, 40)[:dims]
    with torch.no_grad():
        maps = detector.pyramid(torch.rand(2, 1, *size))
        boxes, prob = detector.head.decoded(maps)
        for proposed, there, *given in zip(*detector._propose(maps, size), boxes, prob, strict=True):
            knobs = {"min_score": 0, "num_candidates": 4 * num_proposals, "max_iou": detector.proposal_iou}
            wanted = select(*given, size, num_boxes=num_proposals, **knobs).boxes
            assert torch.equal(proposed[there], wanted)


def test_sum_of_losses() -> None:
    losses = {"class": torch.tensor(0.5), "box": torch.tensor(0.25)}
    assert float(SumOfLosses()(losses)) == 0.75
    assert float(SumOfLosses({"box": 3})(losses)) == 1.25
    with pytest.raises(ValueError, match="no loss cls; the detector has class, box"):
        SumOfLosses({"cls": 2})(losses)
