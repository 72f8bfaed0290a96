"""The parts of a chain: together they are the whole, and each describes its steps only."""

from __future__ import annotations

import functools
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from monai_pipelines import Chain, load_chain
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.errors import ChainMismatchError
from tests.transforms.contract_rows import chest

CHAINS = list_declared("transforms")
IMAGE_CHAINS = ["image2d", "xray", "fundus", "histology_tile"]

IMAGE_KNOBS = {
    "keys": "photo",
    "mask_keys": "mask",
    "size": [96, 80],
    "fit": "crop",
    "fill": 0.5,
    "mean": 0.25,
    "std": 0.75,
}
KNOBS: dict[str, dict[str, Any]] = {  # another value for each
    "image2d": {**IMAGE_KNOBS, "channels": 1},
    "xray": IMAGE_KNOBS,
    "fundus": {**IMAGE_KNOBS, "margin": 0.1},
    "histology_tile": {**IMAGE_KNOBS, "stain": "macenko"},
    "slide_tiles": {
        "keys": "slide",
        "slide_mpp": 0.5,
        "mask_mpp": 10,
        "min_saturation": 0.05,
        "min_tissue_mm2": 0.1,
        "max_hole_mm2": 0.1,
        "inks": ["black"],
        "mpp": 1.0,
        "tile_px": 128,
        "overlap": 0.5,
        "min_tissue": 0.25,
        "num_tiles": 8,
        "color": "srgb",
        "stain": "macenko",
    },
    "lung_ct": {
        "keys": "scan",
        "mask_keys": ["lobes", "nodules"],
        "size": [96, 96, 96],
        "spacing_mm": [1, 1, 2],
        "margin_mm": 5,
        "window_hu": [-1000, 401],
        "masking": "air",
        "dilate_mm": 3,
        "no_lungs": "flag",
    },
    "lung_ct_detection": {
        "keys": "scan",
        "mask_keys": ["lobes", "nodules"],
        "spacing_mm": [1, 1, 2],
        "size": [96, 96, 96],
        "window_hu": [-1000, 401],
        "min_visible": 0.5,
    },
    "xray_detection": {
        "keys": "photo",
        "mask_keys": "mask",
        "size": [64, 64],
        "fit": "crop",
        "fill": 0.5,
        "mean": 0.5,
        "std": 0.25,
        "min_visible": 0.5,
    },
    "augment_ct": {
        "keys": "scan",
        "mask_keys": "mask",
        "rotation_deg": 11,
        "rotation_prob": 0.4,
        "scale": [0.8, 1.1],
        "scale_prob": 0.4,
        "shift_voxels": 6,
        "shift_prob": 0.4,
        "flip_prob": 0.1,
        "elastic_std_voxels": 2,
        "elastic_prob": 0.1,
        "elastic_points": 4,
        "crop_size": [32, 32, 32],
        "mode": "nearest",
        "min_visible": 0.5,
        "fill": 0.5,
        "backend": "elasticdeform",
        "brightness_factor": [0.8, 1.1],
        "brightness_prob": 0.1,
        "contrast_factor": [0.8, 1.1],
        "contrast_prob": 0.1,
        "noise_std": 0.1,
        "noise_prob": 0.1,
    },
    "augment_image2d": {
        "keys": "photo",
        "mask_keys": "mask",
        "flip_prob": 0.5,
        "rotate90_prob": 0.75,
        "rotation_deg": 11,
        "rotation_prob": 0.4,
        "scale": [0.8, 1.1],
        "scale_prob": 0.4,
        "shift": 0.1,
        "shift_prob": 0.4,
        "crop_size": [32, 32],
        "mode": "nearest",
        "min_visible": 0.5,
        "fill": 0,
        "brightness": 0.2,
        "brightness_prob": 0.1,
        "contrast": 0.2,
        "contrast_prob": 0.1,
        "saturation": 0.2,
        "saturation_prob": 0.1,
        "hue_turns": 0.05,
        "hue_prob": 0.1,
        "stain_sigma": 0.2,
        "stain_prob": 0.1,
    },
}


def _declared(name: str) -> dict[str, Any]:
    return yaml.safe_load((declared_path("transforms") / f"{name}.yaml").read_text())


@functools.cache
def _chain(name: str, knob: str | None = None) -> Chain:
    """As declared, or with another value of a knob."""
    return load_chain(name, **({} if knob is None else {knob: KNOBS[name][knob]}))


@pytest.mark.parametrize("name", CHAINS)
def test_fingerprint_changes_with_every_knob(name: str) -> None:
    assert set(KNOBS[name]) == set(_declared(name)) - {"steps"}, "a new knob needs another value here"
    prints = [_chain(name).fingerprint(), *(_chain(name, knob).fingerprint() for knob in KNOBS[name])]
    assert len(set(prints)) == len(prints)
    assert all(len(p) == 16 and int(p, 16) >= 0 for p in prints)


@pytest.mark.parametrize("name", CHAINS)
def test_fingerprint_of_a_part_changes_with_the_knobs_of_its_steps_only(name: str) -> None:
    names = _chain(name).step_names
    declared = {step: json.dumps(arguments) for step, arguments in _declared(name)["steps"].items()}
    users = {  # knob -> the steps whose declaration names it
        knob: {step for step in declared if re.search(rf"@{knob}\b", declared[step])} for knob in KNOBS[name]
    }
    users = {knob: steps for knob, steps in users.items() if steps <= set(names)}  # without knobs that add a step
    for number, step in enumerate(names):
        for knob, steps in users.items():
            same = {
                part: getattr(_chain(name), part)(step).fingerprint()
                == getattr(_chain(name, knob), part)(step).fingerprint()
                for part in ("until", "since")
            }
            assert same == {
                "until": not steps & set(names[:number]),
                "since": not steps & set(names[number:]),
            }, (step, knob)


@pytest.mark.parametrize("name", CHAINS)
def test_parts_have_different_fingerprints(name: str) -> None:
    chain = _chain(name)
    parts = [getattr(chain, part)(step) for step in chain.step_names[1:] for part in ("until", "since")]
    prints = {part.fingerprint() for part in parts}
    assert len(prints) == len(parts)
    assert chain.fingerprint() not in prints
    first = chain.step_names[0]
    assert chain.since(first).fingerprint() == chain.fingerprint()
    assert chain.until(first).step_names == ()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colored disc on black, 60 rows of 72."""
    rows, columns = np.mgrid[:60, :72]
    disc = (rows - 30) ** 2 + (columns - 36) ** 2 < 27**2
    pixels = np.random.default_rng(0).integers(60, 250, (60, 72, 3)) * disc[:, :, None]
    file = tmp_path_factory.mktemp("photo") / "disc.png"
    Image.fromarray(pixels.astype(np.uint8)).save(file)
    return file


@pytest.mark.parametrize("name", IMAGE_CHAINS)
def test_parts_in_sequence_are_the_whole(name: str, photo: Path) -> None:
    chain = load_chain(name, size=[20, 24])
    whole = chain({"image": str(photo), "label": 1})
    for step in chain.step_names:
        begun = chain.until(step)({"image": str(photo), "label": 1})
        parts = chain.since(step)(begun)
        assert parts.keys() == whole.keys()
        assert parts["image"].dtype == whole["image"].dtype == torch.float32
        assert torch.equal(parts["image"], whole["image"])
        assert all(torch.equal(parts["shortcut"][k], v) for k, v in whole["shortcut"].items())
    assert not torch.equal(begun["image"], whole["image"]), "the last step does something"


@pytest.mark.parametrize("name", IMAGE_CHAINS)
def test_part_after_preparation_works_on_batches(name: str, photo: Path) -> None:
    chain = load_chain(name, size=[20, 24])
    prepared = torch.as_tensor(chain.until("normalize")(photo)).as_subclass(torch.Tensor)
    batch = torch.stack([prepared, prepared.flip(1)])
    wanted = torch.as_tensor(chain(photo)).as_subclass(torch.Tensor)
    assert torch.equal(chain.since("normalize")(batch), torch.stack([wanted, wanted.flip(1)]))


def test_part_is_described_and_pickled(photo: Path) -> None:
    chain = load_chain("image2d", keys="photo", size=[20, 24])
    part = chain.until("normalize")
    assert part.step_names == ("load", "measure", "resize")
    assert part.key == "photo"
    assert part.describe() == {
        **chain.describe(),
        "steps": {name: chain.describe()["steps"][name] for name in ("load", "measure", "resize")},
    }
    again = pickle.loads(pickle.dumps(part))
    assert again.fingerprint() == part.fingerprint()
    assert torch.equal(again(photo), part(photo))
    with pytest.raises(ChainMismatchError, match="step 'normalize' is missing here"):
        part.check_same(chain.describe())


def test_part_of_a_part() -> None:
    chain = _chain("fundus")
    inner = chain.since("measure").until("resize")
    assert inner.step_names == ("measure", "crop")
    assert inner.fingerprint() == chain.until("resize").since("measure").fingerprint()


def test_no_such_step() -> None:
    for cut in (_chain("image2d").until, _chain("image2d").since):
        with pytest.raises(KeyError, match=r"chain image2d has no step 'normalise'.*did you mean 'normalize'"):
            cut("normalise")
    with pytest.raises(KeyError, match="it has load, measure, resize"):
        _chain("image2d").until("normalize").since("normalize")


def test_added_step_is_run_described_and_compared() -> None:
    chain = load_chain("image2d", steps={"load": None, "measure": None}, size=(8, 8))
    more = chain.then("features", torch.nn.Flatten(0), {"weights": "ab", "size": (1, 2)})
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert more(image).shape == (192,)
    assert more.step_names == (*chain.step_names, "features")
    assert more.describe()["steps"]["features"] == {"weights": "ab", "size": [1, 2]}
    assert more.fingerprint() != chain.fingerprint() != chain.then("features", len, {"weights": "cd"}).fingerprint()
    with pytest.raises(ChainMismatchError, match=r"features\.weights: 'ab' there, 'cd' here"):
        chain.then("features", len, {"weights": "cd", "size": [1, 2]}).check_same(more.describe())
    with pytest.raises(ValueError, match="step 'features' exists already"):
        more.then("features", len, {})


# ---- sums


def test_sum_does_one_after_the_other() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 30, 40)).astype(np.uint8))
    fixed, random = load_chain("image2d", size=[20, 24]), load_chain("augment_image2d", rotation_prob=1)
    both = fixed.until("normalize") + random + fixed.since("normalize")
    random.set_random_state(3)  # type: ignore[attr-defined]
    wanted = fixed.since("normalize")(random(fixed.until("normalize")(image)))
    random.set_random_state(3)  # type: ignore[attr-defined]
    assert torch.equal(both(image).as_tensor(), wanted.as_tensor())
    description = both.describe()
    assert description["name"] == "image2d + augment_image2d + image2d"
    assert description["steps"] == {
        **fixed.until("normalize").describe()["steps"],
        **random.describe()["steps"],
        **fixed.since("normalize").describe()["steps"],
    }
    assert description["knobs"]["rotation_deg"] == 10
    assert (description["knobs"]["fill"], description["knobs"]["fill_2"]) == (0, "border")
    assert both.until("spatial").fingerprint() == fixed.until("normalize").fingerprint()
    assert pickle.loads(pickle.dumps(both)).fingerprint() == both.fingerprint()


def test_names_of_both_parts_get_a_number() -> None:
    tile, augment = load_chain("histology_tile").until("normalize"), load_chain("augment_image2d")
    both = tile + augment + augment
    assert both.step_names == (
        *("load", "measure", "stain", "resize", "spatial", "color", "stain_2", "spatial_2", "color_2", "stain_3"),
    )
    assert tuple(both.describe()["steps"]) == both.step_names


def test_sum_of_a_scan_works_at_once() -> None:
    out = (load_chain("lung_ct", size=[16, 16, 16]) + load_chain("augment_ct"))(chest())
    assert out.shape == (1, 16, 16, 16)


def test_sum_wants_chains_of_one_key() -> None:
    with pytest.raises(ValueError, match=r"image2d \+ augment_image2d: wanted one key, got 'photo' and 'image'"):
        load_chain("image2d", keys="photo") + load_chain("augment_image2d")
    with pytest.raises(TypeError):
        load_chain("image2d") + [len]  # type: ignore[operator]


def test_printed_chain_has_name_knobs_and_steps() -> None:
    head, knobs, *steps = str(load_chain("xray_detection", size=[64, 48])).splitlines()
    assert head == "Chain xray_detection"
    assert "size=[64, 48], fit='pad'" in knobs
    assert [line.split() for line in steps[-4:]] == [
        ["load", "LoadXrayd"],
        ["resize", "ResizeImaged"],
        ["boxes", "PlaceBoxesd"],
        ["normalize", "NormalizeImaged"],
    ]
    assert str(load_chain("augment_ct")).startswith("RandomChain augment_ct\n")
