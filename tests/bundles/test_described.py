"""Every bundle: described rightly, complete, and wired like the others."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from monai_pipelines import Chain, __version__
from monai_pipelines.declared import declared_path, list_declared
from monai_pipelines.detection import Target
from monai_pipelines.errors import root_cause


@pytest.mark.parametrize("name", ["train", "inference"])
def test_engines_are_the_same_in_every_bundle(name: str) -> None:
    """Everything from the first line that says so."""
    files = [declared_path("bundles") / bundle / "configs" / f"{name}.yaml" for bundle in list_declared("bundles")]
    texts = {re.search(r"^#[^\n]*the same in every bundle.*", f.read_text(), re.M | re.S)[0] for f in files}
    assert len(texts) == 1
    assert len(texts.pop().splitlines()) >= (30 if name == "train" else 10)
    assert all(len(file.read_text().splitlines()) < 120 for file in files)


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


def test_commands_of_docs_and_makefile_name_what_the_configs_have(bundle: Any) -> None:
    dry_run = ["make", "-n", "-o", ".venv/.installed", "demo", f"BUNDLE={bundle.name}"]
    makefile = subprocess.run(dry_run, cwd=declared_path("bundles").parent, capture_output=True, text=True, check=True)
    docs = (bundle.root / "docs" / "README.md").read_text()
    commands = re.findall(r"python -m monai\.bundle run (.+)", (docs + makefile.stdout).replace("\\\n", " "))
    assert len(commands) >= 6  # training, evaluation and inference of both
    for command in commands:
        words = shlex.split(command)
        given = {words[i].removeprefix("--"): words[i + 1] for i in range(0, len(words), 2)}
        files = given.pop("config_file")
        names = [Path(file).stem for file in (ast.literal_eval(files) if files.startswith("[") else [files])]
        root = declared_path("bundles") / Path(given.get("bundle_root", bundle.root)).name
        parser = bundle._replace(root=root).parser(*names)
        assert given.pop("run_id", "run") in parser
        assert [name for name in given if name not in parser] == []


GROUPS = {
    "train": [
        "where things are",
        "data",
        "detector",
        "training",
        "decision",
        "evaluation",
        "network",
        "data and chains",
        "engines",
    ],
    "inference": ["where things are", "as in training", "of this run", "network", "engine"],
}


def test_configs_are_grouped_and_their_knobs_explained(bundle: Any) -> None:
    """`show` prints the comments as the meaning of the knobs."""
    for name, groups in GROUPS.items():
        text = Path(*bundle.config(name)).read_text()
        titles = re.findall(r"^# ---- (.*)", text, re.MULTILINE)
        groups = [group for group in groups if group != "detector" or bundle.detects]
        assert len(titles) == len(groups)
        assert all(title.startswith(group) for title, group in zip(titles, groups, strict=True))
        if name == "train":
            knobs = re.findall(
                r"^\w+:.*", text.partition("# ---- data")[2].partition("# ---- network")[0], re.MULTILINE
            )
            bare = [line for line in knobs if "  #" not in line and not line.startswith("checkpoint")]
            assert len(knobs) >= 20
            assert not bare


def test_class_names_are_those_of_the_metadata(bundle: Any) -> None:
    names = list(bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values())
    for name in ("train", "inference"):
        classes = bundle.parser(name).get_parsed_content("classes")
        assert names == list(classes[1:] if len(names) == 1 and not bundle.detects else classes)


def test_networks_are_those_of_the_metadata_and_the_papers(bundle: Any) -> None:
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
        if name not in bundle.case.unlike and not bundle.detects:  # boxes cannot be selected without values
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
    if bundle.detects:
        _check_losses(bundle)
        return
    for overlay in ("train", *bundle.overlays):
        parser = bundle.parser(*dict.fromkeys(["train", overlay]))
        num = len(parser.get_parsed_content("classes"))
        parser = bundle.parser(*dict.fromkeys(["train", overlay]), weight=f"$torch.ones({num})")
        channels = bundle.metadata["network_data_format"]["outputs"]["pred"]["num_channels"]
        logits = torch.zeros(num, num if overlay in bundle.case.unlike else channels)
        labels = torch.arange(num)
        if parser.get_parsed_content("multilabel"):
            logits, labels = torch.zeros(num, num), torch.eye(num)
        assert parser.get_parsed_content("loss")(logits, labels).isfinite()


def _check_losses(bundle: Any) -> None:
    """Also of an image without a lesion."""
    for overlay in bundle.overlays:
        parser = bundle.parser(*dict.fromkeys(["train", "demo", overlay]))
        network, loss = parser.get_parsed_content("network"), parser.get_parsed_content("loss")
        dims = network.spatial_dims
        box, label, ignore = torch.tensor([[8.0] * dims + [20.0] * dims]), torch.tensor([0]), torch.tensor([False])
        targets = Target(box, label, ignore), Target(box[:0], label[:0], ignore[:0])
        losses = network.train()(torch.rand(2, 1, *[32] * dims), targets)
        assert loss(losses, targets).isfinite()


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ("chain::nam", "nam"),
        ("augmentation::rotation_degree", "no knob 'rotation_degree' \\(did you mean 'rotation_deg'"),
        ("train::trainer::max_epoch", "max_epoch"),
        ("optimizer::learning_rate", "learning_rate"),
    ],
)
def test_misspelt_argument_is_an_error(bundle: Any, knob: str, message: str) -> None:
    entry = knob.rpartition("::")[0]
    parts: dict[str, Any] = {"network": "$torch.nn.Linear(1, 1)", "train::dataloader": [0], "train::handlers": []}
    if bundle.parser("train").get("augmentation") is None and "augmentation" in entry:
        pytest.skip("no augmentation")
    if not isinstance(bundle.parser("train").get(entry), dict):
        entry = "preprocessing"  # `chain` is made from it
        knob = knob.replace("chain", entry)
    parts |= {"cohort": None, "weight": "$torch.ones(2)"}
    with pytest.raises((RuntimeError, TypeError)) as error:
        bundle.parser("train", **parts, **{knob: 3}).get_parsed_content(entry)
    assert re.search(message, str(root_cause(error.value)))


def test_balanced_batches_with_class_weights_are_an_error(bundle: Any) -> None:
    """Rare classes would count twice."""
    if bundle.detects:
        pytest.skip("a detector's loss has no class weights")
    sampler = {"_target_": "monai_pipelines.data.sampling.BalancedBatchSampler", "labels": [0, 1], "batch_size": 2}
    num = len(bundle.parser("train").get_parsed_content("classes"))
    small = {
        "network": "$torch.nn.Linear(1, 1)",
        "cohort": None,
        "train::handlers": [],
        "train::dataloader": {"_target_": "types.SimpleNamespace", "batch_sampler": sampler},
    }
    parser = bundle.parser("train", **small, weight=f"$torch.ones({num})")
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("train::trainer")
    assert "sampling: balanced together with class_weights" in str(root_cause(error.value))
