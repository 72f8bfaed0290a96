"""What every public transform step promises; a step without a row in `ROWS` fails."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, RandomizableTrait, Transform
from scipy.spatial.transform import Rotation

from monai_pipelines import transforms

SHAPE = (48, 60, 40)
TURN = Rotation.from_euler("xyz", [5, -8, 10], degrees=True).as_matrix()
AFFINE = nib.affines.from_matvec((TURN * [-6, 6, -6])[:, [2, 0, 1]], [100, 150, -30])  # oblique, flipped, permuted
BLOB_MM = nib.affines.apply_affine(AFFINE, [25.2, 43.3, 19.6])

Item = dict[str, Any]


def chest() -> MetaTensor:
    """Two lungs of about 1.4 l in a body, with a bright ball in one of them, HU."""
    z, x, y = np.indices(SHAPE) * 6.0
    hu = np.where(((y - 117) / 110) ** 2 + ((x - 177) / 150) ** 2 < 1, 40, -1000)
    for centre in (112, 242):
        hu[((x - centre) / 50) ** 2 + ((y - 117) / 70) ** 2 + ((z - 141) / 100) ** 2 < 1] = -850
    from_blob = nib.affines.apply_affine(AFFINE, np.stack(np.indices(SHAPE), -1)) - BLOB_MM
    hu = np.maximum(hu, 3000 * np.exp(-((from_blob / 12) ** 2).sum(axis=-1) / 2) - 1000)
    affine = torch.from_numpy(AFFINE)
    return MetaTensor(torch.from_numpy(hu.astype(np.int16))[None], affine=affine, meta={"filename_or_obj": "chest.nii"})


def ct(folder: Path) -> Item:
    return {"image": chest()}


def ct_with_lungs(folder: Path) -> Item:
    image = chest()
    lungs = torch.zeros(image.shape, dtype=torch.uint8)
    lungs[:, 7:40, 10:50, 8:32] = 1
    return {"image": image, "lungs": MetaTensor(lungs, affine=image.affine)}


def windowed(folder: Path) -> Item:
    return {"image": transforms.WindowHU("bone")(chest())}


def windowed_with_lungs(folder: Path) -> Item:
    return {**windowed(folder), "lungs": ct_with_lungs(folder)["lungs"]}


def file(folder: Path) -> Item:
    image = chest()
    nib.save(nib.Nifti1Image(image[0].numpy(), AFFINE), folder / "chest.nii")
    return {"image": str(folder / "chest.nii")}


class Row(NamedTuple):
    """How to try a step: its arguments, its input, where the twin puts its results, arguments that do nothing."""

    args: Item
    inputs: Callable[[Path], Item]
    outputs: tuple[str, ...] = ("image",)
    neutral: tuple[Item, ...] = ()


STILL = {f"{part}_prob": 0 for part in ("rotation", "scale", "shift", "flip", "elastic")}
ROWS = {
    "LoadCT": Row({}, file),
    "LungHistogram": Row({}, ct_with_lungs, ("shortcut",)),
    "MaskLungs": Row({"masking": "air"}, windowed_with_lungs, neutral=({"masking": "none"},)),
    "RandBrightness3D": Row({"prob": 1}, windowed, neutral=({"prob": 0}, {"factor": (1, 1), "prob": 1})),
    "RandContrast3D": Row({"prob": 1}, windowed, neutral=({"prob": 0}, {"factor": (1, 1), "prob": 1})),
    "RandNoise3D": Row({"sd": 0.01, "prob": 1}, windowed, neutral=({"prob": 0}, {"sd": 0, "prob": 1})),
    "RandSpatial3D": Row(
        {"rotation_prob": 1, "scale_prob": 1, "shift_prob": 1, "flip_prob": 0.5, "elastic_prob": 0, "crop_size": SHAPE},
        windowed,
        neutral=(STILL, {"rotation_deg": 0, "scale": (1, 1), "shift_voxels": 0, "elastic_sd_voxels": 0}),
    ),
    "ResampleCT": Row({"size": (44, 50, 30)}, ct_with_lungs, ("image", "lungs")),
    "SegmentLungs": Row({"no_lungs": "flag"}, ct, ("lungs",)),
    "WindowHU": Row({"window_hu": "bone"}, ct),
}
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
    if isinstance(a, MetaTensor):
        torch.testing.assert_close(a.as_tensor(), b.as_tensor(), rtol=0, atol=0)
        torch.testing.assert_close(a.affine, b.affine, rtol=0, atol=0)
        assert {k: v for k, v in a.meta.items() if k != "affine"} == {k: v for k, v in b.meta.items() if k != "affine"}
    else:
        np.testing.assert_array_equal(a, b)


def test_every_public_step_has_a_row_and_a_twin() -> None:
    assert set(transforms.__all__) == set(ROWS) | {f"{name}d" for name in ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_is_a_step_and_the_twin_takes_the_same_arguments(name: str) -> None:
    array_step, twin = getattr(transforms, name), getattr(transforms, f"{name}d")
    assert issubclass(array_step, Transform)
    assert issubclass(twin, MapTransform)
    assert issubclass(array_step, RandomizableTrait) == issubclass(twin, RandomizableTrait) == (name in RANDOM)
    mine, its = (
        {k: p.default for k, p in inspect.signature(kind).parameters.items()}
        for kind in (array_step, twin)
    )  # fmt: skip
    if "knobs" not in its:
        assert {k: its.get(k, "missing") for k in mine} == mine
    assert its["allow_missing_keys"] is False
    for kind in (array_step, twin):
        assert kind.__doc__


@pytest.mark.parametrize("name", ROWS)
def test_twin_gives_the_same(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    expected = run(standard(name), row.inputs(tmp_path))
    item = {**row.inputs(tmp_path), "label": 3}
    out = standard(f"{name}d")(item)
    for key, wanted in zip(row.outputs, expected, strict=True):
        assert_equal(out[key], wanted)
    assert out["label"] == 3
    assert set(out) == set(item) | set(row.outputs)


@pytest.mark.parametrize("name", [n for name in ROWS for n in (name, f"{name}d")])
def test_input_is_unchanged(name: str, tmp_path: Path) -> None:
    item = ROWS[name.removesuffix("d")].inputs(tmp_path)
    before = copy.deepcopy(item)
    standard(name)(item) if name.endswith("d") else run(standard(name), item)
    assert item.keys() == before.keys()
    for key, value in item.items():
        assert_equal(value, before[key])


@pytest.mark.parametrize("name", [name for name in ROWS if name != "LoadCT"])
def test_numpy_tensor_and_metatensor_give_the_same_values(name: str, tmp_path: Path) -> None:
    """Without an affine, which only a MetaTensor has, voxels are 1 mm."""
    plain = {k: v.as_tensor() for k, v in ROWS[name].inputs(tmp_path).items()}
    results = [
        run(standard(name), {k: kind(v) for k, v in plain.items()})
        for kind in (MetaTensor, torch.Tensor, np.asarray)
        if not (kind is not MetaTensor and name == "ResampleCT")  # its mask says by its affine where it is
    ]
    if name == "ResampleCT":
        image, mask = (MetaTensor(v) for v in plain.values())
        results.append(run(standard(name), {"image": plain["image"].numpy(), "lungs": mask}))
        results.append(run(standard(name), {"image": image.as_tensor(), "lungs": mask}))
    assert len(results) == 3
    for result in results:
        for value, wanted in zip(result, results[0], strict=True):
            assert isinstance(value, torch.Tensor) or name == "LungHistogram"
            np.testing.assert_array_equal(np.asarray(value), np.asarray(wanted))


@pytest.mark.parametrize(
    ("name", "seed"),
    [(n, s) for n in ROWS if n not in ("LungHistogram", "SegmentLungs") for s in range(3 if n in RANDOM else 1)],
)
def test_landmark_stays_where_it_is(name: str, seed: int, tmp_path: Path) -> None:
    """The bright ball, by the affine of the output, within half an output voxel."""
    made = standard(name)
    if name in RANDOM:
        made.set_random_state(seed)
    out = run(made, ROWS[name].inputs(tmp_path))[0]
    values = out[0].numpy().astype(float)
    bright = np.argwhere(values > 0.7 * values.max())
    assert len(bright) > 10
    affine = out.affine.numpy()
    centre = np.average(bright, axis=0, weights=values[tuple(bright.T)])
    assert np.abs(centre - nib.affines.apply_affine(np.linalg.inv(affine), BLOB_MM)).max() < 0.5
    if name in ("LoadCT", "WindowHU", "MaskLungs", "RandNoise3D", "RandBrightness3D", "RandContrast3D"):
        np.testing.assert_allclose(affine, AFFINE, atol=1e-4)


def test_mask_is_where_the_lungs_are(tmp_path: Path) -> None:
    image = ct(tmp_path)["image"]
    mask = standard("SegmentLungs")(image)
    assert mask.meta["lungs_found"]
    truth, found = (
        nib.affines.apply_affine(m.affine.numpy(), np.argwhere(m[0].numpy() > 0)).mean(axis=0)
        for m in (MetaTensor(((image > -860) & (image < -840)).as_tensor(), affine=image.affine), mask)
    )
    assert np.abs(found - truth).max() < 3


@pytest.mark.parametrize("name", ROWS)
def test_pickle(name: str, tmp_path: Path) -> None:
    original = standard(name)
    again = pickle.loads(pickle.dumps(original))
    item = ROWS[name].inputs(tmp_path)
    for a, b in zip(run(original, item), run(again, item), strict=True):
        assert_equal(a, b)


def test_all_steps_travel_to_a_spawned_process() -> None:
    steps = [standard(name) for name in transforms.__all__]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
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
    torch.testing.assert_close(out.as_tensor(), item["image"].as_tensor(), rtol=0, atol=1e-6)
    torch.testing.assert_close(out.affine, item["image"].affine)


# ---- random steps


@pytest.mark.parametrize("name", [n for name in RANDOM for n in (name, f"{name}d")])
def test_same_seed_same_result(name: str, tmp_path: Path) -> None:
    item = windowed(tmp_path)

    def result(seed: int, times: int = 1) -> torch.Tensor:
        made = standard(name)
        made.set_random_state(seed)
        for _ in range(times):
            out = made(item) if name.endswith("d") else made(item["image"])
        return (out["image"] if name.endswith("d") else out).as_tensor()

    assert torch.equal(result(1), result(1))
    assert not torch.equal(result(1), result(2))
    assert not torch.equal(result(1), result(1, times=2))


@pytest.mark.parametrize("name", RANDOM)
def test_draws_do_not_touch_the_global_state(name: str, tmp_path: Path) -> None:
    item = windowed(tmp_path)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = np.random.get_state()[2], torch.get_rng_state()  # noqa: NPY002
    standard(name)(item["image"])
    assert np.random.get_state()[2] == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("name", RANDOM)
def test_batch_gets_the_draws_of_one_volume_after_the_other(name: str, tmp_path: Path) -> None:
    volume = windowed(tmp_path)["image"].as_tensor()
    batch = torch.stack([volume, volume.flip(1), volume * 0.5])
    one_by_one = standard(name)
    expected = torch.stack([one_by_one(v) for v in batch])
    out = standard(name)(batch)
    assert out.shape == batch.shape
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
