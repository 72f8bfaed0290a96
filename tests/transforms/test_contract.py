"""The contract of all public transform steps; a step without a row in `ROWS` fails."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, RandomizableTrait, Transform

from monai_pipelines import transforms
from monai_pipelines.slides import Tiles
from tests.new_process import CONTEXT
from tests.transforms.contract_rows import AFFINE, AFFINE_2D, BLOB_2D_MM, BLOB_MM, ROWS, Item, ct

RANDOM = [name for name in ROWS if name.startswith("Rand")]


def step(name: str, **args: Any) -> Transform:
    """The array step, or the twin where the name ends in d."""
    kind = getattr(transforms, name)
    made = kind(**args) if name in ROWS else kind("image", **args)
    return made.set_random_state(0) if isinstance(made, Randomizable) else made


def standard(name: str) -> Transform:
    return step(name, **ROWS[name.removesuffix("d")].args)


def run(array_step: Transform, item: Item) -> tuple[Any, ...]:
    out = array_step(*item.values())
    return out if isinstance(out, tuple) else (out,)


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, MetaTensor):
        torch.testing.assert_close(a.as_tensor(), b.as_tensor(), rtol=0, atol=0)
        assert_equal(dict(a.meta), dict(b.meta))
    elif isinstance(a, Tiles):
        assert_equal(vars(a), vars(b))
    else:
        np.testing.assert_array_equal(a, b)


def _plain(value: Any) -> Any:
    """An array, or a dictionary of arrays."""
    if isinstance(value, dict):
        return {k: np.asarray(v) for k, v in value.items()}
    return value.coords if isinstance(value, Tiles) else np.asarray(value)


def test_every_public_step_has_a_row_and_a_twin() -> None:
    assert set(transforms.__all__) == set(ROWS) | {f"{name}d" for name in ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_is_a_step_and_the_twin_takes_the_same_arguments(name: str) -> None:
    array_step, twin = getattr(transforms, name), getattr(transforms, f"{name}d")
    assert issubclass(array_step, Transform)
    assert issubclass(twin, MapTransform)
    assert issubclass(array_step, RandomizableTrait) == issubclass(twin, RandomizableTrait) == (name in RANDOM)
    array_args, twin_args = (
        {k: p.default for k, p in inspect.signature(kind).parameters.items()} for kind in (array_step, twin)
    )
    if "knobs" not in twin_args:
        assert array_args.items() <= twin_args.items()
    assert twin_args["allow_missing_keys"] is False
    for kind in (array_step, twin):
        assert kind.__doc__


@pytest.mark.parametrize("name", ROWS)
def test_twin_gives_the_same(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    item = row.inputs(tmp_path)
    expected = run(standard(name), item)
    out = standard(f"{name}d")({**item, "label": 3})
    for key, wanted in zip(row.outputs, expected, strict=True):
        assert_equal(out[key], wanted)
    assert out["label"] == 3
    assert set(out) == {*item, *row.outputs, "label"}


@pytest.mark.parametrize("name", [n for name in ROWS for n in (name, f"{name}d")])
def test_input_is_unchanged(name: str, tmp_path: Path) -> None:
    item = ROWS[name.removesuffix("d")].inputs(tmp_path)
    before = copy.deepcopy(item)
    standard(name)(item) if name.endswith("d") else run(standard(name), item)
    assert item.keys() == before.keys()
    for key, value in item.items():
        assert_equal(value, before[key])


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].array])
def test_numpy_tensor_and_metatensor_give_the_same_values(name: str, tmp_path: Path) -> None:
    """Without the affine of a MetaTensor, voxels are 1 mm."""
    plain = {k: v.as_tensor() if isinstance(v, MetaTensor) else v for k, v in ROWS[name].inputs(tmp_path).items()}
    results = [
        run(standard(name), {k: kind(v) if isinstance(v, torch.Tensor) else v for k, v in plain.items()})
        for kind in (MetaTensor, torch.Tensor, np.asarray)
        if not (kind is not MetaTensor and name == "ResampleCT")  # locates its mask by the affine
    ]
    if name == "ResampleCT":
        image, mask = (MetaTensor(v) for v in plain.values())
        results.append(run(standard(name), {"image": plain["image"].numpy(), "lungs": mask}))
        results.append(run(standard(name), {"image": image.as_tensor(), "lungs": mask}))
    assert len(results) == 3
    if name in RANDOM:
        assert [type(result[0]) for result in results] == [MetaTensor, torch.Tensor, torch.Tensor]
    for result in results:
        for value, wanted in zip(result, results[0], strict=True):
            if ROWS[name].landmark:
                assert isinstance(value, torch.Tensor)
            assert_equal(_plain(value), _plain(wanted))


@pytest.mark.parametrize(
    ("name", "seed"),
    [(n, s) for n in ROWS if ROWS[n].landmark for s in range(3 if n in RANDOM else 1)],
)
def test_landmark_stays_in_place(name: str, seed: int, tmp_path: Path) -> None:
    """The bright spot, by the output's affine, within half an output voxel."""
    made = standard(name)
    if name in RANDOM:
        made.set_random_state(seed)
    out = run(made, ROWS[name].inputs(tmp_path))[0]
    values = out[0].numpy().astype(float)
    bright = np.argwhere(values > 0.7 * values.max())
    assert len(bright) > 10
    affine = out.affine.numpy()
    center = np.average(bright, axis=0, weights=values[tuple(bright.T)])
    spot_mm, affine_in = (BLOB_MM, AFFINE) if values.ndim == 3 else (BLOB_2D_MM, AFFINE_2D)
    expected = nib.affines.apply_affine(np.linalg.inv(affine), spot_mm)[: values.ndim]
    assert np.abs(center - expected).max() < 0.5
    if ROWS[name].keeps_grid:
        np.testing.assert_allclose(affine, affine_in, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].array and ROWS[name].landmark])
def test_meta_is_kept(name: str, tmp_path: Path) -> None:
    item = ROWS[name].inputs(tmp_path)
    meta = {k: v for k, v in item["image"].meta.items() if k != "affine"}
    assert meta.items() <= run(standard(name), item)[0].meta.items()


def test_mask_covers_the_lungs(tmp_path: Path) -> None:
    image = ct(tmp_path)["image"]
    mask = standard("SegmentLungs")(image)
    assert mask.meta["lungs_found"]
    expected, center = (
        nib.affines.apply_affine(m.affine.numpy(), np.argwhere(m[0].numpy() > 0)).mean(axis=0)
        for m in (MetaTensor(((image > -860) & (image < -840)).as_tensor(), affine=image.affine), mask)
    )
    assert np.abs(center - expected).max() < 3


@pytest.mark.parametrize("name", ROWS)
def test_pickle(name: str, tmp_path: Path) -> None:
    original = standard(name)
    again = pickle.loads(pickle.dumps(original))
    item = ROWS[name].inputs(tmp_path)
    for a, b in zip(run(original, item), run(again, item), strict=True):
        assert_equal(a, b)


def test_all_steps_travel_to_a_new_process() -> None:
    steps = [standard(name) for name in transforms.__all__]
    with CONTEXT.Pool(1) as pool:
        back = [pickle.loads(data) for data in pool.map(pickle.dumps, steps)]
    assert [type(s) for s in back] == [type(s) for s in steps]


@pytest.mark.parametrize("name", ROWS)
def test_missing_key(name: str, tmp_path: Path) -> None:
    args = ROWS[name].args
    others = {"label": 1} | {k: v for k, v in ROWS[name].inputs(tmp_path).items() if k != "image"}
    assert step(f"{name}d", allow_missing_keys=True, **args)(others) == others
    with pytest.raises(KeyError, match="image"):
        step(f"{name}d", **args)(others)


@pytest.mark.parametrize(("name", "args"), [(name, args) for name, row in ROWS.items() for args in row.neutral])
def test_neutral_arguments_do_nothing(name: str, args: Item, tmp_path: Path) -> None:
    item = ROWS[name].inputs(tmp_path)
    out = run(step(name, **args), item)[0]
    assert torch.equal(out.as_tensor(), item["image"].as_tensor())
    torch.testing.assert_close(out.affine, item["image"].affine)


# ---- random steps


@pytest.mark.parametrize("name", [n for name in RANDOM for n in (name, f"{name}d")])
def test_same_seed_same_result(name: str, tmp_path: Path) -> None:
    item = ROWS[name.removesuffix("d")].inputs(tmp_path)

    def result(seed: int, times: int = 1) -> Any:
        made = standard(name)
        made.set_random_state(seed)
        for _ in range(times):
            out = made(item)["image"] if name.endswith("d") else run(made, item)[0]
        return _plain(out)

    assert np.array_equal(result(1), result(1))
    assert not np.array_equal(result(1), result(2))
    assert not np.array_equal(result(1), result(1, times=2))


@pytest.mark.parametrize("name", RANDOM)
def test_draws_do_not_touch_the_global_state(name: str, tmp_path: Path) -> None:
    item = ROWS[name].inputs(tmp_path)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = np.random.get_state()[2], torch.get_rng_state()  # noqa: NPY002
    run(standard(name), item)
    assert np.random.get_state()[2] == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("name", [name for name in RANDOM if ROWS[name].array and name != "RandCropLesion"])
def test_batch_gets_the_draws_of_consecutive_images(name: str, tmp_path: Path) -> None:
    one = ROWS[name].inputs(tmp_path)["image"].as_tensor()
    batch = torch.stack([one, one.flip(1), one * 0.5])
    one_by_one = standard(name)
    expected = torch.stack([one_by_one(v) for v in batch])
    out = standard(name)(batch)
    assert out.shape == batch.shape
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
