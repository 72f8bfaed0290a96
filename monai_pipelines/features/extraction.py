"""Features of the tiles of whole slides: every tile once through a frozen network, one file per slide."""

from __future__ import annotations

import csv
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch
from monai.bundle import ConfigParser
from monai.networks import nets
from rich.progress import Progress

from monai_pipelines.atomic import remove_old_parts
from monai_pipelines.chains import Chain
from monai_pipelines.claims import DEADLY, release, release_held, remove_old_claims
from monai_pipelines.data.progress import RunRecord
from monai_pipelines.data.shards import share_of
from monai_pipelines.data.slide_table import feature_file
from monai_pipelines.data.workers import CRASHED, PAUSE_S, each_outcome
from monai_pipelines.errors import CohortError
from monai_pipelines.features.extractor import Dtype, Extractor
from monai_pipelines.features.origin import Origin, Row, check_files
from monai_pipelines.features.tile_stream import Item, read_messages
from monai_pipelines.networks import TileBackbone
from monai_pipelines.networks.precision import Precision
from monai_pipelines.remote import Place, Source, results_folder, unlink, whole_write

logger = logging.getLogger(__name__)

ARGUMENTS: dict[str, dict[str, Any]] = {  # of the networks of the literature
    "resnet": {"n_input_channels": 3, "conv1_t_stride": 2, "bias_downsample": False},
    "densenet": {"in_channels": 3, "out_channels": 1},
}
COLUMNS = ("name", "status", "reason", "num_tiles", "seconds")


def extract_features(
    items: Sequence[Mapping[str, Any]],
    features_dir: Source,
    chain: Chain,
    backbone: TileBackbone,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
    precision: Precision = "auto",
    dtype: Dtype = "float32",
    scheduler: str | None = None,
    shard: str | None = None,
) -> list[Row]:
    """Features of the tiles of slides, one HDF5 file per slide; existing files are kept.

    Tiles are read in batches by ``num_workers`` processes, each with other slides, while the backbone works; they are
    not stored. Files are written completely or not at all, so an interrupted run continues where it stopped. A file is
    made again if it is damaged, or the slide, or its ``mpp`` in the table, has changed. Files of other tools, which do
    not say what made them, are kept if they fit the backbone. ``features.csv`` in the folder lists the slides of the
    last run with anything to do; each shard has its own, as ``features-2of8.csv``. Precision and dtype of existing
    files are not compared; another precision is logged.

    The names of the slides become file names and appear in ``features.csv``: use pseudonyms.

    Args:
        items: datalist: ``image`` (path of the slide), ``name``, and ``mpp`` where the slide has none. Equal items are
            one slide.
        features_dir: folder of the files, or its URL, see `feature_file`.
        chain: slide -> tiles, with the steps of ``slide_tiles``: before "tiles" it lists them, then it reads them.
        backbone: moved to the GPU if there is one.
        batch_size: tiles.
        num_workers: processes that read.
        precision: of the backbone: "bf16", "fp32", or "auto": bf16 where it is faster for a frozen network.
        dtype: of the features in the file: "float32" or "float16".
        scheduler: address of a Dask scheduler; each of its workers then makes whole slides, on its GPU if it sees one,
            and reads them by ``num_workers`` threads. See `monai_pipelines.data.cluster.on_cluster`.
        shard: "i/n": only this share of ``items``, see `share_of`.

    Returns:
        a row for each item of the share: ``name``, ``status`` (done, kept, or skipped if even one tile is damaged; in
        ``features.csv`` also missing, after an error), ``reason``, ``num_tiles``, ``seconds``.

    Raises:
        CohortError: features of another chain or backbone in the folder, two slides with the same feature file.
        ValueError: features that are NaN or infinite.
    """
    for argument, value, choices in (
        ("precision", precision, get_args(Precision)),
        ("dtype", dtype, get_args(Dtype)),
    ):
        if value not in choices:
            raise ValueError(f"extract_features: {argument} must be {' or '.join(map(repr, choices))}, got {value!r}")
    if batch_size < 1:
        raise ValueError(f"extract_features: batch_size must be 1 or more, got {batch_size}")
    folder = results_folder(features_dir)
    every, mine = _by_file(folder, items), share_of(items, shard)
    slides = {file: every[file] for file in (feature_file(folder, item["name"]) for item in mine)}
    rows: dict[Place, Row] = {
        file: {**dict.fromkeys(COLUMNS, ""), "name": item["name"], "status": "missing"} for file, item in slides.items()
    }
    origin = Origin(chain, backbone)
    todo, precisions = check_files(folder, slides, rows, origin)
    extractor = Extractor(
        folder,
        chain,
        backbone,
        origin,
        batch_size=batch_size,
        precision=precision,
        dtype=dtype,
        num_threads=max(1, num_workers),
    )
    if not scheduler:  # otherwise each worker chooses
        used = extractor.precision
        if len(precisions | ({used} if todo or precision != "auto" else set())) > 1:
            then = " and ".join(sorted(precisions))
            logger.warning("%s: features of precision %s, this run has %s", folder, then, used)
    names = [item["name"] for item in items]
    made_by = [origin.attributes[f"{part}_fingerprint"] for part in ("chain", "backbone")]
    try:
        with RunRecord(folder, names, made_by, shard) as record:
            for row in rows.values():
                if row["status"] != "missing":
                    record.add(row["name"], row["reason"])
            if todo and getattr(backbone, "weights", True) is None:
                logger.warning("%s: no weights given; features are random unless it is pretrained", backbone.name)
            for parent in {file.parent for file in todo}:
                if isinstance(parent, Path):
                    parent.mkdir(parents=True, exist_ok=True)
                    remove_old_parts(parent)
                    remove_old_claims(parent)
            made = [slides[file] for file in todo]
            if scheduler:
                updates = _on_cluster(extractor, made, todo, scheduler, record)
            else:
                updates = _locally(extractor, made, todo, num_workers, record)
            for file, row in updates:
                rows[file].update(row)
                if row["status"] == "skipped":
                    unlink(file)  # features of what the slide was before
                if row.get("reason") in (DEADLY, CRASHED):
                    release(file)
    finally:
        if any(row["status"] != "kept" for row in rows.values()):
            table = folder / (f"features-{shard.replace('/', 'of')}.csv" if shard else "features.csv")
            with whole_write(table) as part, part.open("w", newline="", encoding="utf-8") as out:
                writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows.values())
    if num_bad := sum(row["status"] == "skipped" for row in rows.values()):
        logger.warning("%d of %d slides skipped: see %s", num_bad, len(rows), table)
    return [dict(rows[feature_file(folder, item["name"])]) for item in mine]


def _locally(
    extractor: Extractor, items: Sequence[Item], files: Sequence[Place], num_workers: int, record: RunRecord
) -> Iterator[tuple[Place, Row]]:
    """Finished files and updates for their rows; those that other processes make come last."""
    slides, left = dict(zip(files, items, strict=True)), list(files)
    try:
        with Progress() as bar:
            task = bar.add_task("features", total=len(files))
            while left:
                claimed, stream = list[Place](), extractor.stream([slides[file] for file in left], left)
                with closing(read_messages(stream, num_workers, extractor.device.type == "cuda")) as messages:
                    for file, share, row in extractor.extract(messages, left):
                        if row.get("status") == "claimed":
                            claimed.append(file)
                            continue
                        bar.advance(task, share)
                        if row:
                            record.add(slides[file]["name"], row.get("reason"))
                            yield file, row
                left = claimed
                time.sleep(PAUSE_S if left else 0)
    except BaseException:
        for file in left:
            release_held(file)
        raise


def _on_cluster(
    extractor: Extractor, items: Sequence[Item], files: Sequence[Place], scheduler: str, record: RunRecord
) -> Iterator[tuple[Place, Row]]:
    outcomes = each_outcome(extractor, items, "features", scheduler=scheduler, record=record)
    for file, (row, reason) in zip(files, outcomes, strict=True):
        yield file, row or {"status": "skipped", "reason": reason}


def _by_file(folder: Place, items: Sequence[Mapping[str, Any]]) -> dict[Place, Mapping[str, Any]]:
    """The slides by feature file; equal items are one."""
    slides: dict[Place, Mapping[str, Any]] = {}
    texts: defaultdict[Place, set[str]] = defaultdict(set)
    for item in items:
        file = feature_file(folder, item["name"])
        slides.setdefault(file, item)
        mpp = f" with mpp {item['mpp']}" if item.get("mpp") else ""
        texts[file].add(f"{item['name']} ({item['image']}{mpp})")
    shared = [f"{file} would belong to {' and '.join(sorted(text))}" for file, text in texts.items() if len(text) > 1]
    if shared:
        raise CohortError(folder, [*shared, "rename the slides"])
    return slides


def read_backbone(source: str | PathLike[str], weights: str | PathLike[str] | None = None) -> TileBackbone:
    """The backbone that the command line names.

    Args:
        source: a 2D ResNet or DenseNet of `monai.networks.nets` ("resnet18", "resnet50", "densenet121", ...), or a YAML
            file whose entry ``backbone`` makes a `TileBackbone` of any network. Such files run code.
        weights: of the named network, see `TileBackbone`; None: random, always the same.

    Raises:
        KeyError: no such network, or a file without the entry.
        ValueError: both a file and weights.

    Example:
        >>> read_backbone("densenet121").num_features
        1024
    """
    if Path(source).suffix in (".yaml", ".yml", ".json"):
        if weights is not None:
            raise ValueError(f"read_backbone: the weights of {source} belong in the file, got {weights} as well")
        parser = ConfigParser()
        parser.read_config(str(source))
        if "backbone" not in parser:
            raise KeyError(f"read_backbone: {source} has no entry backbone, it has {', '.join(parser.get())}")
        return parser.get_parsed_content("backbone")
    name = str(source)
    family = name.rstrip("0123456789")
    make = getattr(nets, name, None) if family in ARGUMENTS else None
    if make is None:
        wanted = [n for n in dir(nets) if n[-1:].isdigit() and n.rstrip("0123456789") in ARGUMENTS]
        raise KeyError(f"read_backbone: no network {name!r}; wanted a YAML file or one of {', '.join(wanted)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make(spatial_dims=2, **ARGUMENTS[family])
    return TileBackbone(network, weights, name=name)
