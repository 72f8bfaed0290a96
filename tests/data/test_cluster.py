"""Items on a Dask cluster of real processes: outcomes as here, whatever dies, is missing or is full."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from PIL import Image

from monai_pipelines import Chain, load_chain
from monai_pipelines.claims import DEADLY
from monai_pipelines.data import PreparedDataset, cluster
from monai_pipelines.data.cache import Cache, entries
from monai_pipelines.data.progress import read_progress
from monai_pipelines.data.workers import each_outcome
from tests.cluster import (
    CountsItsCopies,
    counted,
    kill_at_three,
    missing_package,
    number_and_process,
    small_cluster,
    times_made,
)
from tests.new_process import CONTEXT

Item = dict[str, Any]


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Twelve images of different content."""
    (tmp_path / "images").mkdir()
    for number in range(12):
        levels = np.random.default_rng(number).integers(0, 255, (40, 50), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / "images" / f"{number}.png")
    return [{"image": str(tmp_path / "images" / f"{n}.png"), "name": f"{n}.png", "label": 0} for n in range(12)]


def counted_chain(**options: Any) -> Chain:
    return counted(load_chain("image2d", size=[16, 16]), **options)


def prepare(items: list[Item], cache: Path, chain: Chain | None = None, **options: Any) -> PreparedDataset:
    return PreparedDataset(items, chain or counted_chain(), cache, outputs=["image"], on_error="skip", **options)


def contents(cache: Path) -> dict[str, bytes]:
    """All that a run leaves, but its record."""
    return {file.name: file.read_bytes() for file in cache.iterdir() if not file.name.startswith("progress-")}


def numbers(num: int) -> list[Item]:
    return [{"number": number, "bad": number % 7 == 5} for number in range(num)]


def test_outcomes_come_in_order(two_workers: LocalCluster) -> None:
    outcomes = list(each_outcome(number_and_process, numbers(500), "", scheduler=two_workers.scheduler_address))
    wanted = list(each_outcome(number_and_process, numbers(500), ""))
    assert [reason for _, reason in outcomes] == [reason for _, reason in wanted]
    assert [result and result[0] for result, _ in outcomes] == [result and result[0] for result, _ in wanted]
    processes = {result[1] for result, _ in outcomes if result}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_work_is_sent_to_each_worker_once(two_workers: LocalCluster, tmp_path: Path) -> None:
    work = CountsItsCopies(tmp_path)
    list(each_outcome(work, numbers(2000), "", scheduler=two_workers.scheduler_address))
    assert sorted(file.name.partition("-")[0] for file in tmp_path.iterdir()) == sorted(
        map(str, Client(two_workers).run(os.getpid).values())
    )


def test_never_many_tasks_at_a_time(two_workers: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted, most = Client.submit, [0]

    def submit(client: Client, *arguments: Any, **options: Any) -> Any:
        most[0] = max(most[0], len(client.futures))
        return submitted(client, *arguments, **options)

    monkeypatch.setattr(Client, "submit", submit)
    list(each_outcome(number_and_process, numbers(5000), "", scheduler=two_workers.scheduler_address))
    assert 2 <= most[0] <= 1 + cluster._LEAST_TASKS


def test_prepared_as_by_one_process(two_workers: LocalCluster, items: list[Item], tmp_path: Path) -> None:
    (tmp_path / "images" / "12.png").write_bytes(b"no image")
    items.append({**items[0], "image": str(tmp_path / "images" / "12.png"), "name": "12.png"})
    here = prepare(items, tmp_path / "here")
    there = prepare(items, tmp_path / "there", scheduler=two_workers.scheduler_address)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert (here.data, here.skipped) == (there.data, there.skipped)
    assert [shards[0].unusable for shards in read_progress(tmp_path / "there")] == [
        {item["name"]: item["skipped"] for item in there.skipped}
    ]


def test_paths_are_relative_to_the_folder_of_the_client(
    two_workers: LocalCluster, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = [{**item, "image": os.path.relpath(item["image"])} for item in items]
    assert len(prepare(relative, Path("cache"), scheduler=two_workers.scheduler_address)) == 12
    assert len(list(entries("cache"))) == 12


@pytest.mark.slow
def test_killed_workers_lose_nothing(two_workers: LocalCluster, items: list[Item], tmp_path: Path) -> None:
    prepare(items, tmp_path / "here")
    before = times_made(tmp_path)
    ended, kills = threading.Event(), list[int]()

    def kill() -> None:
        with Client(two_workers) as client:
            while len(kills) < 3 and not ended.wait(0.7):
                for pid in list(client.run(os.getpid).values())[:1]:
                    os.kill(pid, signal.SIGKILL)
                    kills.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    chain = counted_chain(seconds=0.4)
    dataset = prepare(items, tmp_path / "there", chain, scheduler=two_workers.scheduler_address)
    ended.set()
    killer.join()
    assert len(dataset) == 12
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    again = sum(times_made(tmp_path)[name] - before[name] for name in before) - 12
    assert kills
    assert 0 <= again <= len(kills), "only those in progress at a kill"


@pytest.mark.slow
def test_an_item_that_kills_three_workers_is_unusable(
    two_workers: LocalCluster, items: list[Item], tmp_path: Path
) -> None:
    chain = counted_chain(deadly="5.png")
    dataset = prepare(items, tmp_path / "cache", chain, scheduler=two_workers.scheduler_address)
    assert [(item["name"], item["skipped"]) for item in dataset.skipped] == [("5.png", DEADLY)]
    assert times_made(tmp_path) == {f"{n}": 3 if n == 5 else 1 for n in range(12)}
    assert len(contents(tmp_path / "cache")) == 11, "the next run tries again"


@pytest.mark.slow
def test_work_without_files_that_kills_its_workers() -> None:
    """Items beside it go on, one by one."""
    with small_cluster(allowed_failures=0) as running:
        outcomes = list(each_outcome(kill_at_three, numbers(40), "", scheduler=running.scheduler_address))
    assert [result for result, _ in outcomes] == [None if n == 3 else n for n in range(40)]
    assert outcomes[3][1] == cluster.KILLS.format(1)


def test_a_missing_package_stops_the_run(two_workers: LocalCluster) -> None:
    with pytest.raises(ImportError, match="decoder"):
        list(each_outcome(missing_package, numbers(5), "", scheduler=two_workers.scheduler_address))


def test_a_full_disk_stops_the_run(two_workers: LocalCluster, items: list[Item], tmp_path: Path) -> None:
    """As a limit of the size of files, which is counted as one."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Client(two_workers) as client:
        client.run(resource.setrlimit, resource.RLIMIT_FSIZE, (500, unlimited[1]))
        try:
            with pytest.raises(OSError, match=r"no space left on .*cache: .* MB needed"):
                prepare(items, tmp_path / "cache", scheduler=two_workers.scheduler_address)
        finally:
            client.run(resource.setrlimit, resource.RLIMIT_FSIZE, unlimited)
    cache = Cache(tmp_path / "cache")  # the other worker may have gone on with its item
    assert all(cache.read(file) is not None for file in cache.folder.glob("*.entry"))
    assert len(prepare(items, tmp_path / "cache", scheduler=two_workers.scheduler_address)) == 12


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.5)
    with pytest.raises(OSError, match=r"tcp://127.0.0.1:9: no Dask scheduler answers within 0.5 s"):
        list(each_outcome(number_and_process, numbers(5), "", scheduler="tcp://127.0.0.1:9"))
    with pytest.raises(OSError, match="nonsense: no Dask scheduler"):
        list(each_outcome(number_and_process, numbers(5), "", scheduler="nonsense"))


def test_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"pip install 'monai_pipelines\[cluster\]'"):
        list(each_outcome(number_and_process, numbers(5), "", scheduler="tcp://127.0.0.1:9"))


def test_workers_want_the_same_versions_and_folders(
    two_workers: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(cluster, "_versions", lambda: {"monai_pipelines": "0.0.1"})
        with pytest.raises(RuntimeError, match=r"a worker on .* has .*monai_pipelines .* instead of 0\.0\.1"):
            list(each_outcome(number_and_process, numbers(5), "", scheduler=two_workers.scheduler_address))
    monkeypatch.setattr(os, "getcwd", lambda: "/only/here")
    with pytest.raises(FileNotFoundError, match="does not see /only/here"):
        list(each_outcome(number_and_process, numbers(5), "", scheduler=two_workers.scheduler_address))


def test_results_want_a_folder(items: list[Item]) -> None:
    with pytest.raises(ValueError, match="with a scheduler wanted a cache_dir"):
        PreparedDataset(items, counted_chain(), scheduler="tcp://127.0.0.1:9")


def _prepare_beside(items: list[Item], cache: Path, options: Item) -> None:
    assert len(prepare(items, cache, counted_chain(seconds=0.05), **options)) == 12


def test_several_runs_in_one_folder_make_each_item_once(
    two_workers: LocalCluster, items: list[Item], tmp_path: Path
) -> None:
    choices: list[Item] = [{"scheduler": two_workers.scheduler_address}, {"num_workers": 2}, {"num_workers": 0}]
    runs = [CONTEXT.Process(target=_prepare_beside, args=(items, tmp_path / "cache", options)) for options in choices]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert set(times_made(tmp_path).values()) == {1}
    assert len(contents(tmp_path / "cache")) == 12


def test_a_killed_client_leaves_nothing_half_written(
    two_workers: LocalCluster, items: list[Item], tmp_path: Path
) -> None:
    options = {"scheduler": two_workers.scheduler_address}
    client = CONTEXT.Process(target=_prepare_beside, args=(items, tmp_path / "there", options))
    client.start()
    while not (tmp_path / "there").is_dir() or len(list((tmp_path / "there").glob("*.entry"))) < 2:
        time.sleep(0.01)
    client.kill()
    client.join()
    prepare(items, tmp_path / "there", **options)
    made = times_made(tmp_path)
    assert max(made.values()) <= 2
    prepare(items, tmp_path / "here")
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
