from __future__ import annotations

import itertools
import pickle
import sys

import elasticdeform
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from scipy.ndimage import map_coordinates

from monai_pipelines.transforms.ct import grid as grid_module
from monai_pipelines.transforms.ct.spatial import RandSpatial3D, RandSpatial3Dd, SpatialDraw, spline_responses

SHAPE = (14, 17, 11)
NOTHING = {"rotation_prob": 0, "scale_prob": 0, "shift_prob": 0, "flip_prob": 0, "elastic_prob": 0}
EVERYTHING = {"rotation_prob": 1, "scale_prob": 1, "shift_prob": 1, "flip_prob": 0.5, "elastic_prob": 1}


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With numba, in three threads, and without."""
    if request.param == "torch":
        monkeypatch.setattr(grid_module, "_kernels", lambda: None)
    else:
        assert grid_module.kernels_for(torch.zeros(1)) is not None
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


def volumes(*lead: int, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> torch.Tensor:
    """Random values, the outermost voxels 0."""
    values = np.zeros((*lead, *shape), dtype=np.float32)
    inner = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    values[inner] = np.random.default_rng(seed).random(values[inner].shape)
    return torch.from_numpy(values)


def draw(**changes: object) -> SpatialDraw:
    neutral = {
        "rotation_deg": np.zeros(3),
        "scale": 1.0,
        "shift_voxels": np.zeros(3),
        "flip": np.zeros(3, dtype=bool),
        "elastic_voxels": np.zeros((3, 3, 3, 3)),
        "crop": np.zeros(3),
    }
    return SpatialDraw(**{**neutral, **{k: np.array(v) for k, v in changes.items()}})


def apply(img: torch.Tensor, *draws: SpatialDraw, **knobs: object) -> torch.Tensor:
    step = RandSpatial3D(**knobs)
    step.draws = list(draws)
    return step(img, randomize=False)


def _reference_forward(d: SpatialDraw, shape: tuple[int, ...]) -> np.ndarray:
    """Input voxel -> output voxel, composed of one elementary 4x4 matrix after the other."""

    def move(by: np.ndarray) -> np.ndarray:
        m = np.eye(4)
        m[:3, 3] = by
        return m

    matrix = move(-(np.array(shape) - 1) / 2)
    matrix = np.diag([*(-1.0 if f else 1.0 for f in d.flip), 1]) @ matrix
    matrix = np.diag([d.scale] * 3 + [1]) @ matrix
    for axis, (i, j) in enumerate([(1, 2), (2, 0), (0, 1)]):  # X, Y, Z; right-handed
        turn, angle = np.eye(4), np.deg2rad(d.rotation_deg[axis])
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return move((np.array(shape) - 1) / 2 + d.shift_voxels) @ matrix


def _reference_elasticdeform(
    img: torch.Tensor, d: SpatialDraw, mode: str, fill: float, size: tuple[int, ...] | None
) -> np.ndarray:
    """Channel by channel with elasticdeform, then cropped."""
    affine = _reference_forward(d, img.shape[1:])[:3]
    channels = [
        elasticdeform.deform_grid(
            c, d.elastic_voxels, order=int(mode == "bilinear"), mode="constant", cval=fill, affine=affine
        )
        for c in img.double().numpy()
    ]
    a = (
        [0, 0, 0]
        if size is None
        else [int(u * (n - s + 1)) for u, n, s in zip(d.crop, img.shape[1:], size, strict=True)]
    )
    b = img.shape[1:] if size is None else [start + s for start, s in zip(a, size, strict=True)]
    return np.stack(channels)[:, a[0] : b[0], a[1] : b[1], a[2] : b[2]]


def _reference_field(displacement: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Dense displacement: volumes of the coordinates, warped by elasticdeform; NaN outside the volume."""
    coords = [x.astype(float) for x in np.meshgrid(*map(np.arange, shape), indexing="ij")]
    return np.stack(elasticdeform.deform_grid(coords, displacement, order=1, mode="constant", cval=np.nan)) - coords


@pytest.mark.parametrize("points", [(2, 3, 4), (3, 3, 3), (5, 4, 7)])
def test_field_agrees_with_elasticdeform(points: tuple[int, int, int]) -> None:
    displacement = np.random.default_rng(1).normal(0, 2, (3, *points))
    rows = [spline_responses(n, p) for n, p in zip(SHAPE, points, strict=True)]
    field = np.einsum("cijk,xi,yj,zk->cxyz", displacement, *rows)
    reference = _reference_field(displacement, SHAPE)
    inside = np.isfinite(reference)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(field[inside], reference[inside], atol=1e-10)
    at = np.meshgrid(*(np.linspace(0, p - 1, n) for n, p in zip(SHAPE, points, strict=True)), indexing="ij")
    np.testing.assert_allclose(
        field, [map_coordinates(c, at, order=3, mode="mirror") for c in displacement], atol=1e-10
    )


@pytest.mark.parametrize("backend", ["torch", "elasticdeform"])
@pytest.mark.parametrize("parts", list(itertools.product([0, 1], repeat=5)))
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_every_combination_of_parts_agrees_with_elasticdeform(parts: tuple[int, ...], mode: str, backend: str) -> None:
    knobs = dict(zip(EVERYTHING, parts, strict=True))
    for crop_size, fill in [(None, 0.0), ((9, 17, 4), -0.5)]:
        img = torch.where(volumes(2) == 0, fill, volumes(2))
        step = RandSpatial3D(**knobs, crop_size=crop_size, mode=mode, fill=fill, backend=backend)
        out = step.set_random_state(3)(img)
        reference = _reference_elasticdeform(img, step.draws[0], mode, fill, crop_size)
        assert out.shape == reference.shape
        difference = np.abs(out.numpy() - reference)
        if mode == "nearest":  # float32 may round voxels half-way to the other side
            assert (difference > 1e-6).mean() < 2e-3
        else:
            np.testing.assert_allclose(difference, 0, atol=5e-5)


def test_rim_is_the_only_difference_from_elasticdeform() -> None:
    img = volumes(1)[..., 1:-1, 1:-1, 1:-1]  # non-zero up to the border
    shape = img.shape[1:]
    d = draw(rotation_deg=[8, -5, 10], scale=0.8, shift_voxels=[1.3, -2.2, 0.4])
    difference = np.abs(apply(img, d).numpy() - _reference_elasticdeform(img, d, "bilinear", 0.0, None))[0]
    at = np.einsum(
        "ab,bxyz->axyz",
        np.linalg.inv(_reference_forward(d, shape)),
        np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)]),
    )[:3]
    beyond = np.maximum(-at, at - (np.array(shape) - 1)[:, None, None, None]).max(0)
    rim = (beyond > -1e-6) & (beyond < 1)
    assert difference[~rim].max() < 5e-5
    assert difference[rim].max() > 0.05


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_turn_by_90_degrees_is_exact(mode: str) -> None:
    cube = volumes(1, shape=(9, 9, 9))
    for axis, dims in enumerate([(2, 3), (3, 1), (1, 2)]):
        turned = apply(cube, draw(rotation_deg=np.eye(3)[axis] * 90), mode=mode)
        torch.testing.assert_close(turned, torch.rot90(cube, 1, dims), atol=1e-5, rtol=0)


def test_whole_shift_flip_and_scale_are_exact() -> None:
    img = volumes(1)
    shifted = apply(img, draw(shift_voxels=[2, -3, 0]))
    torch.testing.assert_close(shifted[:, 2:, :-3], img[:, :-2, 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[:, :2], torch.zeros_like(img[:, :2]), atol=1e-5, rtol=0)
    for axes in [(0,), (1,), (2,), (0, 2), (0, 1, 2)]:
        flipped = apply(img, draw(flip=[a in axes for a in range(3)]))
        torch.testing.assert_close(flipped, img.flip([a + 1 for a in axes]), atol=1e-5, rtol=0)
    odd = volumes(1, shape=(9, 9, 9))
    torch.testing.assert_close(apply(odd, draw(scale=2.0))[:, ::2, ::2, ::2], odd[:, 2:7, 2:7, 2:7], atol=1e-5, rtol=0)


def test_hand_worked_values() -> None:
    line = torch.tensor([1.0, 2.0, 4.0, 8.0]).reshape(1, 4, 1, 1)
    half = apply(line, draw(shift_voxels=[0.5, 0, 0]), fill=3.0).flatten()
    torch.testing.assert_close(half, torch.tensor([2.0, 1.5, 3.0, 6.0]))  # the first between 3 (outside) and 1
    # one displacement of all control points: each voxel shows the input 1.25 voxels further
    further = apply(line, draw(elastic_voxels=np.stack([np.full((3, 3, 3), 1.25), *np.zeros((2, 3, 3, 3))]))).flatten()
    torch.testing.assert_close(further, torch.tensor([2.5, 5.0, 6.0, 0.0]))
    assert draw(crop=[0, 0.5, 0.999]).start((10, 10, 10), (7, 7, 7)).tolist() == [0, 2, 3]


def test_batch_equals_singles() -> None:
    batch = volumes(5, 2)
    for knobs in [{}, {"crop_size": (8, 8, 8)}, EVERYTHING, {**NOTHING, "crop_size": (8, 8, 8)}]:
        together = RandSpatial3D(**knobs).set_random_state(1)(batch)
        step = RandSpatial3D(**knobs).set_random_state(1)
        torch.testing.assert_close(together, torch.stack([step(v) for v in batch]), atol=1e-6, rtol=0)


def test_nothing_drawn_is_the_identity() -> None:
    batch = volumes(3, 1)
    assert RandSpatial3D(**NOTHING)(batch) is batch
    zero = {"rotation_deg": 0, "shift_voxels": 0, "elastic_std_voxels": 0, "scale": (1, 1)}
    assert RandSpatial3D(**zero, **{**EVERYTHING, "flip_prob": 0})(batch) is batch
    shift = draw(shift_voxels=[1, 0, 0])
    mixed = apply(batch, draw(), shift, draw())
    assert torch.equal(mixed[[0, 2]], batch[[0, 2]])
    assert not torch.equal(mixed[1], batch[1])
    cropped = apply(batch, draw(crop=[0, 0.5, 0.99]), shift, draw(), crop_size=(4, 5, 6))
    assert torch.equal(cropped[0], batch[0, :, :4, 6:11, 5:])


@pytest.mark.parametrize("backend", ["torch", "elasticdeform"])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int16, torch.uint8]
)
def test_dtype_is_kept(dtype: torch.dtype, backend: str) -> None:
    img = (volumes(1) * 200).to(dtype)
    d = draw(rotation_deg=[5, 6, 7], elastic_voxels=np.random.default_rng(0).normal(0, 1, (3, 3, 3, 3)))
    out = apply(img, d, backend=backend)
    assert out.dtype == dtype
    reference = _reference_elasticdeform(img, d, "bilinear", 0.0, None)
    tolerance = {torch.float64: 1e-10, torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 1}.get(dtype, 0.51)
    assert np.abs(out.double().numpy() - reference).max() < tolerance


def test_autocast_makes_no_difference() -> None:
    expected = RandSpatial3D(**EVERYTHING).set_random_state(5)(volumes(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(RandSpatial3D(**EVERYTHING).set_random_state(5)(volumes(1)), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5), (5, 1, 1), (1, 7, 1), (3, 1, 4)])
def test_thin_volumes_and_strided_memory(shape: tuple[int, int, int]) -> None:
    img = torch.from_numpy(np.random.default_rng(0).random((2, 3, *shape[::-1]), dtype=np.float32)).transpose(2, 4)
    out = RandSpatial3D(**EVERYTHING).set_random_state(1)(img)
    torch.testing.assert_close(out, RandSpatial3D(**EVERYTHING).set_random_state(1)(img.contiguous()))
    assert out.shape == img.shape


def test_nearest_keeps_labels() -> None:
    labels = (volumes(1) * 5).to(torch.uint8)
    out = RandSpatial3D(**EVERYTHING, mode="nearest").set_random_state(0)(labels)
    assert set(out.unique().tolist()) <= set(labels.unique().tolist())


def test_affine_keeps_a_blob_in_place() -> None:
    shape = (40, 36, 44)
    at = np.meshgrid(*map(np.arange, shape), indexing="ij")
    blob = np.exp(-sum((x - c) ** 2 for x, c in zip(at, (22, 15, 25), strict=True)) / 18)
    affine = torch.tensor([[0, -1.2, 0.1, 30], [0.9, 0, 0, -50], [0, 0.2, 1.5, 7], [0, 0, 0, 1]], dtype=torch.float64)
    img = MetaTensor(torch.from_numpy(blob)[None], affine=affine, meta={"name": "kept"})

    def center_mm(out: MetaTensor) -> np.ndarray:
        values = out.as_tensor().numpy()[0]
        voxel = [(values * x).sum() / values.sum() for x in np.meshgrid(*map(np.arange, values.shape), indexing="ij")]
        return (out.affine.numpy() @ [*voxel, 1])[:3]

    knobs = {**EVERYTHING, "elastic_prob": 0}
    for seed, crop_size in itertools.product(range(6), (None, (38, 34, 42))):
        out = RandSpatial3D(**knobs, crop_size=crop_size).set_random_state(seed)(img)
        assert isinstance(out, MetaTensor)
        assert not torch.allclose(out.affine, affine, atol=0.1)
        np.testing.assert_allclose(center_mm(out), center_mm(img), atol=0.02)
        assert out.meta["name"] == "kept"
    assert torch.equal(img.affine, affine)

    step = RandSpatial3D(**knobs).set_random_state(1)
    moved = step(list_data_collate([img, img]))
    singles = RandSpatial3D(**knobs).set_random_state(1)
    for out in decollate_batch(moved):
        np.testing.assert_allclose(out.affine, singles(img).affine, atol=1e-12)
        np.testing.assert_allclose(center_mm(out), center_mm(img), atol=0.02)


def test_all_keys_get_the_same_draw() -> None:
    img = volumes(3, 1)
    item = {"image": img, "mask": (img > 0.5).to(torch.uint8), "label": 1}
    step = RandSpatial3Dd(["image", "mask"], mode=["bilinear", "nearest"], **EVERYTHING).set_random_state(2)
    out = pickle.loads(pickle.dumps(step))(item)
    alone = RandSpatial3D(**EVERYTHING).set_random_state(2)
    assert torch.equal(out["image"], alone(img))
    assert torch.equal(out["mask"], apply(item["mask"], *alone.draws, mode="nearest"))
    assert out["label"] == 1
    assert item["image"] is img
    with pytest.raises(ValueError, match=r"one size, got image .*14.*mask .*13"):
        step({"image": img, "mask": img[:, :, 1:]})
    with pytest.raises(KeyError, match="mask"):
        step({"image": img})
    assert set(RandSpatial3Dd(["image", "mask"], allow_missing_keys=True)({"image": img})) == {"image"}
    with pytest.raises(TypeError, match="rotation_degrees"):
        RandSpatial3Dd("image", rotation_degrees=3)


def test_parts_are_drawn_independently_within_rates_and_limits() -> None:
    num = 4000
    probs = {"rotation_prob": 0.5, "scale_prob": 0.4, "shift_prob": 0.6, "elastic_prob": 0.2}
    step = RandSpatial3D(**probs, flip_prob=(0.1, 0, 0.7), rotation_deg=(10, 0, 30)).set_random_state(0)
    step.randomize(torch.empty(num, 1, 1, 1, 1))
    draws = step.draws
    drawn = np.array(
        [[d.rotation_deg.any(), d.scale != 1, d.shift_voxels.any(), d.elastic_voxels.any()] for d in draws]
    )
    tolerance = 4 * np.sqrt(0.25 / num)
    np.testing.assert_allclose(drawn.mean(0), list(probs.values()), atol=tolerance)
    np.testing.assert_allclose(np.mean([d.flip for d in draws], axis=0), [0.1, 0, 0.7], atol=tolerance)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 4 / np.sqrt(num)
    rotations = np.array([d.rotation_deg for d in draws if d.rotation_deg.any()])
    np.testing.assert_allclose(np.abs(rotations).max(0), [10, 0, 30], rtol=0.01)
    np.testing.assert_allclose(rotations.std(0), np.array([10, 0, 30]) / np.sqrt(3), rtol=0.05)
    shifts = np.array([d.shift_voxels for d in draws if d.shift_voxels.any()])
    np.testing.assert_allclose([shifts.min(), shifts.max()], [-5, 5], rtol=0.01)
    scales = np.array([d.scale for d in draws if d.scale != 1])
    np.testing.assert_allclose([scales.min(), scales.max(), scales.mean()], [0.9, 1.1, 1.0], atol=0.01)
    assert np.std([d.elastic_voxels for d in draws if d.elastic_voxels.any()]) == pytest.approx(3, rel=0.02)
    starts = np.array([d.start((10, 10, 10), (7, 8, 10)) for d in draws])
    for axis, places in enumerate([4, 3, 1]):
        assert np.unique(starts[:, axis]).tolist() == list(range(places))
        np.testing.assert_allclose(np.bincount(starts[:, axis]) / num, 1 / places, atol=tolerance)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rotation_prob": 1.5}, "rotation_prob must lie in 0..1, got 1.5"),
        ({"flip_prob": (0, -1, 0)}, "flip_prob must lie"),
        ({"elastic_prob": float("nan")}, "elastic_prob must lie"),
        ({"rotation_deg": -10}, "rotation_deg must be 0 or more"),
        ({"shift_voxels": (1, 2)}, "length 3"),
        ({"elastic_std_voxels": -1}, "elastic_std_voxels must be 0 or more"),
        ({"scale": (1.1, 0.9)}, "scale must be"),
        ({"scale": (0, 1)}, "scale must be"),
        ({"elastic_points": 1}, "elastic_points must be 2 or more"),
        ({"crop_size": (8, 8)}, r"crop_size must be \(X, Y, Z\) in voxels"),
        ({"crop_size": (8, 0, 8)}, r"crop_size must be \(X, Y, Z\) in voxels"),
        ({"mode": "cubic"}, "mode must be one of bilinear, nearest, got 'cubic'"),
        ({"backend": "scipy"}, "backend must be one of torch, elasticdeform, got 'scipy'"),
    ],
)
def test_bad_arguments(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandSpatial3D(**knobs)


def test_bad_input_and_missing_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"wanted a volume \(C, X, Y, Z\) .* got shape \(14, 17, 11\)"):
        RandSpatial3D()(volumes())
    with pytest.raises(ValueError, match=r"crop_size \(15, 1, 1\) does not fit in a volume of \(14, 17, 11\)"):
        RandSpatial3D(crop_size=(15, 1, 1))(volumes(1))
    monkeypatch.setitem(sys.modules, "elasticdeform", None)
    message = (
        r'"elasticdeform" wants the package elasticdeform: pip install --no-binary elasticdeform '
        r'"monai_pipelines\[elastic\]" \(needs a C compiler\), or use backend "torch"'
    )
    with pytest.raises(ImportError, match=message):
        apply(volumes(1), draw(scale=1.1), backend="elasticdeform")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu() -> None:
    batch = volumes(3, 2)
    on_cpu = RandSpatial3D(**EVERYTHING).set_random_state(0)(batch)
    on_gpu = RandSpatial3D(**EVERYTHING).set_random_state(0)(batch.cuda())
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-4, rtol=0)
