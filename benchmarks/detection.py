"""Inference and training steps of the three detectors, beside MONAI's `RetinaNetDetector` on the same network.

Network: MONAI's ResNet-10 with a `FeaturePyramid` of three levels; the RetinaNet and MONAI's detector have the same
weights, anchors, matcher (ATSS), sampler (hard negatives) and box selection, and must find the same boxes. Inference is
one volume, with biases set so that `--candidates` positions pass the lowest score, as an untrained network would leave
nothing to select. A training step is forward, losses, backward and AdamW on a batch of random boxes.

Without torchvision MONAI's detector cannot be trained: it asks whether its matcher is torchvision's, whose class is
missing. Here one method is replaced, as its error message proposes, by the lines for its own ATSS matcher.

`times_monai` is the median over the rounds of the method's time over that of MONAI's detector. `matching_share`: of a
step, in matching boxes and sampling negatives, median over the rounds.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from harness import arguments, record, timed
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.networks.nets import resnet10
from torch import Tensor, nn

from monai_pipelines.detection import Detector, FasterRCNN, FeaturePyramid, GridDetector, RetinaNet, Target
from monai_pipelines.detection import faster_rcnn as faster_rcnn_module
from monai_pipelines.detection import retinanet as retinanet_module
from monai_pipelines.detection.detector import flat

SIZES = ((8,), (16,), (32,))
MONAI = "MONAI RetinaNetDetector"
MIN_SCORE = 0.05


class Network(nn.Module):
    """The pyramid and head of a `RetinaNet`, with the outputs that MONAI's detector wants."""

    spatial_dims, size_divisible, num_anchors = 3, 16, 1
    cls_key, box_reg_key = "classification", "box_regression"

    def __init__(self, detector: RetinaNet) -> None:
        super().__init__()
        self.pyramid, self.head, self.num_classes = detector.pyramid, detector.head, detector.num_classes

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        maps = self.pyramid(images)
        return {self.cls_key: self.head.score(maps), self.box_reg_key: self.head.box(maps)}


class WithoutTorchvision(RetinaNetDetector):
    """MONAI's detector, whose matcher is not compared with torchvision's."""

    def compute_anchor_matched_idxs(self, anchors: Any, targets: Any, num_anchor_locs_per_level: Any) -> list[Tensor]:
        matched = []
        for these, target in zip(anchors, targets, strict=True):
            boxes = target[self.target_box_key].to(these.device)
            matched.append(self.proposal_matcher(boxes, these, num_anchor_locs_per_level, self.num_anchors_per_loc)[1])
        return matched


def monai_detector(detector: RetinaNet) -> RetinaNetDetector:
    """MONAI's with a copy of the same network, and the same settings."""
    anchors = AnchorGeneratorWithAnchorShape([size / SIZES[0][0] for (size,) in SIZES], [[SIZES[0][0]] * 3])
    monai = WithoutTorchvision(Network(copy.deepcopy(detector)), anchors)
    monai.set_atss_matcher(num_candidates=4, center_in_gt=False)
    monai.set_hard_negative_sampler(64, positive_fraction=0.25, min_neg=16, pool_size=20)
    monai.set_box_selector_parameters(MIN_SCORE, 1000, 0.3, 100)
    return monai


def raise_biases(detectors: dict[str, Any], image: Tensor, candidates: int) -> None:
    """So that `candidates` positions of an image have the lowest score or more."""
    wanted = torch.logit(torch.tensor(MIN_SCORE))
    with torch.no_grad():
        retinanet, grid = detectors["RetinaNet"], detectors["GridDetector"]
        maps = retinanet.pyramid(image)
        kept = flat(retinanet.head.score(maps), 1).flatten().topk(candidates).values[-1]
        retinanet.head.score.cls_logits.bias += wanted - kept
        objectness, classes, _ = grid._outputs(grid.pyramid(image))
        kept = torch.logit(objectness.sigmoid() * classes[..., 0].sigmoid()).flatten().topk(candidates).values[-1]
        grid.head[-1].bias[:1] += wanted - kept + 0.7  # the class, near 0.5, takes half


class Stopwatch:
    """The time in some functions, which it replaces by timed ones."""

    def __init__(self, sync: Callable[[], None]) -> None:
        self.spent, self.depth, self.sync = 0.0, 0, sync

    def replace(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.sync()
            start, self.depth = time.perf_counter(), self.depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                self.sync()
                self.depth -= 1
                if not self.depth:
                    self.spent += time.perf_counter() - start

        setattr(owner, name, watched)

    @contextmanager
    def lap(self, laps: list[float]) -> Iterator[None]:
        """Appends the time in the functions while something runs."""
        self.spent = 0.0
        yield
        laps.append(self.spent)


def watch_matching(detectors: dict[str, Any], sync: Callable[[], None]) -> Stopwatch:
    """A stopwatch of everything that chooses what is learned."""
    watch = Stopwatch(sync)
    watch.replace(retinanet_module, "hard_negatives")
    watch.replace(faster_rcnn_module, "hard_negatives")
    watch.replace(detectors["RetinaNet"].head, "match")
    watch.replace(detectors["FasterRCNN"].head, "match")
    watch.replace(detectors["FasterRCNN"], "_match")
    watch.replace(detectors["GridDetector"], "match")
    watch.replace(detectors[MONAI], "compute_anchor_matched_idxs")
    watch.replace(detectors[MONAI].fg_bg_sampler, "select_samples_per_img")
    return watch


def random_targets(batch: int, side: int, num: int, device: str) -> list[Target]:
    """Boxes of 6 to 30 voxels anywhere."""
    targets = []
    for _ in range(batch):
        sides = torch.rand(num, 3) * 24 + 6
        low = torch.rand(num, 3) * (side - sides)
        boxes = torch.cat([low, low + sides], dim=1).to(device)
        zeros = torch.zeros(num, device=device)
        targets.append(Target(boxes, zeros.long(), zeros.bool()))
    return targets


def train(detector: Any, images: Tensor, targets: list[Target], sync: Callable[[], None]) -> Callable[[], None]:
    """A function for one training step."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-5)
    given: Any = targets
    if not isinstance(detector, Detector):
        given = [{"boxes": target.boxes, "labels": target.labels} for target in targets]

    def step() -> None:
        optimizer.zero_grad()
        sum(detector(images, given).values()).backward()
        optimizer.step()
        sync()

    return step


def paired_ratio(times: list[float], others: list[float]) -> float:
    """Median over the rounds."""
    return round(statistics.median(a / b for a, b in zip(times, others, strict=True)), 3)


def check_equal(detectors: dict[str, Any], image: Tensor) -> int:
    """How many boxes MONAI's detector and ours find; an error if they differ."""
    with torch.inference_mode():
        [found], [other] = detectors["RetinaNet"](image), detectors[MONAI](image)
    same = len(found.boxes) == len(other["boxes"]) and torch.allclose(found.boxes, other["boxes"], atol=1e-2)
    if not same or not torch.allclose(found.scores, other["labels_scores"], atol=1e-4):
        raise RuntimeError(f"not the same boxes: {len(found.boxes)} and {len(other['boxes'])}")
    return len(found.boxes)


def main() -> None:
    parser = arguments(__doc__, "detection.csv", rounds=9)
    parser.add_argument("--side", type=int, default=128, help="voxels of the volume for inference")
    parser.add_argument("--patch", type=int, default=64, help="voxels of the patches for training")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--boxes", type=int, default=4, help="of each patch")
    parser.add_argument("--candidates", type=int, default=300)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="1 where others compute too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="No anchor is matched")
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)

    def pyramid() -> FeaturePyramid:
        return FeaturePyramid(resnet10(spatial_dims=3, n_input_channels=1, conv1_t_stride=2), 64, stages=(1, 2, 3))

    select = {"min_score": MIN_SCORE}
    detectors: dict[str, Any] = {
        "RetinaNet": RetinaNet(pyramid(), 1, SIZES, select=select),
        "FasterRCNN": FasterRCNN(pyramid(), 1, SIZES, select=select),
        "GridDetector": GridDetector(pyramid(), 1, select=select),
    }
    for detector in detectors.values():
        detector.eval().to(args.device)
    volume = torch.randn(1, 1, *[args.side] * 3, device=args.device)
    raise_biases(detectors, volume, args.candidates)
    detectors[MONAI] = monai_detector(detectors["RetinaNet"]).eval()
    print(f"{check_equal(detectors, volume)} boxes, the same")
    patches = torch.randn(args.batch, 1, *[args.patch] * 3, device=args.device)
    targets = random_targets(args.batch, args.patch, args.boxes, args.device)

    def sync() -> None:
        if args.device == "cuda":
            torch.cuda.synchronize()

    def infer(detector: Any) -> None:
        with torch.inference_mode():
            detector(volume)
        sync()

    tasks: dict[str, dict[str, Callable[[], Any]]] = {
        "inference": {name: partial(infer, detector) for name, detector in detectors.items()},
        "training step": {name: train(detector, patches, targets, sync) for name, detector in detectors.items()},
    }
    watch = watch_matching(detectors, sync)
    inputs = {"inference": f"1 volume of {args.side}^3", "training step": f"{args.batch} patches of {args.patch}^3"}
    for task, methods in tasks.items():
        training = task == "training step"
        for detector in detectors.values():
            detector.train(training)
        spent: dict[str, list[float]] = {name: [] for name in methods}
        seconds = timed(methods, args.rounds, {name: partial(watch.lap, spent[name]) for name in methods})
        shares = {name: paired_ratio(spent[name][1:], seconds[name]) for name in methods}
        extra = {
            "times_monai": {name: paired_ratio(values, seconds[MONAI]) for name, values in seconds.items()},
            "matching_share": shares if training else {},
        }
        record(
            args.csv, seconds, lambda name: "RetinaNet", {}, f"{task}, {inputs[task]}", "torch", "monai",
            extra=extra, device=args.device,
        )  # fmt: skip


if __name__ == "__main__":
    main()
