"""Resuming: weights, history and metrics of a training that is cut are bit-identical to those of one that is not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import Compose, RandFlip
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from monai_pipelines import load_chain
from monai_pipelines.data import ArrayDataset, make_loader
from monai_pipelines.errors import ChainMismatchError, DamagedCheckpointError
from monai_pipelines.handlers.random_states import random_states, randomizables, set_random_states

pytestmark = pytest.mark.usefixtures("blank_figures")

MakeRun = Callable[..., Any]
SCHEDULERS = {
    "step": lambda optimizer, total_steps: StepLR(optimizer, 1, 0.5),
    "plateau": lambda optimizer, total_steps: ReduceLROnPlateau(optimizer, factor=0.5, patience=0),
    "one cycle": lambda optimizer, total_steps: OneCycleLR(optimizer, 0.1, total_steps),
}
NUM_IMAGES, BATCH, EPOCHS = 20, 4, 4
STEPS = NUM_IMAGES // BATCH  # in an epoch


class _Cut(Exception):
    """The power goes."""


def _network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 2))


@pytest.fixture
def start(make_run: MakeRun, tmp_path: Path) -> Callable[..., Any]:
    """A training with everything that draws: order, augmentation, dropout, and a data set that draws its noise."""

    class Noisy(ArrayDataset):
        def __getitems__(self, indices: Any) -> Any:
            batch = super().__getitems__(indices)
            return {**batch, "image": batch["image"] // 2 + torch.randint(99, batch["image"].shape).byte()}

    pixels = torch.randint(256, (NUM_IMAGES, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    labels = [0, 1] * (NUM_IMAGES // 2)
    validation = [{"image": pixels[k] / 255, "label": labels[k], "name": f"v{k}"} for k in range(10)]

    def start(folder: str, cut: int | None = None, sampling: str = "shuffle", seed: int = 0, **options: Any) -> Any:
        augment = load_chain("augment_image2d", flip_prob=[0.5, 0.5])
        augment.set_random_state(seed)
        options = {"max_epochs": EPOCHS, "val_data": validation, "loss": nn.CrossEntropyLoss(), **options}
        trainer_options = {"augmentation": augment, **options.pop("trainer_options", {})}
        torch.manual_seed(seed)
        loader = make_loader(Noisy(pixels, labels), options.pop("batch_size", BATCH), sampling, seed=5)
        options |= {"network": _network, "loader": loader, "trainer_options": trainer_options}
        run = make_run(seed=seed, output_dir=tmp_path / folder, **options)
        if cut is not None:
            run.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=cut), _cut)
            with pytest.raises(_Cut):
                run.trainer.run()
        return run

    return start


def _cut(engine: Engine) -> None:
    raise _Cut


def _assert_same(first: Path, second: Path) -> None:
    for name in ("best.pt", "history.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    one, other = (torch.load(folder / "last.pt", weights_only=True) for folder in (first, second))
    assert {key for key in one if not _equal(one[key], other[key])} == set()


def _equal(a: Any, b: Any) -> bool:
    """Equal to the last bit; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b or (a != a and b != b)


@pytest.mark.parametrize(
    ("sampling", "scheduler"), [("shuffle", "one cycle"), ("weighted", "plateau"), ("balanced", "step")]
)
@pytest.mark.parametrize(
    ("cut", "checkpoint_every", "resumed_from"),
    [(STEPS + 3, None, STEPS), (2 * STEPS, None, STEPS), (STEPS + 3, 1, STEPS + 3), (2, 1, 2), (3 * STEPS - 1, 2, 14)],
)
def test_resumed_run_equals_the_uninterrupted_one(
    start: Callable[..., Any],
    tmp_path: Path,
    sampling: str,
    cut: int,
    checkpoint_every: int | None,
    resumed_from: int,
    scheduler: str,
) -> None:
    options = {"sampling": sampling, "scheduler": SCHEDULERS[scheduler], "threshold_by": "youden"}
    start("whole", **options).trainer.run()
    options["checkpoint_every"] = checkpoint_every
    start("cut", cut=cut, **options)
    second = start("cut", seed=99, resume=True, **options)
    first_iterations: list[int] = []
    second.trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda engine: first_iterations.append(engine.state.iteration)
    )
    second.trainer.run()
    assert first_iterations[0] == resumed_from + 1
    _assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_run_may_be_cut_again_and_again(start: Callable[..., Any], tmp_path: Path) -> None:
    options = {"checkpoint_every": 1, "trainer_options": {"accumulation_steps": 2}}
    start("whole", trainer_options=options["trainer_options"]).trainer.run()
    start("cut", cut=2, **options)
    for cut in (3, 4, 6, 8, 13, 15, 19):  # a checkpoint is made at each optimizer step: after 2, 4 and 5 batches
        start("cut", cut=cut, seed=cut, resume=True, **options)
    start("cut", resume=True, **options).trainer.run()
    _assert_same(tmp_path / "whole", tmp_path / "cut")


def test_without_random_states_a_resumed_run_differs(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the tests above can fail."""
    start("whole").trainer.run()
    start("cut", cut=STEPS + 1)
    monkeypatch.setattr("monai_pipelines.handlers.training_state.set_random_states", lambda *args: None)
    start("cut", seed=99, resume=True).trainer.run()
    history = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "cut")]
    assert history[0][0] == history[1][0]
    assert history[0][1] != history[1][1]


def test_early_stopping_is_that_of_the_whole_run(make_run: MakeRun, tmp_path: Path) -> None:
    script = [(0.5, 1.0), (0.7, 0.8), (0.6, 0.9), (0.6, 0.9), (0.9, 0.9)]
    options = {"max_epochs": 5, "script": script, "patience": 2}
    first = make_run(**options)
    first.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=14), _cut)  # within epoch 4
    with pytest.raises(_Cut):
        first.trainer.run()
    second = make_run(seed=99, resume=True, **options)
    second.trainer.run()
    assert second.trainer.state.epoch == 4
    assert torch.load(tmp_path / "last.pt", weights_only=True)["best"]["epoch"] == 2


@pytest.mark.parametrize("patience", [None, 1])
def test_a_finished_run_is_left_as_it_is(
    make_run: MakeRun, tmp_path: Path, patience: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"script": [(0.5, 1.0)] * 4, "patience": patience}
    make_run(max_epochs=4 if patience else 2, **options).trainer.run()
    before = {name: (tmp_path / name).read_bytes() for name in ("best.pt", "last.pt", "history.json")}
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "history.png").unlink()
    run = make_run(max_epochs=4 if patience else 2, resume=True, **options)
    with caplog.at_level(logging.INFO, "monai_pipelines"):
        run.trainer.run()
    assert "already trained, 2 epochs; raise max_epochs or patience to continue" in caplog.text
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert (tmp_path / "metrics.json").exists()
    assert (tmp_path / "history.png").exists()


def test_a_finished_run_goes_on_with_more_epochs(start: Callable[..., Any], tmp_path: Path) -> None:
    start("whole").trainer.run()
    start("longer", max_epochs=2).trainer.run()
    start("longer", seed=99, resume=True).trainer.run()
    _assert_same(tmp_path / "whole", tmp_path / "longer")


def test_changed_settings_are_an_error_that_names_the_knob(start: Callable[..., Any]) -> None:
    one_cycle = {"scheduler": SCHEDULERS["one cycle"], "max_epochs": 2}
    start("run", **one_cycle).trainer.run()

    def message(**options: Any) -> str:
        with pytest.raises(ValueError, match="trained with other settings") as caught:
            start("run", resume=True, **{**one_cycle, **options}).trainer.run()
        return str(caught.value)

    assert "batch_size: 4 there, 2 here; batches in an epoch: 5 there, 10 here" in message(batch_size=2)
    assert "max_epochs (lr_scheduler.total_steps): 10 there, 20 here" in message(max_epochs=4)
    assert "sampling: shuffle there, balanced here" in message(sampling="balanced")
    assert "lr_scheduler: OneCycleLR there, StepLR here" in message(scheduler=SCHEDULERS["step"])
    assert "accumulation_steps: 1 there, 2 here" in message(trainer_options={"accumulation_steps": 2})
    weight = torch.tensor([0.5, 1.5])
    assert "class_weights (loss.weight): None there, [0.5, 1.5] here" in message(loss=nn.CrossEntropyLoss(weight))
    assert "loss.label_smoothing: 0.0 there, 0.1 here" in message(loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    assert "augmentation: " in message(trainer_options={"augmentation": load_chain("augment_image2d", flip_prob=1)})
    start("other").trainer.run()
    with pytest.raises(ValueError, match=r"learning_rate: 0\.05 there, 0\.01 here"):
        start("other", resume=True, learning_rate=0.01).trainer.run()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    start: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start("whole").trainer.run()
    start("cut", cut=3 * STEPS + 2)
    folder = tmp_path / "cut"
    whole = (folder / "last.pt").read_bytes()
    weights = whole.index(torch.load(folder / "last.pt", weights_only=True)["model"]["1.bias"].numpy().tobytes())
    flipped = bytearray(whole)
    flipped[weights] ^= 1
    for damaged in (whole[:-100], bytes(flipped)):
        (folder / "last.pt").write_bytes(damaged)
        run = start("cut", seed=99, cut=2 * STEPS + 1, resume=True)
        assert "continuing from previous.pt, the one before" in caplog.text
        assert run.trainer.state.iteration == 2 * STEPS + 1
        caplog.clear()
    (folder / "last.pt").unlink(missing_ok=True)
    start("cut", seed=99, resume=True).trainer.run()
    _assert_same(tmp_path / "whole", folder)
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(whole[:100])
    with pytest.raises(DamagedCheckpointError, match=r"previous\.pt: no checkpoint, or damaged"):
        start("cut", resume=True).trainer.run()


def test_nothing_to_resume(start: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A training may be cut before its first checkpoint, too."""
    start("whole").trainer.run()
    start("cut", resume=True).trainer.run()
    assert "last.pt: nothing to resume, training starts from the beginning" in caplog.text
    _assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_checkpoint_of_an_earlier_version_is_an_error(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(max_epochs=1).trainer.run()
    checkpoint = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.save({key: value for key, value in checkpoint.items() if key != "plan"}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="written by an earlier version, without all that a resume needs"):
        make_run(resume=True).trainer.run()


def test_another_chain_is_not_resumed(make_run: MakeRun) -> None:
    make_run(max_epochs=1).trainer.run()
    with pytest.raises(ChainMismatchError, match=r"window\.window_hu: 'lung' there, 'bone' here"):
        make_run(resume=True, chain=load_chain("lung_ct", window_hu="bone")).trainer.run()


@pytest.mark.parametrize("checkpoint_every", [0, -1, "null", 1.5])
def test_checkpoint_every_is_a_number_of_batches(make_run: MakeRun, checkpoint_every: Any) -> None:
    with pytest.raises(ValueError, match="checkpoint_every must be 1 or more, or null"):
        make_run(checkpoint_every=checkpoint_every)


def test_a_loader_that_cannot_go_on_within_an_epoch(make_run: MakeRun) -> None:
    with pytest.raises(TypeError, match=r"checkpoint_every wants the loader of .*make_loader, got DataLoader"):
        make_run(checkpoint_every=2).trainer.run()


# ---- random states


def test_all_random_transforms_are_found() -> None:
    flip, other = RandFlip(0.5), RandFlip(0.5)

    class Holder:
        def __init__(self) -> None:
            self.chain, self.again, self.names = Compose([flip, [other]]), [flip], ["a"]
            self.itself = self

    holder = Holder()
    assert randomizables(holder) == [holder.chain, flip, other]
    assert len(randomizables(load_chain("augment_ct"))) > 5


def test_random_states_are_plain_data_that_give_the_same_draws(tmp_path: Path) -> None:
    flip, device = RandFlip(0.5).set_random_state(1), torch.device("cpu")
    flip.R.normal()  # leaves a second number for the next draw

    def draws() -> tuple[float, ...]:
        import random

        return random.random(), np.random.normal(), float(torch.rand(())), flip.R.normal(), flip.R.uniform()  # noqa: NPY002

    torch.save(random_states([flip], device), tmp_path / "states.pt")
    first = draws()
    assert draws() != first
    set_random_states(torch.load(tmp_path / "states.pt", weights_only=True), [flip], device)
    assert draws() == first
