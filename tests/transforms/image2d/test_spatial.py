from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from scipy.ndimage import map_coordinates

from monai_pipelines.transforms.image2d.spatial import RandSpatial2D, RandSpatial2Dd, SpatialDraw2D

SHAPE = (21, 26)
NOTHING = {"flip_prob": 0, "rotate90_prob": 0, "rotation_prob": 0, "scale_prob": 0, "shift_prob": 0}
EVERYTHING = {"flip_prob": 0.5, "rotate90_prob": 0.75, "rotation_prob": 1, "scale_prob": 1, "shift_prob": 1}
EXACT = {**NOTHING, "flip_prob": 0.5, "rotate90_prob": 0.75}


def images(*lead: int, shape: tuple[int, int] = SHAPE, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((*lead, *shape), dtype=np.float32))


def apply(img: torch.Tensor, *draws: SpatialDraw2D, **knobs: object) -> torch.Tensor:
    step = RandSpatial2D(**knobs)
    step.draws = list(draws)
    return step(img, randomize=False)


def _reference_forward(d: SpatialDraw2D, shape: tuple[int, ...]) -> np.ndarray:
    """Input pixel -> output pixel as 3x3, composed of one elementary matrix after the other."""

    def move(by: np.ndarray) -> np.ndarray:
        return np.array([[1, 0, by[0]], [0, 1, by[1]], [0, 0, 1]])

    def turn(angle_deg: float) -> np.ndarray:
        c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
        return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])

    center = (np.array(shape) - 1) / 2
    matrix = move(-center)
    for _ in range(d.quarters):
        matrix = turn(90) @ matrix
    matrix = np.diag([-1 if d.flip[0] else 1, -1 if d.flip[1] else 1, 1]) @ matrix
    matrix = turn(d.rotation_deg) @ np.diag([d.scale, d.scale, 1]) @ matrix
    return move(center + np.array(d.shift) * shape) @ matrix


def _reference(
    img: torch.Tensor, d: SpatialDraw2D, mode: str, fill: str | float, size: tuple[int, int] | None
) -> np.ndarray:
    """Channel by channel with scipy, then cropped."""
    shape = img.shape[1:]
    rows, columns = np.indices(shape)
    at = np.linalg.inv(_reference_forward(d, shape)) @ np.stack([rows, columns, np.ones(shape)]).reshape(3, -1)
    outside = {"border": "nearest", "reflection": "reflect"}.get(fill, "grid-constant")
    cval = 0.0 if isinstance(fill, str) else fill
    order = int(mode == "bilinear")
    out = np.stack(
        [map_coordinates(c, at[:2], order=order, mode=outside, cval=cval).reshape(shape) for c in img.double().numpy()]
    )
    if size is None:
        return out
    top, left = (int(u * (n - s + 1)) for u, n, s in zip(d.crop, shape, size, strict=True))
    return out[:, top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize("fill", ["border", "reflection", 0.0, 0.7])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("crop_size", [None, (13, 22)])
def test_every_combination_of_parts_agrees_with_scipy(
    mode: str, fill: str | float, crop_size: tuple[int, int] | None
) -> None:
    img = images(2)
    for parts in itertools.product([0, 1], repeat=4):
        knobs = dict(zip(["flip_prob", "rotation_prob", "scale_prob", "shift_prob"], parts, strict=True))
        step = RandSpatial2D(**knobs, rotation_deg=40, crop_size=crop_size, mode=mode, fill=fill)
        out = step.set_random_state(3)(img)
        expected = _reference(img, step.draws[0], mode, fill, crop_size)
        assert out.shape == expected.shape
        difference = np.abs(out.numpy() - expected)
        if mode == "nearest":  # float32 may round pixels half-way to the other side
            assert (difference > 1e-6).mean() < 5e-3
        else:
            assert difference.max() < 3e-5


def test_quarter_turns_with_everything_agree_with_scipy() -> None:
    square = images(1, shape=(24, 24))
    for flip, quarters in itertools.product([(False, False), (True, False), (False, True)], range(4)):
        d = SpatialDraw2D(flip, quarters, rotation_deg=20, scale=0.9, shift=(0.1, -0.05))
        expected = _reference(square, d, "bilinear", "border", None)
        np.testing.assert_allclose(apply(square, d), expected, atol=3e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flips_and_quarter_turns_only_move_pixels(dtype: torch.dtype) -> None:
    batch = images(80, 3, shape=(20, 20))
    pixels = (batch * 255).to(dtype) if dtype == torch.uint8 else batch
    unit = pixels.numpy().astype(np.float32) / 255 if dtype == torch.uint8 else batch.numpy()
    step = RandSpatial2D(**EXACT).set_random_state(0)
    out = step(pixels)
    assert len({d[:2] for d in step.draws}) == 16
    for image, moved, d in zip(unit, out.numpy(), step.draws, strict=True):
        turned = np.rot90(image, d.quarters, (1, 2))
        assert np.array_equal(moved, np.flip(turned, [axis + 1 for axis in (0, 1) if d.flip[axis]]))


def test_exact_and_interpolated_agree() -> None:
    """Flips and quarter turns, by interpolation and by moving pixels."""
    img = images(1, shape=(16, 16))
    for rows, columns, quarters in itertools.product([False, True], [False, True], range(4)):
        d = SpatialDraw2D((rows, columns), quarters, crop=(0.5, 0.9))
        still = apply(img, d, crop_size=(9, 12))
        nearly = apply(img, d._replace(rotation_deg=1e-9), crop_size=(9, 12))
        torch.testing.assert_close(still, nearly, atol=1e-4, rtol=0)


def test_hand_worked_values() -> None:
    img = torch.tensor([[[1.0, 2, 4], [8, 16, 32], [64, 128, 256]]]) / 256
    counterclockwise = torch.tensor([[[4.0, 32, 256], [2, 16, 128], [1, 8, 64]]]) / 256
    assert torch.equal(apply(img, SpatialDraw2D(quarters=1)), counterclockwise)
    torch.testing.assert_close(apply(img, SpatialDraw2D(rotation_deg=90)), counterclockwise, atol=1e-5, rtol=0)
    line = torch.tensor([[[1.0, 2, 4, 8]]]) / 8
    right = SpatialDraw2D(shift=(0, 0.125))  # half a pixel
    for fill, first in (("border", 1), ("reflection", 1), (1.0, 4.5)):
        torch.testing.assert_close(apply(line, right, fill=fill), torch.tensor([[[first, 1.5, 3, 6]]]) / 8)
    twice = apply(torch.arange(5.0)[None, None] / 4, SpatialDraw2D(scale=2))
    torch.testing.assert_close(twice, torch.tensor([[[1, 1.5, 2, 2.5, 3]]]) / 4)
    assert SpatialDraw2D(crop=(0.5, 0.999)).start((10, 10), (7, 7)) == (2, 3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batch_equals_singles(dtype: torch.dtype) -> None:
    batch = (images(40, 2, shape=(20, 20)) * 255).to(dtype)
    batch = batch if dtype == torch.uint8 else batch / 255
    for knobs in [{}, {"crop_size": (8, 9)}, EVERYTHING, EXACT, {**NOTHING, "crop_size": (8, 9)}]:
        together = RandSpatial2D(**knobs).set_random_state(1)(batch)
        step = RandSpatial2D(**knobs).set_random_state(1)
        torch.testing.assert_close(together, torch.stack([step(v) for v in batch]), atol=1e-6, rtol=0)


def test_several_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = images(9, 1)
    whole = RandSpatial2D().set_random_state(1)(batch)
    monkeypatch.setattr("monai_pipelines.transforms.random.CHUNK_BYTES", 1)
    torch.testing.assert_close(RandSpatial2D().set_random_state(1)(batch), whole, atol=1e-6, rtol=0)


def test_nothing_drawn_is_the_identity() -> None:
    batch = images(3, 1)
    assert RandSpatial2D(**NOTHING)(batch) is batch
    ones = {"rotation_prob": 1, "scale_prob": 1, "shift_prob": 1, "flip_prob": 0}
    assert RandSpatial2D(rotation_deg=0, shift=0, scale=(1, 1), **ones)(batch) is batch
    shift = SpatialDraw2D(shift=(0.1, 0))
    mixed = apply(batch, SpatialDraw2D(), shift, SpatialDraw2D())
    assert torch.equal(mixed[[0, 2]], batch[[0, 2]])
    assert not torch.equal(mixed[1], batch[1])
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(RandSpatial2D(**NOTHING)(levels), levels / 255)
    cropped = apply(batch, SpatialDraw2D(crop=(0, 0.99)), shift, SpatialDraw2D(), crop_size=(4, 5))
    assert torch.equal(cropped[0], batch[0, :, :4, -5:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_dtype(dtype: torch.dtype) -> None:
    img = (images(1) * 255).to(torch.uint8) if dtype == torch.uint8 else images(1).to(dtype)
    d = SpatialDraw2D(rotation_deg=10)
    out = apply(img, d)
    assert out.dtype == (torch.float32 if dtype == torch.uint8 else dtype)
    reference = _reference(img / 255 if dtype == torch.uint8 else img, d, "bilinear", "border", None)
    tolerance = {torch.float64: 1e-10, torch.float16: 1e-3, torch.bfloat16: 1e-2}.get(dtype, 1e-5)
    assert np.abs(out.double().numpy() - reference).max() < tolerance


def test_affine_keeps_a_blob_in_place() -> None:
    shape = (44, 44)
    at = np.indices(shape)
    blob = np.exp(-((at[0] - 25) ** 2 + (at[1] - 18) ** 2) / 18)
    affine = torch.tensor([[0, -1.2, 0, 30], [0.9, 0, 0, -50], [0, 0, 1, 7], [0, 0, 0, 1]], dtype=torch.float64)
    img = MetaTensor(torch.from_numpy(blob)[None], affine=affine, meta={"name": "kept"})

    def center(out: MetaTensor) -> np.ndarray:
        values = out.as_tensor().numpy()[0]
        rows, columns = np.indices(values.shape)
        return (out.affine.numpy() @ [(values * rows).sum(), (values * columns).sum(), 0, values.sum()]) / values.sum()

    for seed, crop_size in itertools.product(range(6), (None, (40, 42))):
        out = RandSpatial2D(**EVERYTHING, crop_size=crop_size).set_random_state(seed)(img)
        assert not torch.allclose(out.affine, affine, atol=0.1)
        np.testing.assert_allclose(center(out), center(img), atol=0.02)
        assert out.meta["name"] == "kept"
    assert torch.equal(img.affine, affine)
    moved = RandSpatial2D(**EVERYTHING).set_random_state(1)(list_data_collate([img, img]))
    singles = RandSpatial2D(**EVERYTHING).set_random_state(1)
    for out in decollate_batch(moved):
        np.testing.assert_allclose(out.affine, singles(img).affine, atol=1e-12)


def test_all_keys_get_the_same_draw() -> None:
    batch = images(3, 3)
    item = {"image": batch, "gray": batch[:, :1], "label": 1}
    step = RandSpatial2Dd(["image", "gray"], rotation_prob=1).set_random_state(2)
    out = pickle.loads(pickle.dumps(step))(item)
    assert torch.equal(out["image"], RandSpatial2D(rotation_prob=1).set_random_state(2)(batch))
    assert torch.equal(out["gray"], out["image"][:, :1])
    assert item["image"] is batch
    with pytest.raises(ValueError, match=r"one size, got image .*26.*gray .*25"):
        step({"image": batch, "gray": batch[..., 1:]})
    with pytest.raises(TypeError, match="rotation_degrees"):
        RandSpatial2Dd("image", rotation_degrees=3)


def test_parts_are_drawn_independently_within_rates_and_limits() -> None:
    num = 4000
    probs = {"rotate90_prob": 0.3, "rotation_prob": 0.5, "scale_prob": 0.4, "shift_prob": 0.6}
    step = RandSpatial2D(**probs, flip_prob=(0.1, 0.7), rotation_deg=30, shift=(0.2, 0)).set_random_state(0)
    step.randomize(torch.empty(num, 1, 1, 1))
    drawn = np.array(
        [[d.quarters > 0, d.rotation_deg != 0, d.scale != 1, d.shift[0] != 0, *d.flip] for d in step.draws]
    )
    np.testing.assert_allclose(drawn.mean(0), [*probs.values(), 0.1, 0.7], atol=4 * np.sqrt(0.25 / num))
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 4 / np.sqrt(num)
    counts = np.bincount([d.quarters for d in step.draws])[1:]
    np.testing.assert_allclose(counts / num, 0.1, atol=0.02)
    angles = np.array([d.rotation_deg for d in step.draws if d.rotation_deg])
    np.testing.assert_allclose([angles.min(), angles.max(), angles.std()], [-30, 30, 30 / np.sqrt(3)], rtol=0.05)
    scales = np.array([d.scale for d in step.draws if d.scale != 1])
    np.testing.assert_allclose([scales.min(), scales.max(), scales.mean()], [0.9, 1.1, 1], atol=0.01)
    shifts = np.array([d.shift for d in step.draws])
    np.testing.assert_allclose([*shifts.min(0), *shifts.max(0)], [-0.2, 0, 0.2, 0], atol=0.01)
    crops = np.array([d.crop for d in step.draws])
    np.testing.assert_allclose([*crops.mean(0), *crops.std(0)], [0.5, 0.5, *[1 / np.sqrt(12)] * 2], atol=0.02)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"flip_prob": (0, 1.5)}, r"flip_prob must lie in 0..1, got \(0, 1.5\)"),
        ({"rotate90_prob": -1}, "rotate90_prob must lie in 0..1, got -1"),
        ({"rotation_prob": [0.5, 0.5]}, r"rotation_prob must be one number, got \[0.5, 0.5\]"),
        ({"rotation_deg": -10}, "rotation_deg must be 0 or more .* got -10"),
        ({"shift": (0, -1)}, r"shift must be 0 or more .* got \(0, -1\)"),
        ({"scale": (1.1, 0.9)}, r"scale must be \(low, high\), 0 < low <= high, got \[1.1, 0.9\]"),
        ({"crop_size": (5,)}, r"crop_size must be \(H, W\) in pixels, or one number, got \(5,\)"),
        ({"mode": "bicubic"}, "mode must be one of bilinear, nearest, got 'bicubic'"),
        ({"fill": "edge"}, "fill must be one of border, reflection or a value, got 'edge'"),
        ({"fill": None}, "fill must be one of border, reflection or a value, got None"),
    ],
)
def test_bad_arguments(knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"RandSpatial2D: {message}"):
        RandSpatial2D(**knobs)


def test_bad_input() -> None:
    with pytest.raises(
        ValueError, match=r"wanted an image \(C, H, W\) or a batch \(B, C, H, W\), got shape \(21, 26\)"
    ):
        RandSpatial2D()(images())
    with pytest.raises(ValueError, match=r"crop_size \(22, 1\) does not fit in an image of \(21, 26\)"):
        RandSpatial2D(crop_size=(22, 1))(images(1))
    with pytest.raises(ValueError, match=r"rotate90_prob wants square images, got \(21, 26\)"):
        RandSpatial2D(rotate90_prob=0.1)(images(1))
    for knobs in ({}, NOTHING, {**NOTHING, "crop_size": (3, 3)}):
        with pytest.raises(TypeError, match=r"RandSpatial2D: wanted uint8 or floating point .* got torch.int16"):
            RandSpatial2D(**knobs)(images(1).to(torch.int16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu() -> None:
    batch = (images(30, 2, shape=(20, 20)) * 255).to(torch.uint8)
    on_cpu = RandSpatial2D(**EVERYTHING).set_random_state(0)(batch)
    on_gpu = RandSpatial2D(**EVERYTHING).set_random_state(0)(batch.cuda())
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-4, rtol=0)
