"""The chain slide_tiles: from a file to a bag, in two parts, and its picture."""

from __future__ import annotations

import pickle
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor

from monai_pipelines import load_chain
from monai_pipelines.chains import Chain
from monai_pipelines.errors import ScanError
from monai_pipelines.report.chains import draw_chain
from monai_pipelines.slides import Slide, Tiles
from monai_pipelines.transforms import NormalizeStain
from tests.new_process import CONTEXT
from tests.transforms.slide.slide_files import disc, pyramid, stained, write_slide

SHAPE = (1400, 1800)  # 0.7 x 0.9 mm
TISSUE = disc(SHAPE, (600, 800), 450)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    full = stained(TISSUE)
    return write_slide(tmp_path_factory.mktemp("slides") / "slide.tif", pyramid(full, (1, 4)))


def _bag(chain: Chain, path: str) -> tuple[torch.Tensor, np.ndarray]:
    bag = chain(path)
    return bag.as_tensor(), bag.meta["coords"]


def test_bag_of_a_slide(path: str) -> None:
    chain = load_chain("slide_tiles", tile_px=128)
    assert chain.step_names == ("slide", "tissue", "grid", "sample", "tiles", "stain")
    bag = chain(path)
    assert isinstance(bag, MetaTensor)
    assert bag.dtype == torch.uint8
    coords = bag.meta["coords"]
    assert bag.shape == (len(coords), 3, 128, 128)
    for x in range(0, 1800 - 127, 128):
        for y in range(0, 1400 - 127, 128):
            share = TISSUE[y : y + 128, x : x + 128].mean()
            if abs(share - 0.5) > 0.1:
                assert ([x, y] in coords.tolist()) == (share > 0.5)
    full = stained(TISSUE)
    for (x, y), tile in zip(coords, bag.numpy(), strict=True):
        assert np.array_equal(tile.transpose(1, 2, 0), full[y : y + 128, x : x + 128])
    again = chain(path)
    assert np.array_equal(again.meta["coords"], coords)
    assert torch.equal(again.as_tensor(), bag.as_tensor())


def test_plan_once_and_read_later(path: str) -> None:
    chain = load_chain("slide_tiles", tile_px=128, num_tiles=6)
    item = {"image": path, "label": 1, "mpp": ""}
    plan = chain.until("sample")(item)
    assert item == {"image": path, "label": 1, "mpp": ""}
    assert isinstance(plan["image"], Tiles)
    assert plan["tissue"].meta["thumbnail"].shape == (*plan["tissue"].shape[1:], 3)
    assert len(pickle.dumps(plan["image"])) < 5000
    everything = chain.since("tiles")(plan["image"])
    assert len(everything) == len(plan["image"]) > 20
    drawn = chain.since("sample").set_random_state(0)
    first, second = drawn(plan)["image"], drawn(plan)["image"]
    assert len(first) == len(second) == 6
    assert first.meta["coords"].tolist() != second.meta["coords"].tolist()
    again = load_chain("slide_tiles", tile_px=128, num_tiles=6).since("sample").set_random_state(0)
    assert np.array_equal(again(plan)["image"].meta["coords"], first.meta["coords"])
    where = {tuple(c): number for number, c in enumerate(plan["image"].coords.tolist())}
    for tile, corner in zip(first, first.meta["coords"].tolist(), strict=True):
        assert torch.equal(tile.as_tensor(), everything[where[tuple(corner)]].as_tensor())


def test_stain_is_normalized_tile_by_tile(path: str) -> None:
    plain = load_chain("slide_tiles", tile_px=128)(path)
    changed = load_chain("slide_tiles", tile_px=128, stain="macenko")(path)
    assert changed.meta["coords"].tolist() == plain.meta["coords"].tolist()
    assert not torch.equal(changed.as_tensor(), plain.as_tensor())
    assert torch.equal(changed[3].as_tensor(), NormalizeStain()(plain[3].as_tensor()))
    assert changed.as_tensor().is_contiguous(memory_format=torch.channels_last)


def test_new_process_gives_the_same(path: str) -> None:
    chain = load_chain("slide_tiles", mpp=1, tile_px=64)
    here = _bag(chain, path)
    with CONTEXT.Pool(1) as pool:
        there = pool.apply(_bag, (chain, path))
    assert torch.equal(there[0], here[0])
    assert np.array_equal(there[1], here[1])


def test_errors_reach_the_caller_unchanged(path: str, tmp_path: Path) -> None:
    chain = load_chain("slide_tiles")
    unknown = write_slide(tmp_path / "unknown.tif", [stained(TISSUE)], None)
    empty = write_slide(tmp_path / "empty.tif", [stained(np.zeros((300, 400), bool))])
    (tmp_path / "text.svs").write_text("no slide")
    for file, message in [
        (unknown, "`slide_mpp`"),
        (empty, "no tissue found"),
        (str(tmp_path / "text.svs"), r"text\.svs"),
    ]:
        with pytest.raises(ScanError, match=message) as error:
            chain({"image": file})
        assert error.value.path == file
    assert len(chain({"image": unknown, "mpp": "0.5"})["image"]) > 0
    assert len(load_chain("slide_tiles", slide_mpp=0.5)(unknown)) > 0


def test_real_slides(shared_data: Path) -> None:
    wsi = shared_data / "wsi"
    bag = load_chain("slide_tiles")(wsi / "CMU-1-Small-Region.svs")
    assert 30 <= len(bag) <= 45
    assert bag.meta["mpp"] == pytest.approx(0.499)
    assert (bag.float().mean(dim=(1, 2, 3)) < 225).all(), "no tile of glass"
    with pytest.raises(ScanError, match="`slide_mpp` of the chain"):
        load_chain("slide_tiles")(wsi / "TCGA-CR-7395-01A-01-TS1.svs")
    few = load_chain("slide_tiles", slide_mpp=0.25, num_tiles=3)(wsi / "TCGA-CR-7395-01A-01-TS1.svs")
    assert few.shape == (3, 3, 256, 256)
    assert few.meta["level0_px"] == 512
    for unusable in ("pathml_small_dicom.dcm", "test3-DAPI-2-_387_.ndpi"):
        with pytest.raises(ScanError):
            load_chain("slide_tiles")(wsi / unusable)


def test_picture(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slide, tissue outline, a square for each tile, and at most 25 tiles read."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: (figures.append(self), save(self, *args)))
    read: list[int] = []
    read_tiles = Slide.read_tiles
    monkeypatch.setattr(
        Slide, "read_tiles", lambda self, coords, *args: (read.append(len(coords)), read_tiles(self, coords, *args))[1]
    )
    draw_chain("slide_tiles", path, tmp_path / "chain.png", tile_px=128, num_tiles=30)
    assert matplotlib.image.imread(tmp_path / "chain.png").shape[1] > 6 * 250
    assert read == [25]
    slide, tissue, grid, sample, tiles, stain = figures[0].axes
    assert slide.get_title() == "slide\n1800 x 1400 px\n0.5 um/px"
    assert "mm2" in tissue.get_title()
    area_mm2 = float(tissue.get_title().split("\n")[1].split()[0])
    assert area_mm2 == pytest.approx(TISSUE.sum() * 0.0005**2, rel=0.03)
    num = len(load_chain("slide_tiles", tile_px=128).until("tiles")(path))
    assert grid.get_title().startswith(f"grid\n{num} tiles of 128 px")
    assert [len(axis.collections[0].get_paths()) for axis in (grid, sample)] == [num, 30]
    corners = np.array([p.vertices.min(axis=0) for p in grid.collections[0].get_paths()])
    plan = load_chain("slide_tiles", tile_px=128).until("tiles")(path)
    np.testing.assert_allclose(corners, plan.coords / 16 - 0.5)
    assert tiles.images[0].get_array().shape == stain.images[0].get_array().shape == (5 * 128, 5 * 128, 3)
    draw_chain("slide_tiles", path, tmp_path / "few.png", tile_px=256, num_tiles=3)
    sheet = figures[1].axes[4].images[0].get_array()
    assert sheet.shape == (512, 512, 3)
    assert (sheet[256:, 256:] == 255).all()
