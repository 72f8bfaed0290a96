"""The weights of one run or several: read once, checked, and used by the evaluator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn

from monai_pipelines import load_chain
from monai_pipelines.data import Cohort, PrepareImages
from monai_pipelines.engines import Model, TrainedSupervisedEvaluator
from monai_pipelines.errors import ChainMismatchError
from monai_pipelines.handlers import CollectFeatures
from monai_pipelines.inferers import AutocastInferer, TestTimeInferer
from monai_pipelines.probabilities import probabilities
from monai_pipelines.runs import Trained, checkpoint

CHAIN = load_chain("image2d")
CLASSES = ["healthy", "disease"]
Save = Callable[..., Path]


def _network(seed: int, num_logits: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, num_logits)).eval()


def _model(num_logits: int = 2, **changed: Any) -> Model:
    parts = {"chain": CHAIN, "classes": CLASSES, "inferer": AutocastInferer("fp32"), "prepare": PrepareImages()}
    network = _network(9, num_logits).train()  # as configs build it
    return Model(network=network, device=torch.device("cpu"), **{**parts, **changed})


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A run's folder with best.pt: save(name, seed, ...)."""

    def run(name: str, seed: int, num_logits: int = 2, **card: Any) -> Path:
        (tmp_path / name).mkdir()
        split = {"seed": seed, "split_fractions": [0.7, 0.3, 0], "data_sha256": "x", "seen": [f"p{seed}", "p9"]}
        common = {"classes": CLASSES, "chain": CHAIN.describe(), "fingerprint": CHAIN.fingerprint(), "split": split}
        content = {"model": _network(seed, num_logits).state_dict(), "epoch": seed, **common, **card}
        torch.save(content, tmp_path / name / "best.pt")
        return tmp_path / name

    return run


def _items(num: int = 5) -> Dataset:
    images = torch.rand(num, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    return Dataset([{"image": image, "name": f"i{k}", "label": k % 2} for k, image in enumerate(images)])


def _images(items: Dataset) -> Tensor:
    return torch.stack([item["image"] for item in items.data])


# ---- checkpoints


def test_one_run_is_its_checkpoint(save: Save) -> None:
    file = save("a", 1, threshold=0.4, threshold_by="youden", temperature=2.0) / "best.pt"
    model = _model()
    decisions = Trained(model, file).decisions
    assert decisions.members is None
    assert (decisions.epoch, decisions.threshold, decisions.threshold_by) == (1, 0.4, "youden")
    assert decisions.temperature == 2.0
    assert torch.equal(model.network[1].weight, _network(1)[1].weight)


def test_threshold_given_by_hand(save: Save) -> None:
    file = save("a", 1, threshold=0.4, threshold_by="youden") / "best.pt"
    for threshold, rule in ((0.25, None), (0.4, "youden")):
        decisions = Trained(_model(), file, threshold=threshold).decisions
        assert (decisions.threshold, decisions.threshold_by) == (threshold, rule)


def test_a_checkpoint_without_decisions_has_none(save: Save) -> None:
    decisions = Trained(_model(), save("a", 1) / "best.pt").decisions
    assert (decisions.threshold, decisions.threshold_by, decisions.temperature) == (None, None, None)


@pytest.mark.parametrize("members", [None, 2])
def test_every_checkpoint_is_read_once_and_not_before_it_is_needed(
    save: Save, monkeypatch: pytest.MonkeyPatch, members: int | None
) -> None:
    read: list[str] = []
    load = torch.load
    monkeypatch.setattr(
        checkpoint.torch, "load", lambda file, **options: (read.append(str(file)), load(file, **options))[1]
    )
    runs = [save(f"r{k}", k) for k in range(members or 1)]
    trained = Trained(_model(), runs[0] / "best.pt", runs if members else None)
    evaluator = TrainedSupervisedEvaluator(trained, _items(), 2)
    assert read == []
    trained.load(Cohort([], [], [{"name": "new"}], ("healthy", "disease")))
    evaluator.run()
    assert trained.decisions.epoch == 0
    assert read == [str(run / "best.pt") for run in runs]


@pytest.mark.parametrize("form", ["text", "list", "files"])
def test_an_ensemble_lists_its_members(save: Save, form: str) -> None:
    a = save("a", 1, threshold=0.4, threshold_by="youden", temperature=2.0)
    b = save("b", 2, threshold=0.2, threshold_by="youden", temperature=1.5)
    ensemble: Any = {"text": f"{a}, {b}", "list": [str(a), str(b)], "files": (a / "best.pt", b / "best.pt")}[form]
    decisions = Trained(_model(), "not there", ensemble).decisions
    names = [str(name) for name in (ensemble if form == "files" else [a, b])]
    assert decisions.members is not None
    assert [member._asdict() for member in decisions.members] == [
        {"file": names[0], "epoch": 1, "temperature": 2.0, "threshold": 0.4},
        {"file": names[1], "epoch": 2, "temperature": 1.5, "threshold": 0.2},
    ]
    assert (decisions.temperature, decisions.threshold_by) == (None, None), "chosen for the members, not the mean"
    assert decisions.threshold == pytest.approx(0.3)
    assert decisions.split is not None
    assert (decisions.split["seed"], decisions.split["seen"]) == ([1, 2], ["p1", "p2", "p9"])


def test_thresholds_of_members(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    a, b = save("a", 1, threshold=[0.2, 0.6], threshold_by="youden"), save("b", 2, threshold=[0.4, 0.5])
    c, d = save("c", 3), save("d", 4)
    assert Trained(_model(), "", [a, b]).decisions.threshold == pytest.approx([0.3, 0.55])
    assert Trained(_model(), "", [c, d]).decisions.threshold is None
    assert not caplog.text
    assert Trained(_model(), "", [a, c]).decisions.threshold is None
    assert f"no threshold is used, since {c} has none" in caplog.text


def test_a_test_image_that_a_member_has_seen_is_an_error_with_all_seeds(save: Save) -> None:
    item = {"name": "x", "patient": "x", "label": 0}
    cohort = Cohort([], [], [item], ("healthy", "disease"), seed=3, fractions=(0.7, 0.15, 0.15))
    card = {**cohort.split_card, "seed": 1}
    seen = Cohort([item], [], [], ("healthy", "disease"), seed=2, fractions=(0.7, 0.15, 0.15)).split_card
    trained = Trained(_model(), "", [save("a", 1, split=card), save("b", 2, split=seen)])
    with pytest.raises(ValueError, match=r"seed \[1, 2\] there, 3 here"):
        trained.load(cohort)


def test_members_with_unknown_splits(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    a, b, c = save("a", 1), save("b", 2, split=None), save("c", 3, split=None)
    with caplog.at_level(logging.WARNING):
        split = Trained(_model(), "", [b, a]).decisions.split
    assert split is not None
    assert (split["seen"], "files" in split) == (["p1", "p9"], False)
    assert f"{b}: the checkpoint does not say what it was trained on" in caplog.text
    assert Trained(_model(), "", [b, c]).decisions.split is None


def test_wrong_checkpoints_are_errors(save: Save, tmp_path: Path) -> None:
    a, b = save("a", 1), save("b", 2, classes=["ill", "well"])
    other = save("c", 3, chain=load_chain("image2d", size=[8, 8]).describe())
    for ensemble in ("", str(a), [str(a)], f"{a},{a / 'best.pt'}"):
        with pytest.raises(ValueError, match="wanted two or more different runs, as RUN_A,RUN_B, got"):
            Trained(_model(), "", ensemble)
    with pytest.raises(ValueError, match=r"b.best\.pt: trained for classes \['ill', 'well'\]"):
        Trained(_model(), "", [a, b]).load()
    with pytest.raises(ChainMismatchError, match=r"resize\.size: \[8, 8\] there, \[224, 224\] here"):
        Trained(_model(), other / "best.pt").load()
    for checkpoint_file in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such checkpoint; train first, or name one with --checkpoint"):
            Trained(_model(), checkpoint_file).load()
    wide = save("d", 4, num_logits=3)
    with pytest.raises(ValueError, match=r"d.best\.pt: weights of another network than Sequential .*; 2 are missing"):
        Trained(_model(), "", [a, wide]).load()


def test_other_library_version_is_a_warning(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    chain = CHAIN.describe()
    chain["versions"]["monai"] = "1.0"
    Trained(_model(), save("a", 1, chain=chain) / "best.pt").load()
    assert "another library version: monai 1.0 then" in caplog.text


# ---- evaluation


def test_one_run_is_evaluated_at_its_temperature(save: Save) -> None:
    items, trained = _items(), Trained(_model(), save("a", 1, temperature=2.0) / "best.pt")
    evaluator = TrainedSupervisedEvaluator(trained, items, 2)
    assert isinstance(evaluator, SupervisedEvaluator)
    evaluator.run()
    with torch.no_grad():
        wanted = probabilities(_network(1)(_images(items)) / 2)
    rows = evaluator.predictions.rows
    assert np.array([row["prob"] for row in rows]) == pytest.approx(wanted.numpy(), abs=1e-6)
    assert not any("spread" in row for row in rows)


@pytest.mark.parametrize(("num_logits", "multilabel"), [(1, False), (2, False), (2, True)])
def test_mean_and_spread_of_members(save: Save, num_logits: int, multilabel: bool) -> None:
    temperatures = [2.0, None, 0.5]
    runs = [save(f"r{k}", k, num_logits, temperature=value) for k, value in enumerate(temperatures)]
    inferer = TestTimeInferer([1], None, multilabel, "fp32")  # its spread is not that of the members
    items, model = _items(), _model(num_logits, inferer=inferer, multilabel=multilabel)
    evaluator = TrainedSupervisedEvaluator(Trained(model, "", runs), items, 2)
    features = CollectFeatures(model.network)
    features.attach(evaluator)
    evaluator.run()
    images, members = _images(items), []
    with torch.no_grad():
        for k, temperature in enumerate(temperatures):
            views = [probabilities(_network(k, num_logits)(x), multilabel) for x in (images, images.flip(3))]
            mean = torch.stack(views).mean(0).numpy()
            hot = mean ** (1 / (temperature or 1))
            rest = (1 - mean) ** (1 / (temperature or 1)) if multilabel else hot.sum(axis=1, keepdims=True) - hot
            members.append(hot / (hot + rest))
        wanted, rows = np.mean(members, axis=0), evaluator.predictions.rows
        assert np.array([row["prob"] for row in rows]) == pytest.approx(wanted, abs=1e-6)
        spread = [np.std([prob[k, c] for prob in members]) for k, c in enumerate(wanted.argmax(axis=1))]
        assert [row["spread"] for row in rows] == pytest.approx(spread, abs=1e-6)
        assert min(spread) > 1e-3
        assert features.features == pytest.approx(_network(0, num_logits)[:-1](images).numpy(), abs=1e-6)
    assert [row["label"] for row in rows] == [0, 1, 0, 1, 0]
