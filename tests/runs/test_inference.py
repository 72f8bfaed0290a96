"""What an inference takes from the training: the config that was used, with everything that it refers to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from monai_pipelines.declared import declared_path
from monai_pipelines.networks import WindowClassifier
from monai_pipelines.runs import inference_config
from monai_pipelines.runs.inference import training_config, values_beside

BUNDLES = declared_path("bundles")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """run(bundle, *overlays, **overrides): a run's folder without weights; `edited` are entries of its train.yaml."""

    def make(bundle: str, *overlays: str, edited: Mapping[str, Any] | None = None, **overrides: Any) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(BUNDLES / bundle / "configs", folder / "configs")
        train = folder / "configs" / "train.yaml"
        train.write_text(yaml.safe_dump({**yaml.safe_load(train.read_text("utf-8")), **(edited or {})}), "utf-8")
        files = [f"{name}.yaml" for name in ("train", *overlays)]
        record = {"config_files": files, "overrides": overrides, "folder": str(tmp_path)}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "best.pt").touch()
        return folder

    return make


def test_an_edited_config_of_the_training_counts(run: Callable[..., Path]) -> None:
    edited = {"side": 40, "size": ["@side", 40], "classes": ["a", "b"], "threshold": 0.9, "precision": "fp32"}
    config = inference_config(run("fundus_classification", edited=edited))
    assert config.get_parsed_content("chain").describe()["knobs"]["size"] == [40, 40]
    assert config["classes"] == ["a", "b"]
    assert (config["threshold"], config["precision"]) == (None, "auto"), "of the inference itself"


@pytest.mark.parametrize("bundle", ["chest_xray_detection", "lung_nodule_ct_detection", "chest_xray_classification"])
def test_what_is_taken_can_be_built(run: Callable[..., Path], bundle: str) -> None:
    """With what it refers to, but without the weights that a training starts from."""
    small = {"size": [64, 64], "imagenet": "not there.pth"} if "xray" in bundle else {"anchor_sizes": [[4], [9]]}
    if "detection" in bundle:
        folder = run(bundle, "demo", class_loss="focal", **small)
    else:
        folder = run(bundle, "head", hidden=7, **small)
    network = inference_config(folder).get_parsed_content("network_def")
    trained = training_config(folder, **dict.fromkeys(small.keys() & {"imagenet"})).get_parsed_content("network_def")
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in trained.state_dict().items()
    }


def test_a_network_that_an_overlay_wraps_is_taken(run: Callable[..., Path]) -> None:
    folder = run("lung_ct_classification", "demo", "patches", pooling="attention", window=[16, 16, 16])
    network = inference_config(folder).get_parsed_content("network")
    assert isinstance(network, WindowClassifier)
    assert (network.pooling, network.window, network.backbone.in_planes) == ("attention", [16, 16, 16], 256)


def test_a_command_names_what_stays(run: Callable[..., Path], tmp_path: Path) -> None:
    folder = run("fundus_classification", "demo", size=[64, 64])
    inference = str(BUNDLES / "fundus_classification" / "configs" / "inference.yaml")
    beside = {"checkpoint": str(folder / "best.pt")}
    values = values_beside([inference], beside)
    assert (values["size"], values["network_def"]["widen_factor"]) == ([64, 64], 0.5)
    assert not {"threshold", "batch_size", "output_dir", "device", "network", "run"} & values.keys()
    tta = str(BUNDLES / "fundus_classification" / "configs" / "tta.yaml")
    assert "inferer" in values
    assert "inferer" not in values_beside([inference, tta], beside), "an overlay that the training did not have"
    assert values_beside([inference], {"ensemble": f"{folder},elsewhere"}) == values
    assert values_beside([inference], {"checkpoint": str(tmp_path / "alone.pt")}) == {}
    assert values_beside([str(folder / "configs" / "train.yaml")], beside) == {}


def test_a_command_with_all_values_gets_the_same_again(run: Callable[..., Path], tmp_path: Path) -> None:
    """It is started again with them."""
    (tmp_path / "best.pt").touch()
    folder = run("histology_slide_classification", "demo", "end_to_end", backbone_weights="best.pt")
    inference = str(BUNDLES / "histology_slide_classification" / "configs" / "inference.yaml")
    beside = {"checkpoint": str(folder / "best.pt")}
    values = values_beside([inference], beside)
    assert {"num_tiles", "cache_dir", "dataset", "backbone_weights"} <= values.keys()
    assert values_beside([inference], {**values, **beside}) == values


def test_an_override_that_names_nothing_is_an_error(run: Callable[..., Path]) -> None:
    folder = run("fundus_classification")
    for config in (inference_config, training_config):
        with pytest.raises(ValueError, match=r"thresold: nothing in the configs is called 'thresold' \(did you mean"):
            config(folder, thresold=0.3)


def test_weights_of_the_tile_network_are_found_or_asked_for(run: Callable[..., Path], tmp_path: Path) -> None:
    """Named relative to the folder where the training ran."""
    folder = run("histology_slide_classification", "demo", backbone_weights="tiles/best.pt")
    with pytest.raises(
        ValueError, match=r"trained with backbone_weights .*best\.pt, which is not there: name the file"
    ):
        inference_config(folder)
    assert inference_config(folder, backbone_weights=None)["backbone_weights"] is None
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "best.pt").touch()
    assert inference_config(folder)["backbone_weights"] == str(tmp_path / "tiles" / "best.pt")
