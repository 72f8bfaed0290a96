"""One run or several: their checkpoints, and the engine that evaluates them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import Dataset
from monai.engines import EnsembleEvaluator, SupervisedEvaluator
from torch import Tensor, nn

from monai_pipelines import load_chain
from monai_pipelines.data import PrepareImages, make_loader
from monai_pipelines.engines.ensembles import load_trained, make_evaluator
from monai_pipelines.errors import ChainMismatchError
from monai_pipelines.handlers import CollectFeatures, CollectPredictions, LoadCheckpoint
from monai_pipelines.inferers import AutocastInferer, TestTimeInferer
from monai_pipelines.probabilities import Probabilitiesd, probabilities
from monai_pipelines.runs.checkpoint import save_plain
from monai_pipelines.runs.record import check_split, split_card

CHAIN = load_chain("image2d")
CLASSES = ["healthy", "disease"]
Save = Callable[..., Path]


def _network(seed: int, num_logits: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, num_logits)).eval()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A run's folder with best.pt: save(name, seed, ...)."""

    def run(name: str, seed: int, num_logits: int = 2, **card: Any) -> Path:
        (tmp_path / name).mkdir()
        split = {"seed": seed, "data_sha256": "x", "seen": [f"p{seed}", "p9"]}
        common = {"classes": CLASSES, "chain": CHAIN.describe(), "fingerprint": CHAIN.fingerprint(), "split": split}
        content = {"model": _network(seed, num_logits).state_dict(), "epoch": seed, **common, **card}
        save_plain(content, tmp_path / name / "best.pt")
        return tmp_path / name

    return run


def _loader(num: int = 5) -> Any:
    images = torch.rand(num, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    return make_loader(
        Dataset([{"image": image, "name": f"i{k}", "label": k % 2} for k, image in enumerate(images)]), 2
    )


def _images(loader: Any) -> Tensor:
    return torch.stack([item["image"] for item in loader.dataset])


def _evaluate(
    trained: dict[str, Any], network: nn.Module, loader: Any, multilabel: bool = False, **options: Any
) -> Any:
    inferer = options.pop("inferer", AutocastInferer("fp32"))
    evaluator: Any = make_evaluator(
        trained,
        device=torch.device("cpu"),
        val_data_loader=loader,
        prepare_batch=PrepareImages(),
        network=network,
        inferer=inferer,
        postprocessing=Probabilitiesd("pred", multilabel, trained["temperature"]),
        val_handlers=[LoadCheckpoint(trained["file"], network, CHAIN, CLASSES), *options.pop("handlers", [])],
        multilabel=multilabel,
    )
    evaluator.run()
    return evaluator


# ---- checkpoints


def test_one_run_is_its_checkpoint(save: Save) -> None:
    file = save("a", 1, threshold=0.4, threshold_by="youden", temperature=2.0) / "best.pt"
    trained = load_trained(file, CHAIN, CLASSES)
    assert (trained["file"], trained["members"]) == (str(file), None)
    assert (trained["epoch"], trained["threshold"], trained["temperature"]) == (1, 0.4, 2.0)


@pytest.mark.parametrize("form", ["text", "list", "files"])
def test_an_ensemble_is_told_member_by_member(save: Save, form: str) -> None:
    a = save("a", 1, threshold=0.4, threshold_by="youden", temperature=2.0)
    b = save("b", 2, threshold=0.2, threshold_by="youden", temperature=1.5)
    given = {"text": f"{a}, {b}", "list": [str(a), str(b)], "files": (a / "best.pt", b / "best.pt")}[form]
    trained = load_trained("not there", CHAIN, CLASSES, given)
    names = [str(name) for name in (given if form == "files" else [a, b])]
    assert trained["members"] == [
        {"file": names[0], "epoch": 1, "temperature": 2.0, "threshold": 0.4},
        {"file": names[1], "epoch": 2, "temperature": 1.5, "threshold": 0.2},
    ]
    assert trained["file"] == str(a / "best.pt")
    assert (trained["temperature"], trained["threshold_by"]) == (None, None), "chosen for the members, not the mean"
    assert trained["threshold"] == pytest.approx(0.3)
    assert trained["split"] == {"seed": [1, 2], "data_sha256": "x", "seen": ["p1", "p2", "p9"]}


def test_thresholds_of_members(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    a, b = save("a", 1, threshold=[0.2, 0.6], threshold_by="youden"), save("b", 2, threshold=[0.4, 0.5])
    c, d = save("c", 3), save("d", 4)
    both = load_trained("", CHAIN, CLASSES, [a, b])
    assert both["threshold"] == pytest.approx([0.3, 0.55])
    assert load_trained("", CHAIN, CLASSES, [c, d])["threshold"] is None
    assert not caplog.text
    assert load_trained("", CHAIN, CLASSES, [a, c])["threshold"] is None
    assert f"no threshold is used, for {c} has none" in caplog.text


def test_a_test_image_that_a_member_has_seen_is_told_with_all_seeds(save: Save) -> None:
    cohort = SimpleNamespace(train=[], validation=[], test=[{"name": "x", "patient": "x"}], digest="x")
    here = split_card(3, [0.7, 0.15, 0.15], cohort)
    card = {**here, "seed": 1}
    seen = split_card(2, [0.7, 0.15, 0.15], SimpleNamespace(**{**vars(cohort), "train": cohort.test}))
    trained = load_trained("", CHAIN, CLASSES, [save("a", 1, split=card), save("b", 2, split=seen)])
    with pytest.raises(ValueError, match=r"seed \[1, 2\] there, 3 here"):
        check_split(trained, here, cohort)


def test_members_that_do_not_tell_their_split(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    a, b, c = save("a", 1), save("b", 2, split=None), save("c", 3, split=None)
    with caplog.at_level(logging.WARNING):
        assert load_trained("", CHAIN, CLASSES, [b, a])["split"]["seen"] == ["p1", "p9"]
    assert f"{b}: not told what it was trained on" in caplog.text
    assert load_trained("", CHAIN, CLASSES, [b, c])["split"] is None


def test_wrong_members_are_told(save: Save, tmp_path: Path) -> None:
    a, b = save("a", 1), save("b", 2, classes=["ill", "well"])
    other = save("c", 3, chain=load_chain("image2d", size=[8, 8]).describe())
    for ensemble in ("", str(a), [str(a)], f"{a},{a / 'best.pt'}"):
        with pytest.raises(ValueError, match="wanted two or more different runs, as RUN_A,RUN_B, got"):
            load_trained("", CHAIN, CLASSES, ensemble)
    with pytest.raises(ValueError, match=r"b.best\.pt: trained for classes \['ill', 'well'\]"):
        load_trained("", CHAIN, CLASSES, [a, b])
    with pytest.raises(ChainMismatchError):
        load_trained("", CHAIN, CLASSES, [a, other])
    with pytest.raises(FileNotFoundError, match="nowhere: no such checkpoint"):
        load_trained("", CHAIN, CLASSES, [a, tmp_path / "nowhere"])
    wide = save("d", 4, num_logits=3)
    with pytest.raises(ValueError, match=r"d.best\.pt: weights of another network"):
        _evaluate(load_trained("", CHAIN, CLASSES, [a, wide]), _network(0), _loader())


# ---- evaluation


def test_one_run_is_evaluated_by_monais_evaluator(save: Save) -> None:
    trained, loader = load_trained(save("a", 1, temperature=2.0) / "best.pt", CHAIN, CLASSES), _loader()
    predictions = CollectPredictions()
    assert type(_evaluate(trained, _network(0), loader, handlers=[predictions])) is SupervisedEvaluator
    with torch.no_grad():
        wanted = probabilities(_network(1)(_images(loader)) / 2)
    assert np.array([row["prob"] for row in predictions.rows]) == pytest.approx(wanted.numpy(), abs=1e-6)
    assert not any("spread" in row for row in predictions.rows)


@pytest.mark.parametrize(("num_logits", "multilabel"), [(1, False), (2, False), (2, True)])
def test_mean_and_spread_of_members(save: Save, num_logits: int, multilabel: bool) -> None:
    temperatures = [2.0, None, 0.5]
    runs = [save(f"r{k}", k, num_logits, temperature=own) for k, own in enumerate(temperatures)]
    loader, network = _loader(), _network(9, num_logits)
    inferer = TestTimeInferer([1], None, multilabel, "fp32")  # its own spread is not that of the members
    predictions, features = CollectPredictions(inferer), CollectFeatures(network)
    trained = load_trained("", CHAIN, CLASSES, runs)
    options = {"inferer": inferer, "handlers": [predictions, features]}
    evaluator = _evaluate(trained, network, loader, multilabel, **options)
    assert type(evaluator) is EnsembleEvaluator
    images, members = _images(loader), []
    with torch.no_grad():
        for k, temperature in enumerate(temperatures):
            views = [probabilities(_network(k, num_logits)(x), multilabel) for x in (images, images.flip(3))]
            odds = torch.stack(views).mean(0).numpy()
            hot = odds ** (1 / (temperature or 1))
            rest = (1 - odds) ** (1 / (temperature or 1)) if multilabel else hot.sum(axis=1, keepdims=True) - hot
            members.append(hot / (hot + rest))
        wanted = np.mean(members, axis=0)
        assert np.array([row["prob"] for row in predictions.rows]) == pytest.approx(wanted, abs=1e-6)
        spread = [np.std([own[k, c] for own in members]) for k, c in enumerate(wanted.argmax(axis=1))]
        assert [row["spread"] for row in predictions.rows] == pytest.approx(spread, abs=1e-6)
        assert min(spread) > 1e-3
        assert features.features == pytest.approx(_network(0, num_logits)[:-1](images).numpy(), abs=1e-6)
    assert [row["label"] for row in predictions.rows] == [0, 1, 0, 1, 0]
