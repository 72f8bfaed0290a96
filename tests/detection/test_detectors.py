"""Every detector: one interface, targets of all kinds, and lesions that are learned."""

from __future__ import annotations

import pickle

import pytest
import torch
from monai.data.box_utils import box_iou
from monai.networks.nets import DenseNet

from monai_pipelines.detection import Detector, FeaturePyramid, GridDetector, Target
from monai_pipelines.networks.precision import autocast
from tests.detection.blobs import KINDS, blobs, make_detector, make_target


def _learn(detector: Detector, images: torch.Tensor, targets: list[Target], steps: int) -> None:
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    detector.train()
    for _ in range(steps):
        loss = sum(detector(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    detector.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dims", "side", "steps"), [(2, 48, 80), (3, 24, 60)])
@pytest.mark.slow
def test_four_images_are_learned(kind: str, dims: int, side: int, steps: int) -> None:
    """One of them without a lesion: each lesion is found once, with a higher score than anything else."""
    images, targets = blobs(dims, side, [2, 1, 0, 2])
    detector = make_detector(kind, dims)
    _learn(detector, images, targets, steps)
    with torch.no_grad():
        found = detector(images)
    hits, others = [], [0.0]
    for one, target in zip(found, targets, strict=True):
        iou = torch.as_tensor(box_iou(one.boxes, target.boxes))
        best = iou.max(1).values if target.boxes.numel() else torch.zeros(len(one.boxes))
        others += one.scores[best < 0.5].tolist()
        hits += [max([0.0, *one.scores[column >= 0.5].tolist()]) for column in iou.T]
    assert len(hits) == 5
    assert min(hits) > max(others)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "boxes",
    [
        pytest.param([], id="none"),
        pytest.param([[5, 6]], id="one pixel"),
        pytest.param([[0, 0.5], [6, 14]], id="less than a pixel"),
        pytest.param([[0, 4], [28, 32]], id="at the border"),
        pytest.param([[-10, 60]], id="larger than the image"),
        pytest.param([[4, 12], [4, 12]], id="twice"),
    ],
)
def test_losses_are_finite_and_have_gradients(kind: str, dims: int, boxes: list[list[float]]) -> None:
    images, _ = blobs(dims, 32, [0, 0])
    target = make_target([[*[low] * dims, *[high] * dims] for low, high in boxes], dims=dims)
    detector = make_detector(kind, dims)
    losses = detector(images, [target, make_target([], dims=dims)])
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
def test_bf16(kind: str, dims: int) -> None:
    """Losses and boxes are those of float32, but for the rounding."""
    images, targets = blobs(dims, 32, [2, 1])
    detector = make_detector(kind, dims)
    torch.manual_seed(0)
    wanted = detector(images, targets)
    torch.manual_seed(0)
    with autocast("bf16", "cpu"):
        found = detector(images, targets)
        boxes = detector.eval()(images)
    assert {name: float(loss.detach()) for name, loss in found.items()} == {
        name: pytest.approx(float(loss.detach()), rel=0.1, abs=0.02) for name, loss in wanted.items()
    }
    assert all(torch.isfinite(one.boxes).all() for one in boxes)


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_findings_are_not_background(kind: str) -> None:
    """A finding under every position: nothing is learned as background there."""
    images, _ = blobs(2, 32, [0])
    detector = make_detector(kind, 2)
    torch.manual_seed(0)
    covered = detector(images, [make_target([[-100, -100, 200, 200]], ignored=1)])
    name = {"grid": "object", "faster_rcnn": "proposal class", "retinanet": "class"}[kind]
    assert covered[name].item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_classes_and_channels(kind: str) -> None:
    images, targets = blobs(2, 48, [2, 2], num_classes=2)
    detector = make_detector(kind, 2, num_classes=2, channels=3, select={"min_score": 0.0, "num_boxes": 7})
    assert torch.isfinite(sum(detector(images.expand(-1, 3, -1, -1), targets).values()))
    found = detector.eval()(images.expand(-1, 3, -1, -1))
    for one in found:
        assert len(one.boxes) == len(one.scores) == len(one.labels) <= 7
        assert set(one.labels.tolist()) <= {0, 1}
        assert (one.scores[:-1] >= one.scores[1:]).all()
        assert (one.boxes >= 0).all()
        assert (one.boxes <= 48).all()
    again = pickle.loads(pickle.dumps(detector)).eval()(images.expand(-1, 3, -1, -1))
    assert torch.equal(again[0].boxes, found[0].boxes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (make_target([[4, 4, 4, 9]]), "empty or inverted"),
        (make_target([[9, 9, 4, 4]]), "empty or inverted"),
        (make_target([[4, 4, 9, 9]], [3]), "labels must lie in 0..0"),
        (make_target([[1, 2, 3, 4, 5, 6]], dims=3), "wanted boxes"),
        (make_target([[4, 4, 9, 9]])._replace(ignore=torch.zeros(2, dtype=torch.bool)), "wanted boxes"),
        (Target(torch.tensor([[1.0, 1, torch.nan, 4]]), torch.tensor([0]), torch.tensor([False])), "not finite"),
    ],
)
def test_targets_that_cannot_be_learned(kind: str, target: Target, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_detector(kind, 2)(torch.zeros(1, 1, 32, 32), [target])


def test_wrong_inputs() -> None:
    detector = make_detector("grid", 2)
    with pytest.raises(ValueError, match="wanted images"):
        detector(torch.zeros(1, 1, 8, 8, 8))
    with pytest.raises(ValueError, match="as many targets"):
        detector(torch.zeros(2, 1, 32, 32), [make_target([])])
    with pytest.raises(ValueError, match="num_classes"):
        GridDetector(detector.pyramid, 0)
    with pytest.raises(ValueError, match="stages must rise"):
        FeaturePyramid(DenseNet(2, 1, 2), 16, stages=(2, 1))
    with pytest.raises(TypeError, match="ResNet or DenseNet"):
        FeaturePyramid(torch.nn.Conv2d(1, 1, 3), 16)  # type: ignore[arg-type]


def test_pyramid_of_a_densenet_and_checkpointing() -> None:
    torch.manual_seed(0)
    backbone = DenseNet(2, 1, 2, init_features=8, growth_rate=8, block_config=(2, 2, 2, 2))
    pyramid = FeaturePyramid(backbone, 16, stages=(1, 2, 4))
    assert pyramid.strides == (4, 8, 32)
    images = torch.randn(2, 1, 64, 96)
    assert [tuple(level.shape) for level in pyramid(images)] == [(2, 16, 16, 24), (2, 16, 8, 12), (2, 16, 2, 3)]
    pyramid.train()
    plain = sum(level.square().sum() for level in pyramid(images))
    (wanted,) = torch.autograd.grad(plain, [next(pyramid.parameters())])
    pyramid.checkpointing = True
    again = sum(level.square().sum() for level in pyramid(images))
    (found,) = torch.autograd.grad(again, [next(pyramid.parameters())])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
