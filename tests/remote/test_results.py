"""Caches and features at URLs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from monai_pipelines.chains import load_chain
from monai_pipelines.commands.cache import cache as cache_command
from monai_pipelines.data.cache import Cache, entries
from monai_pipelines.data.prepared import PreparedDataset
from monai_pipelines.data.slide_table import feature_file, read_slides
from monai_pipelines.errors import ScanError
from monai_pipelines.features.bags import FeatureBags
from monai_pipelines.features.files import read_features
from monai_pipelines.remote import Remote, store
from tests.features.small_slides import datalist, extract, small_backbone, small_chain, small_slide
from tests.remote.servers import BUCKET, WebServer
from tests.remote.test_images import save_picture

Put = Callable[..., str]
FOLDER = f"s3://{BUCKET}/results"


def test_entries(put: Put) -> None:
    cache = Cache(FOLDER)
    file = cache.file(put(b"voxels", "a.nii"), "made by")
    assert cache.note(file) is None
    assert cache.read(file) is None
    cache.write(file, {"image": torch.arange(4)}, "a note")
    assert cache.note(file) == "a note"
    assert torch.equal(cache.read(file)["image"], torch.arange(4))
    assert list(entries(FOLDER)) == [file]
    assert cache.has_space(2**60)


def test_keys(put: Put) -> None:
    cache, urls = Cache(FOLDER), [put(b"voxels", "a.nii"), put(b"voxels", "b.nii")]
    files = {cache.file(url, "made by") for url in urls}
    assert len(files | {cache.file(Remote(urls[0]), "made by")}) == 2
    put(b"others", "a.nii")
    assert Remote(urls[0]).exists()
    assert cache.file(urls[0], "made by") not in files


@pytest.mark.parametrize("damaged", [b"", b"MPCACHE1", b"MPCACHE1" + bytes(2000)])
def test_damaged_entries_are_missing(damaged: bytes, put: Put) -> None:
    cache = Cache(FOLDER)
    file = Remote(put(damaged, "results/a.entry"))
    assert cache.note(file) is None
    assert cache.read(file) is None


def test_a_web_server_takes_no_results(web: WebServer) -> None:
    with pytest.raises(ValueError, match="a web server takes no files"):
        Cache(f"{web.url}/cache")


def test_prepared_images_are_taken_from_the_cache(
    put: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [{"image": Remote(put(save_picture(tmp_path / f"{k}.png", k), f"{k}.png")), "label": 0} for k in range(3)]
    chain = load_chain("image2d", size=[8, 8])
    made = PreparedDataset(items, chain, cache_dir=FOLDER, num_workers=2)
    assert len(list(entries(FOLDER))) == 3
    monkeypatch.setattr(type(chain), "__call__", None)  # nothing is prepared again
    again = PreparedDataset(items, chain, cache_dir=FOLDER)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(made, again, strict=True))
    assert [record for record in caplog.records if record.levelno >= logging.WARNING and "monai" in record.name] == []


def test_cache_command(put: Put) -> None:
    app = typer.Typer()
    app.command()(cache_command)
    cache = Cache(FOLDER)
    cache.write(Remote(f"{FOLDER}/a.entry"), torch.zeros(4))
    put(b"x", "results/b.entry")
    put(b"x", "results/notes.txt")
    result = CliRunner().invoke(app, [FOLDER, "--check"])
    assert (result.exit_code, "damaged: b.entry" in result.output) == (1, True)
    assert CliRunner().invoke(app, [FOLDER, "--clear"]).output == f"files removed: 2, 0.0 MB: {FOLDER}\n"
    assert not Remote(f"{FOLDER}/a.entry").exists()
    assert Remote(f"{FOLDER}/notes.txt").exists()
    assert CliRunner().invoke(app, [f"{FOLDER}/none"]).exit_code == 2


def test_features(put: Put, tmp_path: Path) -> None:
    here = datalist(tmp_path / "slides", 2)
    put(tmp_path / "slides", "slides")
    there = [{**item, "image": Remote(f"s3://{BUCKET}/slides/{item['name']}")} for item in here]
    assert extract(here, tmp_path / "features") == ["done", "done"]
    assert extract(there, FOLDER, num_workers=2) == ["done", "done"]
    assert extract(there, FOLDER) == ["kept", "kept"]
    for item in here:
        found = read_features(feature_file(FOLDER, item["name"]))
        assert (found.features == read_features(tmp_path / "features" / f"{item['name'][:-4]}.h5").features).all()
    put(small_slide(tmp_path / "new.tif", seed=9), "slides/s0.tif")
    put(b"damaged", "results/s1.h5")
    assert extract(there, FOLDER) == ["done", "done"]
    bags = FeatureBags(there, small_chain(), small_backbone(), FOLDER, precision="fp32")
    assert bags[0]["bag"].shape == (24, 4)


def test_features_that_cannot_be_read_now_are_not_made_again(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = datalist(tmp_path / "slides", 1)
    extract(items, FOLDER)
    before = Remote(f"{FOLDER}/s0.h5").stats()

    def no_answer(*arguments: object) -> None:
        raise ScanError(FOLDER, "no answer")

    with monkeypatch.context() as context:
        context.setattr(store, "download", no_answer)
        assert extract(items, FOLDER) == ["skipped"]
    assert Remote(f"{FOLDER}/s0.h5").exists()
    assert Remote(f"{FOLDER}/s0.h5").stats() == before


def test_features_of_a_slide_that_is_gone(put: Put, tmp_path: Path) -> None:
    rows = ["image,label,patient"]
    for k in range(6):
        put(b"features", f"results/s{k}.h5")
        rows.append(f"s{k}.tif,{'ab'[k % 2]},p{k}")
    table = put("\n".join(rows).encode(), "slides/table.csv")
    assert len(read_slides(table, features_dir=FOLDER).train) == 2


def test_features_of_slides_named_by_urls() -> None:
    assert feature_file(Path("features"), "s3://bucket/a/slide.svs") == Path("features/bucket/a/slide.h5")
    assert feature_file(FOLDER, "a/slide.svs") == Remote(f"{FOLDER}/a/slide.h5")
