from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from monai.bundle import ConfigParser
from PIL import Image
from typer.testing import CliRunner, Result

from monai_pipelines.commands.prepare import prepare
from monai_pipelines.data.cache import entries
from monai_pipelines.declared import declared_path

app = typer.Typer()
app.command()(prepare)
BUNDLE = "chest_xray_classification"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes for each split."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for kind in ("normal", "pneumonia"):
            folder = tmp_path / "images" / split / kind
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(folder / f"{split}-{kind}.png")
    return tmp_path / "images"


def test_what_is_prepared_is_what_a_training_reads(images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = (BUNDLE, images, "--cache-dir", cache, "--workers", 0, "--knob", "size=[32,32]")
    result = run(*options)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, f"6 ready, 0 cannot be used: {cache}")
    made = {file: file.stat().st_mtime_ns for file in entries(cache)}
    assert len(made) == 6
    config = ConfigParser(ConfigParser.load_config_file(declared_path("bundles") / BUNDLE / "configs" / "train.yaml"))
    config.update({"dataset_dir": str(images), "cache_dir": str(cache), "size": [32, 32], "num_workers": 0})
    assert len(config.get_parsed_content("datasets").train) == 2
    assert run(*options).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in entries(cache)} == made


def test_unusable_images_are_listed_and_the_others_are_ready(images: Path, tmp_path: Path) -> None:
    (images / "train" / "normal" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    result = run(BUNDLE, images, "--cache-dir", tmp_path / "cache", "--workers", 0, "--knob", "size=[32,32]")
    assert result.exit_code == 1
    assert "broken.png: " in result.stderr
    assert "6 ready, 1 cannot be used" in result.stdout


def test_a_bundle_without_a_cache(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="medmnist_classification: has no cache_dir"):
        CliRunner().invoke(app, ["medmnist_classification", str(tmp_path)], catch_exceptions=False)


def test_shards_prepare_all_together(images: Path, tmp_path: Path) -> None:
    options = (BUNDLE, images, "--cache-dir", tmp_path / "cache", "--workers", 0, "--knob", "size=[32,32]")
    for shard in ("1/4", "2/4", "3/4", "4/4"):
        result = run(*options, "--shard", shard)
        assert (result.exit_code, result.stdout.splitlines()[-1][:7]) == (0, "2 ready" if shard < "3" else "1 ready")
    assert len(list(entries(tmp_path / "cache"))) == 6
    assert run(*options, "--scheduler", "tcp://127.0.0.1:9", "--shard", "5/4").exit_code == 1


class _Listed(list):
    """A dataset without options for clusters, as `monai_pipelines.features.TileBags`."""

    def __init__(self, cache_dir: str) -> None:
        super().__init__([cache_dir])
        self.skipped: list[Any] = []


def test_options_for_clusters_are_set_only_if_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"cache_dir": "", "dataset": {"_target_": f"{__name__}._Listed", "cache_dir": "@cache_dir"}}
    monkeypatch.setattr("monai_pipelines.runs.inference.inference_config", lambda source: ConfigParser(dict(config)))
    prepare("bundle", "data", "cache")
    assert "1 ready, 0 cannot be used: cache" in capsys.readouterr().out
