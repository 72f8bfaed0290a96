"""Many items by workers, clients and shards that are killed at random: the bytes of one process, nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from monai_pipelines import Chain, claims, load_chain
from monai_pipelines.data import PreparedDataset
from monai_pipelines.data.cache import Cache, entries
from tests.cluster import counted, times_made
from tests.features.small_slides import datalist, extract, small_chain
from tests.features.test_extractor import contents as features_of
from tests.new_process import CONTEXT

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.nightly
Item = dict[str, Any]
Fill = Callable[[list[Item], Path, Item], object]
CHAIN = """
steps:
  load: {_target_: monai_pipelines.transforms.LoadCTd, keys: image}
  window: {_target_: monai_pipelines.transforms.WindowHUd, keys: image, window_hu: [-1000, 400]}
"""


def scans(folder: Path, num: int) -> list[Item]:
    folder.mkdir()
    (folder / "small.yaml").write_text(CHAIN)
    items = []
    for number in range(num):
        file = folder / f"{number}.nii"
        hu = np.random.default_rng(number).integers(-1000, 400, (12, 12, 12)).astype(np.int16)
        nib.Nifti1Image(hu, np.diag([-1.0, -1, 1, 1])).to_filename(file)
        items.append({"image": str(file), "name": file.name, "label": 0})
    return items


def chain_beside(items: list[Item]) -> Chain:
    return load_chain(Path(items[0]["image"]).with_name("small.yaml"))


def prepare(items: list[Item], out: Path, options: Item) -> None:
    chain = counted(chain_beside(items), seconds=0.03)
    PreparedDataset(items, chain, out, outputs=["image"], **options)


def featurise(items: list[Item], out: Path, options: Item) -> None:
    assert set(extract(items, out, chain=counted(small_chain(), seconds=0.1), **options)) <= {"done", "kept"}


def prepared_in(out: Path) -> dict[str, bytes]:
    cache = Cache(out)
    assert all(cache.read(file) is not None for file in entries(out) if file.suffix == ".entry")
    return {file.name: file.read_bytes() for file in out.glob("*.entry")}


@contextmanager
def dask_workers(folder: Path, num: int) -> Iterator[str]:
    """Address of a scheduler whose workers are started again when they die."""
    (folder / "dask").mkdir()
    dask = [sys.executable, "-m", "dask"]
    file = str(folder / "dask" / "scheduler.json")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet: Item = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder / "dask"}
    start = [*dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", file]
    processes = [subprocess.Popen(start, **quiet)]
    start = [*dask, "worker", "--nthreads", "1", "--no-dashboard", "--scheduler-file", file]
    processes += [subprocess.Popen(start, **quiet) for _ in range(num)]
    try:
        while not Path(file).exists():
            time.sleep(0.1)
        time.sleep(1)
        yield json.loads(Path(file).read_text())["address"]
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            process.wait()


def working(out: Path, draw: random.Random) -> int | None:
    """A process in the middle of an item."""
    held = [claim for claim in sorted(out.glob("*.claim?")) if not claims._is_abandoned(claim)]
    text = claims._text(draw.choice(held)) if held else None
    return int(text.rpartition(" ")[2].partition(":")[0]) if text else None


@pytest.mark.parametrize(
    ("make", "num", "fill", "found"),
    [(scans, 2000, prepare, prepared_in), (datalist, 300, featurise, features_of)],
    ids=["scans", "slides"],
)
def test_fifty_killed_workers_and_a_killed_client(
    make: Callable[[Path, int], list[Item]], num: int, fill: Fill, found: Callable, tmp_path: Path
) -> None:
    items, draw, kills = make(tmp_path / "items", num), random.Random(0), 0
    fill(items, tmp_path / "alone", {})
    before = times_made(tmp_path)
    start = time.monotonic()
    with dask_workers(tmp_path, 4) as scheduler:
        client_killed = False
        client = CONTEXT.Process(target=fill, args=(items, tmp_path / "out", {"scheduler": scheduler}))
        client.start()
        while client.is_alive():
            time.sleep(draw.uniform(0.2, 1.2))
            pid = working(tmp_path / "out", draw)
            if kills < 50 and pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
            if not client_killed and kills >= 10:
                client.kill()
                client.join()
                client_killed = True
                client = CONTEXT.Process(target=fill, args=(items, tmp_path / "out", {"scheduler": scheduler}))
                client.start()
        if client.exitcode:  # items that were hit three times: the next run tries them again
            client = CONTEXT.Process(target=fill, args=(items, tmp_path / "out", {"scheduler": scheduler}))
            client.start()
            client.join()
        assert client.exitcode == 0
    twice = sum(times_made(tmp_path).values()) - sum(before.values()) - num
    print(
        f"{num} items, {kills} kills, client killed: {client_killed}, made again: {twice}, "
        f"{time.monotonic() - start:.0f} s, parts left: {len(list((tmp_path / 'out').glob('*.part')))}"
    )
    assert found(tmp_path / "out") == found(tmp_path / "alone")
    assert kills == 50
    assert client_killed
    assert kills / 2 <= twice <= kills, "those that were killed in the middle, and no other"


def test_killed_shards(tmp_path: Path) -> None:
    items, draw, kills = scans(tmp_path / "items", 400), random.Random(0), 0
    prepare(items, tmp_path / "alone", {})
    before = times_made(tmp_path)

    def start(shard: int) -> Any:
        options = {"shard": f"{shard}/3", "num_workers": 0}
        process = CONTEXT.Process(target=prepare, args=(items, tmp_path / "out", options))
        process.start()
        return process

    jobs = {shard: start(shard) for shard in (1, 2, 3)}
    while jobs:
        time.sleep(draw.uniform(0.3, 1))
        if kills < 10:
            shard = draw.choice(list(jobs))
            jobs[shard].kill()
            kills += 1
        for shard, job in list(jobs.items()):
            if not job.is_alive():
                job.join()
                if job.exitcode == 0:
                    del jobs[shard]
                else:
                    jobs[shard] = start(shard)
    twice = sum(times_made(tmp_path).values()) - sum(before.values()) - len(items)
    print(f"{len(items)} items in 3 shards, {kills} kills, made again: {twice}")
    assert prepared_in(tmp_path / "out") == prepared_in(tmp_path / "alone")
    assert kills == 10
    assert 0 <= twice <= kills
