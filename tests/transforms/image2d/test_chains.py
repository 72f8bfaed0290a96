"""The 2D chains on files of every type, against an independent normalization."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from PIL import Image

from monai_pipelines import load_chain
from tests.dicom_files import write_image

CHAINS = {"image2d": 3, "xray": 1, "fundus": 3, "histology_tile": 3}  # channels
SHORTCUTS = ["mean color", "color histogram", "size and file type"]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    """A bright disc in the dark, 90 x 120."""
    rows, columns = np.indices((90, 120))
    gray = np.where((rows - 44.5) ** 2 + (columns - 59.5) ** 2 < 40**2, 200, 0)
    pixels = np.stack([gray, gray // 2, gray // 4], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "disc.png")
    return tmp_path / "disc.png"


@pytest.mark.parametrize("name", CHAINS)
def test_result(name: str, disc: Path) -> None:
    chain = load_chain(name, size=[64, 48])
    out = chain({"image": str(disc), "label": 1})
    assert (out["image"].shape, out["image"].dtype) == ((CHAINS[name], 64, 48), torch.float32)
    assert list(out["shortcut"]) == SHORTCUTS
    assert out["shortcut"]["size and file type"].tolist() == pytest.approx([np.log2(90), np.log2(120), 1, 0, 0, 0, 0])
    assert out["label"] == 1
    assert torch.equal(chain(str(disc)).as_tensor(), out["image"].as_tensor())
    assert torch.equal(pickle.loads(pickle.dumps(chain))(str(disc)).as_tensor(), out["image"].as_tensor())
    assert not any("disc" in str(value) for value in out["image"].meta.values())


@pytest.mark.parametrize("name", CHAINS)
def test_cached_part_and_remainder_equal_the_whole(name: str, disc: Path) -> None:
    chain = load_chain(name, size=[32, 32])
    assert chain.step_names[-1] == "normalize"
    prepared = chain.until("normalize")({"image": str(disc)})["image"]
    batch = {"image": torch.stack([prepared.as_tensor()] * 2)}
    out = chain.since("normalize")(batch)["image"]
    torch.testing.assert_close(out[1], chain(str(disc)).as_tensor(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CHAINS)
def test_augmentation_comes_before_normalize(name: str, disc: Path) -> None:
    chain, augmentation = load_chain(name, size=[32, 32]), load_chain("augment_image2d")
    train = Compose([chain.until("normalize"), augmentation, chain.since("normalize")])
    out = train.set_random_state(0)({"image": str(disc)})["image"]
    assert (out.shape, out.dtype) == ((CHAINS[name], 32, 32), torch.float32)
    assert not torch.equal(out.as_tensor(), chain(str(disc)).as_tensor())
    with pytest.raises(RuntimeError) as error:
        Compose([chain, load_chain("augment_image2d", brightness_prob=1)])({"image": str(disc)})
    assert "augmentation comes before `normalize`" in str(error.getrepr(chain=True))


def test_image2d_by_hand(disc: Path) -> None:
    out = load_chain("image2d", size=[90, 120])(str(disc)).numpy()
    expected = (np.asarray(Image.open(disc)) / 255 - MEAN) / STD
    np.testing.assert_allclose(out, expected.transpose(2, 0, 1), atol=1e-5)


def test_xray_keeps_its_aspect_ratio(tmp_path: Path) -> None:
    """12 bits, inverted, twice as wide as high: black bars above and below."""
    stored = 4095 - np.tile(np.arange(0, 4000, 40, dtype=np.uint16), (50, 1))
    path = write_image(tmp_path / "a.dcm", stored, 12, PhotometricInterpretation="MONOCHROME1")
    out = load_chain("xray", size=[100, 100], mean=0, std=1)(path)[0].numpy()
    np.testing.assert_allclose(out[25:75], np.tile(np.arange(100) / 99, (50, 1)), atol=1e-5)
    assert not out[:25].any()
    assert not out[75:].any()


def test_fundus_is_centered(disc: Path) -> None:
    out = load_chain("fundus", size=[80, 80], margin=0, mean=0, std=1)(str(disc))[0].numpy()
    rows, columns = np.indices((80, 80))
    inside = (rows - 39.5) ** 2 + (columns - 39.5) ** 2 < 38**2
    assert (np.abs(out[inside] - 200 / 255) < 0.02).all()


def test_stain_is_a_knob(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stains = np.exp(-rng.gamma(2, 0.4, (60, 60, 2)) @ np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]]))
    Image.fromarray((240 * stains).astype(np.uint8)).save(tmp_path / "tile.png")
    plain, normalized = (load_chain("histology_tile", size=[60, 60], stain=s) for s in ("none", "macenko"))
    raw = (np.asarray(Image.open(tmp_path / "tile.png")) / 255 - MEAN) / STD
    np.testing.assert_allclose(plain(tmp_path / "tile.png").numpy(), raw.transpose(2, 0, 1), atol=1e-5)
    assert (normalized(tmp_path / "tile.png") - plain(tmp_path / "tile.png")).abs().max() > 0.1
    assert plain.fingerprint() != normalized.fingerprint()


ODD: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "cmyk.jpg": (Image.new("CMYK", (40, 30), (0, 0, 0, 155)), {"quality": 98}),
    "palette.png": (Image.new("P", (40, 30), 0), {}),
    "alpha.png": (Image.new("RGBA", (40, 30), (0, 0, 0, 155)), {}),
    "bits.png": (Image.new("1", (40, 30), 1), {}),
    "gray.jpg": (Image.new("L", (40, 30), 100), {"quality": 98}),
    "gray_alpha.png": (Image.new("LA", (40, 30), (100, 255)), {}),
    "deep.png": (Image.new("I;16", (40, 30), 100 * 257), {}),
    "deep.tif": (Image.new("I;16", (40, 30), 100 * 257), {}),
}


@pytest.mark.parametrize("file", ODD)
@pytest.mark.parametrize("name", ["image2d", "xray", "histology_tile"])
def test_odd_files(name: str, file: str, tmp_path: Path) -> None:
    image, options = ODD[file]
    if image.mode == "P":
        image.putpalette([100, 100, 100])
    image.save(tmp_path / file, **options)
    out = load_chain(name, size=[30, 40], mean=0, std=1)(str(tmp_path / file))
    assert out.shape == (CHAINS[name], 30, 40)
    assert (255 * out - (255 if file == "bits.png" else 100)).abs().max() < 2.1
