"""Every bundle: described rightly, complete, and wired like the others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from monai_pipelines import Chain, __version__
from monai_pipelines.declared import declared_path, list_declared


def _engines(file: Path) -> str:
    """All from the first line that says that it is the same in every bundle."""
    return re.search(r"^#[^\n]*the same in every bundle.*", file.read_text(), re.MULTILINE | re.DOTALL)[0]


@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
def test_engines_are_the_same_in_every_bundle(name: str) -> None:
    texts = {_engines(declared_path("bundles") / b / "configs" / f"{name}.yaml") for b in list_declared("bundles")}
    assert len(texts) == 1
    assert len(texts.pop().splitlines()) > 20


def test_metadata(bundle: Any, schema: dict[str, Any]) -> None:
    metadata = bundle.metadata
    jsonschema.validate(metadata, schema)
    assert re.search(r"/meta_schema_20240725\.json$", metadata["schema"])
    assert metadata["required_packages_version"]["monai_pipelines"] == __version__
    assert metadata["version"] in metadata["changelog"]
    for broken in ({"network_data_format": {}}, {"authors": ["a", "b"]}, {"version": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**metadata, **broken}, schema)


def test_configs_override_by_name(bundle: Any) -> None:
    for file in (bundle.root / "configs").glob("*.yaml"):
        assert not re.search(r"(::|#)\d", file.read_text())


def test_every_number_on_top_has_a_comment(bundle: Any) -> None:
    """`show` prints them as the meaning of the knobs."""
    for name in ("train", "inference"):
        text = Path(*bundle.config(name)).read_text()
        top = text.partition("# ---- numbers")[2].partition("\n\n")[0]
        knobs = [line for line in top.splitlines()[1:] if re.match(r"\w+:", line)]
        assert len(knobs) >= 4
        assert not [line for line in knobs if "  #" not in line and "info." not in line]


def test_class_names_are_those_of_the_metadata(bundle: Any) -> None:
    told = list(bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values())
    for name in ("train", "inference"):
        classes = bundle.parser(name).get_parsed_content("classes")
        assert told == list(classes[1:] if len(told) == 1 else classes)


def test_networks_are_as_the_metadata_and_the_papers_say(bundle: Any) -> None:
    """Built and run without memory, on the meta device."""
    data_format = bundle.metadata["network_data_format"]
    given, wanted = data_format["inputs"]["image"], data_format["outputs"]["pred"]
    for name in ("train", *bundle.overlays):
        networks = []
        for entry in ("train", "inference"):
            with torch.device("meta"):
                networks.append(bundle.parser(*dict.fromkeys([entry, name])).get_parsed_content("network_def"))
        trained, inferred = ([(k, v.shape) for k, v in n.state_dict().items()] for n in networks)
        assert trained == inferred
        if name in bundle.case.parameters:
            assert sum(p.numel() for p in networks[0].parameters()) == bundle.case.parameters[name]
        if name not in bundle.case.unlike:
            shape = given["num_channels"], *given["spatial_shape"]
            result = networks[0].eval()(torch.empty(1, *shape, dtype=getattr(torch, given["dtype"]), device="meta"))
            assert tuple(result.shape) == (1, wanted["num_channels"])
            assert result.dtype == getattr(torch, wanted["dtype"])
    assert set(bundle.case.parameters) <= {"train", *bundle.overlays}


def test_training_and_inference_prepare_alike(bundle: Any) -> None:
    sizes = [{}, {"size": [48, 40, 32][: len(bundle.case.small["size"])]}] if "size" in bundle.case.small else [{}]
    for overlay in ([], *([name] for name in bundle.overlays)):
        for override in sizes:
            chains = []
            for entry in ("train", "inference"):
                torch.manual_seed(0)  # a frozen network's weights are part of its chain
                chains.append(bundle.parser(entry, *overlay, **override).get_parsed_content("chain"))
            assert all(isinstance(chain, Chain) for chain in chains)
            assert chains[0].describe() == chains[1].describe()
            assert chains[0].fingerprint() == chains[1].fingerprint()
    if len(sizes) > 1:
        size = bundle.parser("train").get_parsed_content("chain").describe()["knobs"]["size"]
        assert size == bundle.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]


def test_every_overlay_gives_a_loss(bundle: Any) -> None:
    for overlay in ("train", *bundle.overlays):
        parser = bundle.parser(*dict.fromkeys(["train", overlay]))
        num = len(parser.get_parsed_content("classes"))
        parser = bundle.parser(*dict.fromkeys(["train", overlay]), class_weights=f"$torch.ones({num})")
        logits = torch.zeros(num, bundle.metadata["network_data_format"]["outputs"]["pred"]["num_channels"])
        labels = torch.arange(num)
        if parser.get_parsed_content("multilabel"):
            logits, labels = torch.zeros(num, num), torch.eye(num)
        assert parser.get_parsed_content("loss")(logits, labels).isfinite()


@pytest.mark.parametrize(
    ("knob", "told"),
    [
        ("chain::nam", "nam"),
        ("augmentation::rotation_degree", "no knob 'rotation_degree' \\(did you mean 'rotation_deg'"),
        ("train::trainer::max_epoch", "max_epoch"),
        ("optimizer::learning_rate", "learning_rate"),
    ],
)
def test_misspelt_argument_is_an_error(bundle: Any, knob: str, told: str) -> None:
    entry = knob.rpartition("::")[0]
    parts: dict[str, Any] = {"network": "$torch.nn.Linear(1, 1)", "train::dataloader": [0], "train::handlers": None}
    if bundle.parser("train").get("augmentation") is None and "augmentation" in entry:
        pytest.skip("no augmentation")
    if not isinstance(bundle.parser("train").get(entry), dict):
        entry = "preprocessing"  # `chain` is made from it
        knob = knob.replace("chain", entry)
    parts |= {"cohort": None, "class_weights": "$torch.ones(2)", "train::key_metric": None}
    with pytest.raises((RuntimeError, TypeError)) as error:
        bundle.parser("train", **parts, **{knob: 3}).get_parsed_content(entry)
    cause: BaseException = error.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert re.search(told, str(cause))
