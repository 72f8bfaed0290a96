"""Chains: declared once, flat, described as plain data, fingerprinted, and the same wherever they run."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, MapTransform, Randomizable

from monai_pipelines import Chain, load_chain
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.errors import ChainMismatchError, ScanError
from tests.new_process import CONTEXT

CHAINS = list_declared("transforms")
ROOT = Path(__file__).resolve().parents[1]

USER_CHAIN = """
keys: image
window_hu: [-100, 100]   # HU
steps:
  window: {_target_: monai_pipelines.transforms.WindowHUd, keys: "@keys", window_hu: "@window_hu"}
  again: {_target_: monai_pipelines.transforms.WindowHUd, keys: "@keys", window_hu: [0, 0.5]}
"""


@pytest.fixture
def user_chain(tmp_path: Path) -> Path:
    file = tmp_path / "user.yaml"
    file.write_text(USER_CHAIN)
    return file


def _declared(name: str) -> dict[str, Any]:
    return yaml.safe_load((declared_path("transforms") / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", CHAINS)
def test_declared_chain_is_flat_named_and_plain(name: str) -> None:
    chain, declared = load_chain(name), _declared(name)
    always = tuple(step for step, arguments in declared["steps"].items() if "_disabled_" not in arguments)
    assert chain.step_names == always == tuple(chain.steps)
    assert list(chain.transforms) == list(chain.steps.values())
    assert not any(isinstance(step, Compose) for step in chain.transforms)
    description = chain.describe()
    assert json.loads(json.dumps(description)) == description == yaml.safe_load(yaml.safe_dump(description))
    assert description["name"] == name
    assert set(description["knobs"]) == set(declared) - {"steps"}
    assert set(description["versions"]) == {"monai_pipelines", "monai"}
    assert "0x" not in json.dumps(description), "an object described by its address is not plain data"


@pytest.mark.parametrize("name", CHAINS)
def test_every_knob_is_used_by_a_step(name: str) -> None:
    declared = _declared(name)
    steps = json.dumps(declared["steps"])
    assert [knob for knob in declared if knob != "steps" and not re.search(rf"@{knob}\b", steps)] == []


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        (
            "lung_ct",
            {"size": [64, 64]},
            r"step 'resample': ResampleCT: size must be \(X, Y, Z\) in voxels.*got \[64, 64\]",
        ),
        ("augment_ct", {"scale": 1.1}, r"step 'spatial': RandSpatial3D: scale must be \(low, high\), .*got \[1\.1\]"),
        ("slide_tiles", {"inks": "green"}, "step 'tissue': SegmentTissue: inks must be a list from"),
    ],
)
def test_a_wrong_value_is_reported_with_its_step(name: str, knobs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"chain {name}, {message}"):
        load_chain(name, **knobs)


@pytest.mark.parametrize("name", ["xray", "image2d", "histology_tile"])
def test_one_size_is_that_of_both_axes(name: str) -> None:
    image = MetaTensor(torch.rand(1 if name == "xray" else 3, 80, 100))
    one, two = load_chain(name, size=64), load_chain(name, size=[64, 64])
    assert one.check_same(two.describe()) == []
    assert torch.equal(one(image), two(image))
    with pytest.raises(ValueError, match=r"step 'resize': ResizeImage: fill must lie in 0\.\.1 .*got 7$"):
        load_chain(name, size=64, steps={"resize": {"fill": 7}})


def test_description_has_every_argument_given_or_by_default(user_chain: Path) -> None:
    step = "{_target_: monai.transforms.ScaleIntensityRanged, keys: [image], a_min: -1, a_max: 2.5}"
    user_chain.write_text(f"knob: null\nsteps:\n  scale: {step}\n")
    assert load_chain(user_chain).describe()["steps"]["scale"] == {
        "_target_": "monai.transforms.ScaleIntensityRanged",
        **{"keys": ["image"], "a_min": -1, "a_max": 2.5, "b_min": None, "b_max": None, "clip": False},
        **{"dtype": "<class 'numpy.float32'>", "allow_missing_keys": False},
    }


def test_description_is_a_copy() -> None:
    chain = load_chain("lung_ct")
    chain.describe()["steps"]["window"]["window_hu"] = "bone"
    assert chain.describe()["steps"]["window"]["window_hu"] == "lung"


# ---- fingerprint


def test_fingerprint_changes_with_step_argument_order_and_version(user_chain: Path) -> None:
    def fingerprint(text: str) -> str:
        user_chain.write_text(text)
        return load_chain(user_chain).fingerprint()

    head, window, again = USER_CHAIN.partition("  window:")[0], *USER_CHAIN.strip().splitlines()[-2:]
    chain = load_chain("lung_ct")
    versions = Chain(chain.steps, {**chain.describe(), "versions": {"monai_pipelines": "0", "monai": "0"}})
    different = [
        fingerprint(USER_CHAIN),
        fingerprint("\n".join([head, again, window])),
        fingerprint("\n".join([head, window])),
        fingerprint(USER_CHAIN.replace("0.5", "0.6")),
        fingerprint(USER_CHAIN.replace("again", "later")),
        load_chain("lung_ct", steps={"mask": None}).fingerprint(),
        load_chain("lung_ct", steps={"lungs": {"grid_mm": 3}}).fingerprint(),
        chain.fingerprint(),
        versions.fingerprint(),
    ]
    assert len(set(different)) == len(different)


def test_fingerprint_is_otherwise_stable(user_chain: Path) -> None:
    same = [
        load_chain("lung_ct"),
        load_chain(declared_path("transforms") / "lung_ct.yaml"),
        load_chain("lung_ct", size=(128, 128, 128), margin_mm=10.0),
        load_chain("lung_ct", size=np.array([128, 128, 128])),
        load_chain("lung_ct", steps={"window": {"allow_missing_keys": False}}),
        pickle.loads(pickle.dumps(load_chain("lung_ct"))),
    ]
    assert len({chain.fingerprint() for chain in same}) == 1
    before = load_chain(user_chain).fingerprint()
    user_chain.write_text("# another comment\n" + USER_CHAIN + "unused: 3\n")
    assert load_chain(user_chain).fingerprint() == before


def _fingerprint_and_result(chain: Chain, image: torch.Tensor) -> tuple[str, torch.Tensor]:
    return chain.fingerprint(), torch.as_tensor(chain(image)).as_subclass(torch.Tensor)


def test_chain_works_in_a_new_process(user_chain: Path) -> None:
    chain, image = load_chain(user_chain), torch.linspace(-200, 200, 27).reshape(1, 3, 3, 3)
    with CONTEXT.Pool(1) as pool:
        fingerprint, result = pool.apply(_fingerprint_and_result, (chain, image))
    assert fingerprint == chain.fingerprint()
    assert torch.equal(result, chain(image).as_tensor())


@pytest.mark.slow
def test_fingerprints_are_the_same_in_another_python() -> None:
    code = f"from monai_pipelines import load_chain; print([load_chain(n).fingerprint() for n in {CHAINS}])"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == str([load_chain(name).fingerprint() for name in CHAINS])


# ---- names


@pytest.mark.parametrize(
    ("error", "call", "nearest"),
    [
        (FileNotFoundError, dict(name="lung_tc"), "lung_ct"),
        (KeyError, dict(name="lung_ct", window_h=3), "window_hu"),
        (KeyError, dict(name="lung_ct", steps={"resampel": None}), "resample"),
        (KeyError, dict(name="lung_ct", steps={"lungs": {"grid": 2}}), "grid_mm"),
    ],
)
def test_unknown_name_suggests_the_nearest(error: type[Exception], call: dict, nearest: str) -> None:
    with pytest.raises(error, match=f"did you mean '{nearest}'"):
        load_chain(**call)


def test_unknown_name_unlike_any_other_lists_all() -> None:
    with pytest.raises(FileNotFoundError, match=f"there are {', '.join(CHAINS)}") as error:
        load_chain("zebra")
    assert "did you mean" not in str(error.value)


def test_unknown_target(user_chain: Path) -> None:
    user_chain.write_text(USER_CHAIN.replace("WindowHUd", "WindowHDd"))
    with pytest.raises(KeyError, match=r"step 'window' names 'monai_pipelines.transforms.WindowHDd'"):
        load_chain(user_chain)


def test_step_changes_are_off_or_arguments() -> None:
    with pytest.raises(TypeError, match="None \\(off\\) or a mapping"):
        load_chain("lung_ct", steps={"mask": True})


# ---- changes


def test_step_off_and_changed_by_name() -> None:
    chain = load_chain("lung_ct", steps={"mask": None, "measure": False, "window": {"window_hu": "bone"}})
    assert chain.step_names == ("load", "lungs", "resample", "refine", "window")
    window: Any = chain.steps["window"]
    assert (window.step.low, window.step.high) == (-450, 1050)
    assert chain.describe()["steps"]["window"]["window_hu"] == "bone"


def test_user_file(user_chain: Path) -> None:
    chain = load_chain(str(user_chain), window_hu=[-200, 200])
    result = chain({"image": torch.tensor([[-300.0, -200.0, -100.0, 0.0, 100.0]])})
    # (hu + 200) / 400 clipped, then / 0.5 clipped
    assert result["image"].tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]
    assert chain.describe()["name"] == "user"


def test_user_file_may_use_short_names_of_monai_transforms(user_chain: Path) -> None:
    user_chain.write_text("steps:\n  scale: {_target_: ScaleIntensityd, keys: image, minv: 0, maxv: 2}\n")
    chain = load_chain(user_chain)
    assert chain(torch.tensor([1.0, 2.0, 3.0])).tolist() == [0.0, 1.0, 2.0]
    assert chain.describe()["steps"]["scale"]["maxv"] == 2


def test_bare_input(user_chain: Path, tmp_path: Path) -> None:
    chain, image = load_chain(user_chain), torch.linspace(-200, 200, 8).reshape(1, 2, 2, 2)
    wanted = chain({"image": image, "label": 1})["image"]
    assert isinstance(wanted, MetaTensor)
    for bare in (image, MetaTensor(image), image.numpy()):
        assert torch.equal(chain(bare), wanted)
    with pytest.raises(ScanError):  # a path goes to the loader
        load_chain("lung_ct")(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lung_ct", np.zeros((1, 8, 8, 8)), r"volume: ndarray has no affine"),
        ("xray", np.zeros((8, 8)), r"image: wanted \(1 or 3, H, W\)"),
        ("slide_tiles", np.zeros((3, 8, 8)), "slide: wanted its path, got ndarray"),
        ("augment_ct", "scan.nii", r"scan.nii: RandSpatial3D wants a volume .*, got str; load it first: load_chain"),
    ],
)
def test_what_a_chain_cannot_begin_with_is_an_error(name: str, value: Any, message: str) -> None:
    with pytest.raises(ScanError, match=message):
        load_chain(name)(value)


def test_bare_input_has_the_key_of_the_chain(user_chain: Path) -> None:
    chain = load_chain(user_chain, keys="scan")
    assert chain.key == "scan"
    assert chain(torch.zeros(1, 2)).tolist() == [[1.0, 1.0]]  # HU 0 -> 0.5 -> 1
    assert load_chain(user_chain, keys=["scan", "other"]).key == "scan"


@pytest.mark.parametrize("bare", [True, False])
def test_scan_error_is_not_wrapped(tmp_path: Path, bare: bool) -> None:
    scan = str(tmp_path / "nothing.nii")
    with pytest.raises(ScanError, match=r"nothing\.nii: no such file") as error:
        load_chain("lung_ct")(scan if bare else {"image": scan})
    assert error.value.path == scan
    assert error.value.__cause__ is None


def test_causes_of_a_scan_error_come_to_an_end(tmp_path: Path) -> None:
    with pytest.raises(ScanError) as raised:
        load_chain("lung_ct")(tmp_path / "nothing.nii")
    seen: list[BaseException] = []
    error: BaseException | None = raised.value
    while error is not None:
        assert error not in seen
        seen.append(error)
        error = error.__cause__ or error.__context__


def _denied(data: dict) -> dict:
    raise PermissionError(13, "Permission denied", "scan.nii")


def _bug(data: dict) -> dict:
    raise ZeroDivisionError("bug")


def test_os_errors_are_not_wrapped_others_are() -> None:
    with pytest.raises(PermissionError, match="Permission denied"):
        Chain({"read": _denied}, {})({"image": 0})
    with pytest.raises(RuntimeError) as error:
        Chain({"read": _bug}, {})({"image": 0})
    assert isinstance(error.value.__cause__, ZeroDivisionError)


# ---- comparison with a stored description


def test_check_same_is_silent_for_the_same_chain() -> None:
    assert load_chain("lung_ct").check_same(load_chain("lung_ct").describe()) == []


def test_check_same_lists_every_difference() -> None:
    then = load_chain("lung_ct", size=[64, 64, 64], window_hu="bone", steps={"measure": None})
    now = load_chain("lung_ct", size=[96, 96, 96], steps={"mask": None})
    with pytest.raises(ChainMismatchError) as error:
        now.check_same(then.describe(), "best.pt")
    assert error.value.differences == [
        "step 'mask' is missing here",
        "step 'measure' is new here",
        "resample.size: [64, 64, 64] there, [96, 96, 96] here",
        "window.window_hu: 'bone' there, 'lung' here",
    ]
    assert str(error.value).startswith("best.pt: made with another transform chain")
    assert "RUN/run.json holds its command" in str(error.value)
    assert all(difference in str(error.value) for difference in error.value.differences)


def test_check_same_sees_the_order() -> None:
    chain = load_chain("lung_ct")
    description = chain.describe()
    description["steps"] = dict(reversed(description["steps"].items()))
    with pytest.raises(ChainMismatchError, match="order of steps"):
        chain.check_same(description)


def test_check_same_returns_other_versions_without_an_error() -> None:
    chain = load_chain("lung_ct")
    then = chain.describe() | {"versions": {"monai_pipelines": "0.0.9", "monai": chain.describe()["versions"]["monai"]}}
    assert chain.check_same(then) == [
        f"monai_pipelines 0.0.9 then, {chain.describe()['versions']['monai_pipelines']} now"
    ]


# ---- MONAI's surprises


class _Count(MapTransform):
    """Counts how often it runs."""

    calls = 0

    def __call__(self, data: dict) -> dict:
        type(self).calls += 1
        return dict(data)


def test_monai_caches_no_nested_compose_but_all_of_a_chain() -> None:
    def calls(transform: Any) -> int:
        _Count.calls = 0
        dataset = CacheDataset([{"image": 0}], transform, progress=False)
        _ = dataset[0], dataset[0]
        return _Count.calls

    step = _Count("image")
    assert calls(Compose([Compose([step])])) == 2, "MONAI has learned to cache a nested Compose"
    assert calls(Chain({"count": step}, {})) == 1


def test_lung_ct_is_deterministic() -> None:
    assert not any(isinstance(step, Randomizable) for step in load_chain("lung_ct").transforms)


def test_seed_of_a_chain_reaches_its_steps() -> None:
    image = torch.rand(1, 8, 8, 8)
    first, again, other = (load_chain("augment_ct").set_random_state(seed)(image) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
