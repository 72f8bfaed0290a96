"""Features made by the workers of a cluster, in shards, and by several runs at once: the same values, once."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import h5py
import pytest
from distributed import LocalCluster

from monai_pipelines.claims import DEADLY
from monai_pipelines.data.progress import read_progress
from monai_pipelines.features import FeatureBags
from tests.cluster import counted, times_made
from tests.features.small_slides import datalist, extract, listed, names, small_backbone, small_chain, spoil
from tests.new_process import CONTEXT

Item = dict[str, Any]


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    return datalist(tmp_path / "slides", 6)


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Datasets and attributes; their places in a file depend on when HDF5 objects are freed."""
    found: dict[str, dict[str, Any]] = {}
    for file in folder.glob("*.h5"):
        with h5py.File(file) as opened:
            found[file.name] = {key: array[:].tobytes() for key, array in opened.items()}
            for part in (opened, *opened.values()):
                found[file.name] |= {f"{part.name}@{key}": repr(value) for key, value in part.attrs.items()}
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_as_by_one_process(
    two_workers: LocalCluster, items: list[Item], tmp_path: Path, num_workers: int
) -> None:
    spoil("text", Path(items[4]["image"]))
    options = {"scheduler": two_workers.scheduler_address, "num_workers": num_workers, "batch_size": 7}
    wanted = ["done"] * 4 + ["skipped", "done"]
    assert extract(items, tmp_path / "here", batch_size=7) == wanted
    assert extract(items, tmp_path / "there", **options) == wanted
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert names(tmp_path / "there") == names(tmp_path / "here")
    (reason,) = (row["reason"] for row in listed(tmp_path / "there") if row["status"] == "skipped")
    ((found,),) = read_progress(tmp_path / "there")
    assert (found.planned, found.done, found.unusable, found.state) == (6, 5, {"s4.tif": reason}, "finished")
    kept = ["kept"] * 4 + ["skipped", "kept"]
    assert extract(items, tmp_path / "there", **options) == kept


def test_shards_make_all_together(items: list[Item], tmp_path: Path) -> None:
    extract(items, tmp_path / "whole")
    for shard in ("1/2", "2/2"):
        assert extract(items, tmp_path / "f", shard=shard) == ["done"] * 3
    assert contents(tmp_path / "f") == contents(tmp_path / "whole")
    assert {"features-1of2.csv", "features-2of2.csv"} < names(tmp_path / "f")
    bags = FeatureBags(items, small_chain(), small_backbone(), tmp_path / "f", shard="2/2", precision="fp32")
    assert [item["name"] for item in bags.data] == ["s1.tif", "s3.tif", "s5.tif"]


def _extract(items: list[Item], folder: Path, options: Item) -> None:
    statuses = extract(items, folder, chain=counted(small_chain(), seconds=0.1), **options)
    assert set(statuses) <= {"done", "kept"}


def test_several_runs_make_each_slide_once(two_workers: LocalCluster, items: list[Item], tmp_path: Path) -> None:
    choices: list[Item] = [{"scheduler": two_workers.scheduler_address}, {"num_workers": 2}, {"num_workers": 0}]
    runs = [CONTEXT.Process(target=_extract, args=(items, tmp_path / "f", options)) for options in choices]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert set(times_made(tmp_path).values()) == {1}
    extract(items, tmp_path / "whole")
    assert contents(tmp_path / "f") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_slide_that_kills_three_workers_is_skipped(
    two_workers: LocalCluster, items: list[Item], tmp_path: Path
) -> None:
    options = {"scheduler": two_workers.scheduler_address, "chain": counted(small_chain(), deadly="s2.tif")}
    statuses = extract(items, tmp_path / "f", **options)
    assert [n for n, status in enumerate(statuses) if status == "skipped"] == [2]
    assert listed(tmp_path / "f")[2]["reason"] == DEADLY
    assert times_made(tmp_path) == {f"s{n}": 3 if n == 2 else 1 for n in range(6)}
    assert not list(tmp_path.glob("f/*.claim*")), "the next run tries again"


def test_workers_choose_their_device(two_workers: LocalCluster, items: list[Item], tmp_path: Path) -> None:
    """Not the client, which may have another one."""
    sent: list[bytes] = []

    dump = pickle.dumps

    def dumps(content: Any) -> bytes:
        sent.append(dump(content))
        return sent[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("monai_pipelines.data.cluster.pickle.dumps", dumps)
        extract(items, tmp_path / "f", scheduler=two_workers.scheduler_address)
    _, _, extractor = pickle.loads(sent[0])
    assert not {"device", "precision", "network"} & vars(extractor).keys()


def test_results_want_a_folder(items: list[Item]) -> None:
    with pytest.raises(ValueError, match="with a scheduler wanted a features_dir"):
        FeatureBags(items, small_chain(), small_backbone(), scheduler="tcp://127.0.0.1:9")
