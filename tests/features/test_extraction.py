"""Features of slides: correct, and every bad slide is listed."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from monai_pipelines import load_chain
from monai_pipelines.data import feature_file, find_slides
from monai_pipelines.features import extract_features, read_features
from monai_pipelines.features import extraction as features
from monai_pipelines.networks import TileBackbone
from monai_pipelines.networks.backbone import description_hash
from monai_pipelines.slides import open_slide
from tests.features.small_slides import (
    NUM_TILES,
    TILE_PX,
    datalist,
    extract,
    file_times,
    listed,
    names,
    small_backbone,
    small_chain,
    small_slide,
    spoil,
)

Item = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


def _reference(path: str, coords: np.ndarray, backbone: TileBackbone) -> np.ndarray:
    """Tile by tile in float32, from the slide's level 0."""
    features = []
    for x, y in coords:
        tile = open_slide(path).read_region(int(x), int(y), TILE_PX, TILE_PX)
        with torch.no_grad():
            features.append(backbone.eval()(torch.from_numpy(tile.copy()).permute(2, 0, 1)[None]).numpy()[0])
    return np.array(features)


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    return datalist(tmp_path / "slides", 3)


# ---- what is in a file


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [7, 128])
def test_features_are_those_of_the_tiles(items: list[Item], tmp_path: Path, num_workers: int, batch_size: int) -> None:
    backbone = small_backbone()
    assert extract(items, tmp_path / "f", num_workers=num_workers, batch_size=batch_size) == ["done"] * 3
    for item in items:
        bag = read_features(tmp_path / "f" / f"{Path(item['name']).stem}.h5")
        assert bag.coords is not None
        assert len(bag.features) == NUM_TILES
        assert bag.coords[[0, 1, -1]].tolist() == [[32, 32], [64, 32], [192, 128]]
        np.testing.assert_allclose(bag.features, _reference(item["image"], bag.coords, backbone), atol=1e-5)


def test_content_of_a_file(tmp_path: Path) -> None:
    chain, backbone = small_chain(mpp=1.0), small_backbone()
    item = {"image": str(small_slide(tmp_path / "site" / "a.b.tif")), "name": "site/a.b.tif"}
    extract([item], tmp_path / "f", chain=chain, dtype="float16")
    file = feature_file(tmp_path / "f", item["name"])
    bag = read_features(file)
    assert file == tmp_path / "f" / "site" / "a.b.h5"
    assert (bag.level0_px, bag.tile_px, bag.mpp, bag.slide_mpp) == (2 * TILE_PX, TILE_PX, 1.0, 0.5)
    assert (bag.slide_size, bag.downsample) == ((256, 192), 4.0)
    assert bag.thumbnail is not None
    assert bag.tissue is not None
    assert (bag.thumbnail.shape, bag.thumbnail.dtype, bag.tissue.shape) == ((48, 64, 3), np.uint8, (48, 64))
    assert bag.tissue[12:36, 12:52].all(), "the mask lies on the tissue"
    assert bag.features.dtype == np.float32
    with h5py.File(file) as opened:
        assert opened["features"].dtype == np.float16
        assert opened["coords"].dtype == np.int64
        assert json.loads(opened.attrs["chain"]) == chain.describe()
        assert opened.attrs["chain_fingerprint"] == chain.fingerprint()
        assert opened.attrs["backbone_fingerprint"] == description_hash(backbone.describe())
        assert json.loads(opened.attrs["backbone"]) == backbone.describe()
        assert json.loads(opened.attrs["versions"])["torch"] == torch.__version__
        # for CLAM's heatmaps: side of a tile on its level, and pixels of level 0 per pixel of that level
        attributes = opened["coords"].attrs
        assert attributes["patch_size"] * attributes["downsample"][0] == bag.level0_px
        assert attributes["patch_size_level0"] == bag.level0_px
        assert attributes["patch_level"] == 0
        assert "a.b" not in str(dict(attributes)), "a slide's name may be a patient's"


def test_random_tiles_do_not_depend_on_workers(items: list[Item], tmp_path: Path) -> None:
    for num_workers in (0, 2):
        extract(items, tmp_path / str(num_workers), chain=small_chain(num_tiles=5), num_workers=num_workers)
    for item in items:
        one, two = (read_features(feature_file(tmp_path / str(n), item["name"])) for n in (0, 2))
        np.testing.assert_array_equal(one.coords, two.coords)
    assert one.coords is not None
    assert len(one.coords) == 5


# ---- bad slides


KINDS = (
    "missing",
    "empty",
    "text",
    "truncated",
    "no tissue",
    "mpp of 1e-4",
    "smaller than a tile",
    "corrupt tile",
)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_slides_are_listed_and_the_others_done(tmp_path: Path, num_workers: int) -> None:
    items, folder = datalist(tmp_path / "slides", 10), tmp_path / "f"
    bad = dict(zip(range(1, 10), KINDS, strict=False))
    for number, kind in bad.items():
        spoil(kind, Path(items[number]["image"]))
    wanted = ["skipped" if number in bad else "done" for number in range(10)]
    assert extract(items, folder, num_workers=num_workers, batch_size=2) == wanted
    assert names(folder) == {"s0.h5", "s9.h5", "features.csv"}
    rows = listed(folder)
    assert [row["status"] for row in rows] == wanted
    assert all((row["reason"] != "") == (row["status"] == "skipped") for row in rows)
    for number in bad:
        small_slide(Path(items[number]["image"]), number)
    assert extract(items, folder) == ["kept" if w == "done" else "done" for w in wanted]


@pytest.mark.slow
def test_thirty_bad_among_three_hundred(tmp_path: Path) -> None:
    items, folder = datalist(tmp_path / "slides", 300), tmp_path / "f"
    for number in range(30):
        spoil(KINDS[number % len(KINDS)], Path(items[number * 10]["image"]))
    wanted = ["done" if number % 10 else "skipped" for number in range(300)]
    assert extract(items, folder, num_workers=2) == wanted
    made = file_times(folder)
    assert len(made) == 270
    assert extract(items, folder, num_workers=2) == ["kept" if w == "done" else w for w in wanted]
    assert file_times(folder) == made


class _Broken(nn.Module):
    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return tiles.flatten(1)[:, :3] * torch.nan


def test_nan_features_are_not_a_bad_slide(items: list[Item], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"s0\.h5: features are NaN"):
        extract(items, tmp_path / "f", backbone=TileBackbone(_Broken(), tile_px=TILE_PX))
    assert [row["status"] for row in listed(tmp_path / "f")] == ["missing"] * 3
    assert not list(tmp_path.glob("f/*.h5*"))


def _fails_for_second(load: Any, data: Item) -> Item:
    if str(data["image"]).endswith("s1.tif"):
        raise ZeroDivisionError("no reason")
    return load(data)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_whatever_a_step_raises_is_the_slides_reason(items: list[Item], tmp_path: Path, num_workers: int) -> None:
    chain = small_chain()
    chain.transforms = (partial(_fails_for_second, chain.transforms[0]), *chain.transforms[1:])
    assert extract(items, tmp_path / "f", chain=chain, num_workers=num_workers) == ["done", "skipped", "done"]
    assert [row["reason"] for row in listed(tmp_path / "f")] == ["", "ZeroDivisionError", ""]


def _crashes_for_second(load: Any, data: Item) -> Item:
    if str(data["image"]).endswith("s1.tif"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return load(data)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_crash_of_a_worker_is_the_slides_reason(items: list[Item], tmp_path: Path, num_workers: int) -> None:
    wanted = extract(items, tmp_path / "whole")
    chain = small_chain()
    chain.transforms = (partial(_crashes_for_second, chain.transforms[0]), *chain.transforms[1:])
    assert extract(items, tmp_path / "f", chain=chain, num_workers=num_workers) == ["done", "skipped", "done"]
    reason = "reading it crashes the process; convert or export it again"
    assert [row["reason"] for row in listed(tmp_path / "f")] == ["", reason, ""]
    assert wanted == ["done"] * 3
    for name in ("s0.h5", "s2.h5"):
        again, whole = (read_features(tmp_path / folder / name).features for folder in ("f", "whole"))
        assert np.array_equal(again, whole)


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"precision": "fp8"}, {"batch_size": 0}])
def test_wrong_arguments(items: list[Item], tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        extract(items, tmp_path / "f", **wrong)
    assert not (tmp_path / "f").exists()


def test_real_slides(shared_data: Path, tmp_path: Path) -> None:
    rows = extract_features(find_slides(shared_data / "wsi"), tmp_path, load_chain("slide_tiles"), small_backbone())
    row = {Path(row["name"]).name: row for row in rows}
    assert row["CMU-1-Small-Region.svs"]["status"] == "done"
    bag = read_features(tmp_path / "CMU-1-Small-Region.h5")
    assert bag.level0_px == 256, "0.499 um per pixel count as 0.5"
    assert bag.coords is not None
    assert len(bag.coords) == len(bag.features) > 20
    assert "slide_mpp" in row["TCGA-CR-7395-01A-01-TS1.svs"]["reason"]
    assert "fluorescence" in row["test3-DAPI-2-_387_.ndpi"]["reason"]
    assert row["pathml_small_HE_levels.tiff"]["status"] == "skipped"


# ---- the backbone of the command line


def test_random_features_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items, backbone = datalist(tmp_path / "slides", 1), small_backbone()
    message = "small: no weights given; features are random unless it is pretrained"
    features.extract_features(items, tmp_path / "f", small_chain(), backbone)
    assert [record.getMessage() for record in caplog.records] == [message]
    caplog.clear()
    backbone.weights = tmp_path / "best.pt"
    features.extract_features(items, tmp_path / "g", small_chain(), backbone)
    assert not caplog.text


def test_named_backbone_and_its_weights(tmp_path: Path) -> None:
    random = features.read_backbone("resnet18")
    assert random.describe() == features.read_backbone("resnet18").describe()
    weights = {name: value + 1 for name, value in random.network.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "best.pt")
    loaded = features.read_backbone("resnet18", tmp_path / "best.pt")
    assert all(torch.equal(value, weights[name]) for name, value in loaded.network.state_dict().items())


def test_backbone_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "network.yaml"
    file.write_text(
        "side: 64\nbackbone:\n  _target_: monai_pipelines.networks.TileBackbone\n  network: "
        "{_target_: monai.networks.nets.Regressor, in_shape: [3, '@side', '@side'], out_shape: 5, "
        "channels: [4], strides: [2]}\n  tile_px: '@side'\n  name: mine\n"
    )
    assert features.read_backbone(file).describe()["name"] == "mine"
    with pytest.raises(ValueError, match="belong in the file"):
        features.read_backbone(file, tmp_path / "best.pt")
    file.write_text("network: {}\n")
    with pytest.raises(KeyError, match="no entry backbone"):
        features.read_backbone(file)


@pytest.mark.parametrize("name", ["resnet17", "UNet", "unet2", ""])
def test_no_such_network(name: str) -> None:
    with pytest.raises(KeyError, match=r"densenet121.*resnet18"):
        features.read_backbone(name)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    items = datalist(tmp_path / "slides", 2)
    spoil("text", Path(items[1]["image"]))
    knobs = ("mask_mpp=2", "min_tissue_mm2=0", "max_hole_mm2=0", "inks=[]")
    arguments = ["features", tmp_path / "slides", tmp_path / "f", "--backbone", "resnet18", "--tile-px", TILE_PX]
    arguments += ["--workers", 0, "--dtype", "float16", *(part for knob in knobs for part in ("--knob", knob))]
    monkeypatch.setattr(sys, "argv", ["monai_pipelines", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        import_module("monai_pipelines.__main__").main()
    printed = capsys.readouterr()
    assert end.value.code == 1
    assert printed.out.splitlines()[-1] == f"1 done, 0 kept, 1 skipped: {tmp_path / 'f'}"
    assert "skipped s1.tif: " in printed.err
    assert read_features(tmp_path / "f" / "s0.h5").features.shape == (NUM_TILES, 512)


@pytest.mark.parametrize("knob", ["mpp=1.0", "tile_px=64", "name=x", "steps={}"])
def test_knobs_that_are_options_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], knob: str
) -> None:
    arguments = ["features", str(tmp_path), str(tmp_path / "f"), "--backbone", "resnet18", "--knob", knob]
    monkeypatch.setattr(sys, "argv", ["monai_pipelines", *arguments])
    with pytest.raises(SystemExit) as end:
        import_module("monai_pipelines.__main__").main()
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert knob.partition("=")[0] in message
    assert "--tile-px" in message
