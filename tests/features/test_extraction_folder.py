"""The folder of features: made once, one file per slide, files of other tools are never changed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from monai_pipelines import Chain
from monai_pipelines.data import find_slides, read_slides
from monai_pipelines.errors import CohortError, ScanError
from monai_pipelines.features import TileBags, read_features
from monai_pipelines.features import files as feature_files
from tests.features.small_slides import (
    NUM_FEATURES,
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
from tests.new_process import CONTEXT

Item = dict[str, Any]


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    return datalist(tmp_path / "slides", 3)


# ---- once


def test_a_second_run_makes_what_is_missing_or_changed(items: list[Item], tmp_path: Path) -> None:
    folder = tmp_path / "f"
    assert extract(items[:2], folder) == ["done", "done"]
    first = file_times(folder)
    assert extract(items, folder) == ["kept", "kept", "done"]
    small_slide(Path(items[0]["image"]), seed=9, mpp=0.4)
    assert extract(items, folder) == ["done", "kept", "kept"], "another slide with the same name"
    assert extract([*items[:2], {**items[2], "mpp": 0.25}], folder) == ["kept", "kept", "done"]
    assert read_features(folder / "s2.h5").slide_mpp == 0.25
    assert file_times(folder)["s1.h5"] == first["s1.h5"]
    for item in items:
        Path(item["image"]).unlink()
    assert extract(items, folder) == ["kept"] * 3, "features are enough"


def test_complete_folders_are_not_written_to(items: list[Item], tmp_path: Path) -> None:
    folder = tmp_path / "f"
    extract(items, folder)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    extract(items, folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("other", "message"), [("chain", "grid.min_tissue: 0.5 there, 0.9 here"), ("backbone", "weights")]
)
def test_features_of_another_chain_or_backbone(items: list[Item], tmp_path: Path, other: str, message: str) -> None:
    extract(items, tmp_path / "f")
    changed = {"chain": small_chain(min_tissue=0.9), "backbone": small_backbone(1)}[other]
    with pytest.raises(CohortError, match=r"3 file\(s\) such as s0.h5") as caught:
        extract(items, tmp_path / "f", **{other: changed})
    assert message in str(caught.value)
    assert "features_dir" in caught.value.problems[-1]


def test_library_versions_may_differ(items: list[Item], tmp_path: Path) -> None:
    extract(items, tmp_path / "f")
    with h5py.File(tmp_path / "f" / "s0.h5", "a") as opened:
        then = json.loads(opened.attrs["chain"])
        opened.attrs["chain"] = json.dumps({**then, "versions": {"monai": "0.1"}})
        opened.attrs["chain_fingerprint"] = "0" * 16
    assert extract(items, tmp_path / "f") == ["kept"] * 3


@pytest.mark.parametrize(
    "other",
    [{"image": "a.svs", "name": "a.svs"}, {"image": "b/a.tif", "name": "a.tif"}, {"image": "a.tif", "mpp": 0.25}],
)
def test_two_slides_of_one_file(tmp_path: Path, other: Item) -> None:
    item = {"image": "a.tif", "name": "a.tif"}
    with pytest.raises(CohortError, match=r"a\.h5 would belong to a\.\w+ \(.*\) and a\.tif \("):
        extract([item, {**item, **other}], tmp_path / "f")


def test_equal_items_are_one_slide(items: list[Item], tmp_path: Path) -> None:
    assert extract([items[0], items[1], dict(items[0])], tmp_path / "f") == ["done"] * 3
    assert [row["name"] for row in listed(tmp_path / "f")] == ["s0.tif", "s1.tif"]


def test_the_same_table_by_both_readers(tmp_path: Path) -> None:
    table = tmp_path / "slides" / "table.csv"
    splits = ("train", "train", "validation", "validation", "test", "test")
    rows = [f"s{n}.tif,{n % 2},p{n},0.50,{split}" for n, split in enumerate(splits)]
    datalist(table.parent, 6)
    table.write_text("\n".join(["image,label,patient,mpp,split", *rows]), encoding="utf-8")
    assert extract(find_slides(table), tmp_path / "f") == ["done"] * 6
    cohort = read_slides(table, ["0", "1"])
    assert extract([*cohort.train, *cohort.validation, *cohort.test], tmp_path / "f") == ["kept"] * 6


@pytest.mark.parametrize("use", [lambda items, chain, folder: extract(items, folder, chain=chain), TileBags])
def test_random_state_of_the_callers_chain_is_unchanged(
    items: list[Item], tmp_path: Path, use: Callable[[list[Item], Chain, Path], object]
) -> None:
    used, unused = (small_chain(num_tiles=5).set_random_state(seed=3) for _ in range(2))
    use(items, used, tmp_path / "f")
    drawn = [chain({"image": items[0]["image"], "mpp": None})["image"].meta["coords"] for chain in (used, unused)]
    np.testing.assert_array_equal(*drawn)


def test_another_precision_is_logged_once(items: list[Item], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extract(items[:2], tmp_path / "f")
    assert extract(items[:2], tmp_path / "f") == extract(items[:2], tmp_path / "f", precision="auto") == ["kept"] * 2
    assert "precision" not in caplog.text
    assert extract(items, tmp_path / "f", precision="bf16") == ["kept", "kept", "done"]
    messages = [record.getMessage() for record in caplog.records if "precision" in record.getMessage()]
    assert messages == [f"{tmp_path / 'f'}: features of precision fp32, this run has bf16"]
    caplog.clear()
    assert extract(items, tmp_path / "f", precision="auto") == ["kept"] * 3
    assert "bf16 and fp32" in caplog.text


def test_a_damaged_file_is_made_again(items: list[Item], tmp_path: Path) -> None:
    extract(items, tmp_path / "f")
    file = tmp_path / "f" / "s1.h5"
    file.write_bytes(file.read_bytes()[:900])
    (tmp_path / "f" / "s2.h5").write_text("no HDF5")
    assert extract(items, tmp_path / "f") == ["kept", "done", "done"]


def _extract_and_die(folder: Path) -> None:
    write = feature_files._write

    def write_and_die(out: h5py.File, *others: Any) -> None:
        write(out, *others)
        if Path(out.filename).name.startswith("s1"):
            out.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    feature_files._write = write_and_die
    extract(datalist(folder / "slides", 3), folder / "f")


def test_killed_in_the_middle(tmp_path: Path) -> None:
    process = CONTEXT.Process(target=_extract_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    folder = tmp_path / "f"
    (part,) = folder.glob("s1.h5.*.part")
    assert names(folder) == {part.name, "s1.h5.claim1", "s0.h5"}, "an incomplete file is not done"
    os.utime(part, (0, 0))
    items = [{"image": str(tmp_path / "slides" / f"s{n}.tif"), "name": f"s{n}.tif"} for n in range(3)]
    assert extract(items, folder) == ["kept", "done", "done"]
    assert names(folder) == {"s0.h5", "s1.h5", "s2.h5", "features.csv"}


def test_two_runs_on_one_folder(items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = feature_files._write

    def beside(*arguments: Any) -> None:
        """A complete second run while the first one writes."""
        monkeypatch.setattr(feature_files, "_write", write)
        assert extract(items, tmp_path / "f") == ["done"] * 3
        write(*arguments)

    monkeypatch.setattr(feature_files, "_write", beside)
    assert extract(items, tmp_path / "f") == ["done", "kept", "kept"]
    assert names(tmp_path / "f") == {"s0.h5", "s1.h5", "s2.h5", "features.csv"}
    assert extract(items, tmp_path / "f") == ["kept"] * 3


def test_a_full_disk_is_not_a_bad_slide(items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("monai_pipelines.features.files._write", full)
    with pytest.raises(OSError, match="No space left"):
        extract(items, tmp_path / "f")
    assert names(tmp_path / "f") == {"features.csv"}


def test_outdated_features_of_a_bad_slide_are_deleted(items: list[Item], tmp_path: Path) -> None:
    folder, bad = tmp_path / "f", Path(items[1]["image"])
    extract(items, folder)
    spoil("no tissue", bad)
    assert extract(items, folder) == ["kept", "skipped", "kept"]
    assert not (folder / "s1.h5").exists()
    bad.unlink()
    assert extract(items, folder) == ["kept", "skipped", "kept"], "also if the slide is missing"


def test_rows_after_an_error(items: list[Item], tmp_path: Path) -> None:
    folder = tmp_path / "f"
    extract(items[:1], folder)
    backbone, calls = small_backbone(), []

    def fail_at_the_second(*_: Any) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt

    backbone.register_forward_hook(fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        extract(items, folder, backbone=backbone)
    assert [row["status"] for row in listed(folder)] == ["kept", "done", "missing"]
    assert not list(folder.glob("*.part"))


# ---- files of other tools


def _foreign(kind: str, file: Path) -> None:
    """An unusable file of another tool."""
    if kind == "folder":
        file.mkdir()
        return
    with h5py.File(file, "w") as out:
        if kind == "group":
            out.create_group("features")
        elif kind == "no features":
            out["feats"] = np.ones((2, NUM_FEATURES))
        else:
            shape = {"empty": (0, NUM_FEATURES), "another D": (2, NUM_FEATURES + 1), "flat": (NUM_FEATURES,)}
            out["features"] = np.full(shape.get(kind, (2, NUM_FEATURES)), np.nan if kind == "NaN" else 1)
            if kind == "slide_size":
                out.attrs["slide_size"] = 2000


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("folder", "got a folder"),
        ("group", "not a readable file"),
        ("no features", "not a readable file"),
        ("slide_size", "not a readable file"),
        ("empty", "got shape (0, 4)"),
        ("flat", "got shape (4,)"),
        ("NaN", "NaN or infinite"),
        ("another D", "wanted 4 features per tile, as the backbone has, got 5"),
    ],
)
def test_unusable_files_of_other_tools(items: list[Item], tmp_path: Path, kind: str, message: str) -> None:
    folder = tmp_path / "f"
    extract(items, folder)
    (folder / "s1.h5").unlink()
    _foreign(kind, folder / "s1.h5")
    assert extract(items, folder) == ["kept", "skipped", "kept"]
    assert message in listed(folder)[1]["reason"]
    assert (folder / "s1.h5").exists(), "never overwritten"
    with pytest.raises(ScanError) if kind != "another D" else nullcontext():
        read_features(folder / "s1.h5")
