"""Features of the tiles of whole slides: every tile once through a frozen network, one file per slide."""

from __future__ import annotations

import csv
import json
import logging
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain as joined
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.networks import nets
from monai.transforms import Randomizable
from numpy.typing import NDArray
from rich.progress import Progress
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from monai_pipelines.atomic import remove_old_parts
from monai_pipelines.chains import Chain
from monai_pipelines.data.prepared import why_unusable
from monai_pipelines.data.slide_table import feature_file, slide_source
from monai_pipelines.data.workers import CRASHED, WorkerCrashed, as_is, each_until_crash
from monai_pipelines.errors import ChainMismatchError, CohortError, ScanError
from monai_pipelines.features.files import FeatureBag, read_origin, write_features
from monai_pipelines.inferers import AutocastInferer
from monai_pipelines.networks import TileBackbone
from monai_pipelines.networks.backbone import description_hash
from monai_pipelines.networks.precision import Precision, used_precision
from monai_pipelines.remote import Place, Source, as_place, results_folder, unlink, whole_write
from monai_pipelines.slides import close_slides
from monai_pipelines.versions import library_versions

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Message = tuple[int, str, Any]
NO_CHAIN: dict[str, Any] = {"steps": {}, "versions": {}}
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
    dtype: Literal["float32", "float16"] = "float32",
) -> list[Row]:
    """Features of the tiles of slides, one HDF5 file per slide; existing files are kept.

    Tiles are read in batches by ``num_workers`` processes, each with other slides, while the backbone works; they are
    not stored. Files are written completely or not at all, so an interrupted run continues where it stopped. A file is
    made again if it is damaged, or the slide, or its ``mpp`` in the table, has changed. Files of other tools, which do
    not say what made them, are kept if they fit the backbone. ``features.csv`` in the folder lists the slides of the
    last run with anything to do. Precision and dtype of existing files are not compared; another precision is logged.

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

    Returns:
        a row for each item: ``name``, ``status`` (done, kept, or skipped if even one tile is damaged; in
        ``features.csv`` also missing, after an error), ``reason``, ``num_tiles``, ``seconds``.

    Raises:
        CohortError: features of another chain or backbone in the folder, two slides with the same feature file.
        ValueError: features that are NaN or infinite.
    """
    for argument, value, choices in (
        ("precision", precision, get_args(Precision)),
        ("dtype", dtype, ("float32", "float16")),
    ):
        if value not in choices:
            raise ValueError(f"extract_features: {argument} must be {' or '.join(map(repr, choices))}, got {value!r}")
    if batch_size < 1:
        raise ValueError(f"extract_features: batch_size must be 1 or more, got {batch_size}")
    folder = results_folder(features_dir)
    slides = _by_file(folder, items)
    rows: dict[Place, Row] = {
        file: {**dict.fromkeys(COLUMNS, ""), "name": item["name"], "status": "missing"} for file, item in slides.items()
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    used = used_precision(precision, device.type, gradients=False)
    origin = _Origin(chain, backbone, used)
    todo, precisions = _check_files(folder, slides, rows, origin)
    if len(precisions | ({used} if todo or precision != "auto" else set())) > 1:
        logger.warning("%s: features of precision %s, this run has %s", folder, " and ".join(sorted(precisions)), used)
    try:
        if todo:
            if getattr(backbone, "weights", True) is None:
                logger.warning("%s: no weights given; features are random unless it is pretrained", backbone.name)
            for parent in {file.parent for file in todo}:
                if isinstance(parent, Path):
                    remove_old_parts(parent)
            stream = _TileStream([slides[file] for file in todo], chain, batch_size)
            network = backbone.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            messages = _messages(stream, num_workers, pin_memory=device.type == "cuda")
            with Progress() as bar:
                task = bar.add_task("features", total=len(todo))
                for file, share, row in _extract(messages, todo, network, device, origin, dtype):
                    bar.advance(task, share)
                    rows[file].update(row)
                    if row.get("status") == "skipped":
                        unlink(file)  # features of what the slide was before
    finally:
        if any(row["status"] != "kept" for row in rows.values()):
            with whole_write(folder / "features.csv") as part, part.open("w", newline="", encoding="utf-8") as out:
                writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows.values())
    if num_bad := sum(row["status"] == "skipped" for row in rows.values()):
        logger.warning("%d of %d slides skipped: see %s", num_bad, len(rows), folder / "features.csv")
    return [dict(rows[feature_file(folder, item["name"])]) for item in items]


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


class _Origin:
    """What makes the features, described once: hashing a backbone's weights takes time."""

    def __init__(self, chain: Chain, backbone: TileBackbone, precision: Precision) -> None:
        self.chain, self.backbone, self.precision = chain, backbone.describe(), precision
        self.num_features = backbone.num_features
        self.attributes = {
            "chain_fingerprint": chain.fingerprint(),
            "backbone_fingerprint": description_hash(self.backbone),
            "backbone": json.dumps(self.backbone),
            "chain": json.dumps(chain.describe()),
            "precision": precision,
            "versions": json.dumps(library_versions("torch", "monai")),
        }

    def differences(self, attributes: Mapping[str, Any]) -> list[str]:
        """How the origin of a file differs, as far as its attributes say."""
        different = []
        if attributes.get("backbone_fingerprint") not in (None, self.attributes["backbone_fingerprint"]):
            then = _described(attributes.get("backbone", "{}"))
            different += [
                f"backbone.{key}: {then.get(key)!r} there, {now!r} here"
                for key, now in self.backbone.items()
                if then.get(key) != now
            ]
        if attributes.get("chain_fingerprint") not in (None, self.attributes["chain_fingerprint"]):
            try:
                self.chain.check_same(
                    NO_CHAIN | _described(attributes.get("chain", "{}"))
                )  # library versions may differ
            except ChainMismatchError as error:
                different += error.differences
        return different


def _described(text: str) -> dict[str, Any]:
    """What an attribute describes; nothing if it is damaged."""
    try:
        described = json.loads(text)
    except ValueError:
        return {}
    return described if isinstance(described, dict) else {}


def _check_files(
    folder: Place, slides: Mapping[Place, Mapping[str, Any]], rows: Mapping[Place, Row], origin: _Origin
) -> tuple[list[Place], set[str]]:
    """Fill in the rows of kept and unusable files; the files to make, and the precisions of the kept ones."""
    todo: list[Place] = []
    precisions: set[str] = set()
    different: defaultdict[str, list[Place]] = defaultdict(list)
    for file, item in slides.items():
        try:
            made = read_origin(file, origin.num_features)
        except ScanError as error:
            rows[file].update(status="skipped", reason=why_unusable(error, item["image"]))
            continue
        if made is None:
            if file.exists() and not as_place(item["image"]).exists():
                reason = f"{file.name} is damaged, and the slide to make it again is missing; restore one of them"
                rows[file].update(status="skipped", reason=reason)
                continue
            if file.exists():
                logger.warning("%s: damaged, made again", file)
            todo.append(file)
            continue
        attributes, num_tiles = made
        for difference in origin.differences(attributes):
            different[difference].append(file)
        if not as_place(item["image"]).exists() or attributes.get("source") in (None, slide_source(item)):
            rows[file].update(status="kept", num_tiles=num_tiles)
            precisions.update({attributes["precision"]} if "precision" in attributes else ())
        else:
            todo.append(file)
    if different:
        problems = [f"{len(files)} file(s) such as {files[0].name}: {text}" for text, files in different.items()]
        way_out = "choose another features_dir, delete this one, or use the chain and backbone it was made with"
        raise CohortError(folder, [*problems, way_out])
    return todo, precisions


@dataclass
class _Pending:
    """A slide whose features are not complete yet."""

    bag: FeatureBag
    num_tiles: int
    source: str
    start: float = field(default_factory=time.monotonic)
    features: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def num_done(self) -> int:
        return sum(map(len, self.features))


def _extract(
    messages: Iterable[Message],
    files: Sequence[Place],
    backbone: nn.Module,
    device: torch.device,
    origin: _Origin,
    dtype: str,
) -> Iterator[tuple[Place, float, Row]]:
    """Write the files; yields a file, the share of it that has just been done, and updates for its row."""
    infer, pending = AutocastInferer(origin.precision), dict[int, _Pending]()
    for index, kind, content in messages:
        if kind == "slide":
            pending[index] = _Pending(*content)
        elif kind == "bad":
            slide = pending.pop(index, None)
            done = slide.num_done / slide.num_tiles if slide else 0
            yield files[index], 1 - done, {"status": "skipped", "reason": content}
        else:
            slide, row = pending[index], Row()
            with torch.inference_mode():
                slide.features.append(infer(content.to(device, non_blocking=True), backbone).cpu().numpy())
            if slide.num_done == slide.num_tiles:
                bag = replace(pending.pop(index).bag, features=np.concatenate(slide.features))
                write_features(files[index], bag, {**origin.attributes, "source": slide.source}, dtype)
                seconds = round(time.monotonic() - slide.start, 2)
                row = {"status": "done", "num_tiles": slide.num_tiles, "seconds": seconds}
            yield files[index], len(content) / slide.num_tiles, row


def _messages(stream: _TileStream, num_workers: int, pin_memory: bool) -> Iterator[Message]:
    """The messages about all slides; those in progress when a worker process crashes start again, each alone."""
    left = list(range(len(stream.items)))
    while left:
        planned = tuple(left)
        yield from _until_crash(stream, planned, left, num_workers, pin_memory)
        first_of_worker = [[i for i in planned[k::num_workers] if i in left][:1] for k in range(num_workers)]
        for index in joined.from_iterable(first_of_worker):
            yield from _until_crash(stream, (index,), left, 1, pin_memory)
            if index in left:
                left.remove(index)
                yield index, "bad", CRASHED


def _until_crash(
    stream: _TileStream, planned: tuple[int, ...], left: list[int], num_workers: int, pin_memory: bool
) -> Iterator[Message]:
    """The messages about some slides until a worker process crashes; takes finished ones off `left`."""
    stream.indices, num_tiles = planned, dict[int, int]()
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers, collate_fn=as_is, pin_memory=pin_memory)
    try:
        for index, kind, content in each_until_crash(loader):
            yield index, kind, content
            num_tiles[index] = content[1] if kind == "slide" else num_tiles.get(index, 0) - len(content)
            if kind == "bad" or not num_tiles[index]:
                left.remove(index)
    except WorkerCrashed:
        return


class _TileStream(IterableDataset):
    """For each slide (index, "slide", `_Pending`), then (index, "tiles", batch) or (index, "bad", reason)."""

    def __init__(self, items: Sequence[Mapping[str, Any]], chain: Chain, batch_size: int) -> None:
        self.items, self.batch_size = items, batch_size
        self.indices = tuple(range(len(items)))
        copied = deepcopy(chain)  # the caller's random state stays as it is
        self.plan, self.read = copied.until("tiles"), copied.since("tiles")

    def __iter__(self) -> Iterator[tuple[int, str, Any]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in self.indices[first::step]:
            item = self.items[index]
            try:
                yield from self._slide(index, item)
            except Exception as error:
                yield index, "bad", why_unusable(error, item["image"])
            finally:
                close_slides()

    def _slide(self, index: int, item: Mapping[str, Any]) -> Iterator[tuple[int, str, Any]]:
        if isinstance(self.plan, Randomizable):
            self.plan.set_random_state(seed=zlib.crc32(item["name"].encode()))
        planned = self.plan({"image": item["image"], "mpp": item.get("mpp")})
        source = slide_source(item)
        tiles, tissue = planned["image"], planned["tissue"]
        bag = FeatureBag(
            features=np.empty((0, 0), np.float32),
            coords=tiles.coords,
            level0_px=tiles.size.level0_px,
            tile_px=tiles.size.tile_px,
            mpp=tiles.size.mpp,
            slide_mpp=tiles.slide.mpp,
            slide_size=tiles.slide.size,
            thumbnail=tissue.meta["thumbnail"],
            tissue=tissue[0].numpy().astype(np.uint8),
            downsample=float(tissue.meta["downsample"]),
        )
        yield index, "slide", (bag, len(tiles), source)
        for start in range(0, len(tiles), self.batch_size):
            batch = self.read(tiles[start : start + self.batch_size])
            yield index, "tiles", torch.as_tensor(batch).as_subclass(torch.Tensor)


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
