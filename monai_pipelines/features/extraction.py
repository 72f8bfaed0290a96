"""Features of the tiles of whole slides: every tile once through a frozen network, one file for each slide."""

from __future__ import annotations

import csv
import json
import logging
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.networks import nets
from numpy.typing import NDArray
from rich.progress import Progress
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from monai_pipelines import __version__
from monai_pipelines.chains import Chain
from monai_pipelines.data.prepared import as_is, why_unusable
from monai_pipelines.data.slide_table import feature_file, slide_source
from monai_pipelines.errors import ChainMismatchError, CohortError, ScanError
from monai_pipelines.features.files import FeatureBag, look_into, remove_old_parts, write_features, written_whole
from monai_pipelines.inferers import AutocastInferer, Precision, fast_bf16
from monai_pipelines.networks import TileBackbone
from monai_pipelines.slides import Tiles, close_slides

logger = logging.getLogger(__name__)

Row = dict[str, Any]
NO_CHAIN = '{"steps": {}, "versions": {}}'
ARGUMENTS: dict[str, dict[str, Any]] = {  # of the networks of the literature
    "resnet": {"n_input_channels": 3, "conv1_t_stride": 2, "bias_downsample": False},
    "densenet": {"in_channels": 3, "out_channels": 1},
}
COLUMNS = ("name", "status", "reason", "num_tiles", "seconds")


def extract_features(
    items: Sequence[Mapping[str, Any]],
    features_dir: str | PathLike[str],
    chain: Chain,
    backbone: TileBackbone,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
    precision: Precision = "auto",
    dtype: Literal["float32", "float16"] = "float32",
    on_error: Literal["raise", "skip"] = "skip",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> list[Row]:
    """Features of the tiles of slides, one HDF5 file for each slide; a slide whose file is there is left alone.

    Tiles are read in batches and never kept, by ``num_workers`` processes that each take slides of their own, while the
    backbone works. A file appears whole or not at all, so that a run that was cut off goes on where it stopped. A file
    is made anew when the slide, or its ``mpp`` in the table, changed. Files of other tools, which do not tell what made
    them, are kept if they fit the backbone. ``features.csv`` in the folder lists the slides of the last run that had
    something to do. Precision and dtype of what is there are not compared: another precision is logged.

    The names of the slides are those of the files and stand in ``features.csv``: name slides by pseudonyms.

    Args:
        items: datalist: ``image`` (path of the slide), ``name``, and ``mpp`` where the slide does not tell. Equal ones
            are one slide.
        features_dir: folder of the files, see `feature_file`.
        chain: slide -> tiles, with the steps of ``slide_tiles``: up to "tiles" it lists them, then it reads them.
        backbone: moved to the device.
        batch_size: tiles.
        num_workers: processes that read.
        precision: of the backbone: "bf16", "fp32", or "auto": bf16 where it is faster for a frozen network.
        dtype: of the features in the file: "float32" or "float16".
        on_error: "skip" a slide that cannot be used, also when a tile in its middle is damaged, or "raise" one
            `CohortError` that lists all of them, after the others are done.
        device: None: CUDA where there is one.
        progress: show a bar.

    Returns:
        a row for each item: ``name``, ``status`` (done, kept, skipped; missing in the ``features.csv`` of a run that an
        error ended), ``reason``, ``num_tiles``, ``seconds``.

    Raises:
        CohortError: features of another chain or backbone in the folder, two slides whose features would be one file,
            bad slides under "raise".
        ValueError: features that are NaN or infinite.
    """
    for argument, given, known in (
        ("precision", precision, get_args(Precision)),
        ("dtype", dtype, ("float32", "float16")),
        ("on_error", on_error, ("raise", "skip")),
    ):
        if given not in known:
            raise ValueError(f"extract_features: {argument} must be {' or '.join(map(repr, known))}, got {given!r}")
    if batch_size < 1:
        raise ValueError(f"extract_features: batch_size must be 1 or more, got {batch_size}")
    folder = Path(features_dir)
    slides = _by_file(folder, items)
    rows: dict[Path, Row] = {
        file: {**dict.fromkeys(COLUMNS, ""), "name": item["name"], "status": "missing"} for file, item in slides.items()
    }
    origin = _Origin(chain, backbone)
    todo, outdated, precisions = _look(folder, slides, rows, origin)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    bf16 = precision == "bf16" or (precision == "auto" and fast_bf16(device.type, gradients=False))
    own: Precision = "bf16" if bf16 else "fp32"
    if len(precisions | ({own} if todo or precision != "auto" else set())) > 1:
        logger.warning("%s: features of precision %s, this run has %s", folder, " and ".join(sorted(precisions)), own)
    try:
        if todo:
            if getattr(backbone, "weights", True) is None:
                logger.warning("%s was given no weights: unless it brings its own, features are random", backbone.name)
            run = _Extraction(origin, backbone, batch_size, own, dtype, device)
            for parent in {file.parent for file in todo}:
                remove_old_parts(parent)
            with Progress(disable=not progress) as bar:
                task = bar.add_task("features", total=len(todo))
                for number, share, row in run([slides[file] for file in todo], todo, num_workers):
                    bar.advance(task, share)
                    file = todo[number]
                    rows[file].update(row)
                    if row.get("status") == "skipped" and file in outdated:
                        file.unlink(missing_ok=True)
    finally:
        if any(row["status"] != "kept" for row in rows.values()):
            _write_rows(folder / "features.csv", rows.values())
    bad = [f"{row['name']}: {row['reason']}" for row in rows.values() if row["status"] == "skipped"]
    if bad and on_error == "raise":
        raise CohortError(f"{len(bad)} of {len(rows)} slides cannot be used", bad)
    if bad:
        logger.warning("%d of %d slides skipped: see %s", len(bad), len(rows), folder / "features.csv")
    return [dict(rows[feature_file(folder, item["name"])]) for item in items]


def _by_file(folder: Path, items: Sequence[Mapping[str, Any]]) -> dict[Path, Mapping[str, Any]]:
    """The slides by the files of their features; equal items are one."""
    slides: dict[Path, Mapping[str, Any]] = {}
    told: dict[Path, set[str]] = {}
    for item in items:
        file = feature_file(folder, item["name"])
        slides.setdefault(file, item)
        mpp = f" with mpp {item['mpp']}" if item.get("mpp") else ""
        told.setdefault(file, set()).add(f"{item['name']} ({item['image']}{mpp})")
    shared = [f"{file} would hold those of {' and '.join(sorted(own))}" for file, own in told.items() if len(own) > 1]
    if shared:
        raise CohortError(folder, [*shared, "rename the slides"])
    return slides


def _write_rows(file: Path, rows: Iterable[Row]) -> None:
    with written_whole(file) as part, part.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


class _Origin:
    """What makes features; described once, for the weights of a backbone are many."""

    def __init__(self, chain: Chain, backbone: TileBackbone) -> None:
        self.chain, self.chain_fingerprint = chain, chain.fingerprint()
        self.backbone, self.backbone_fingerprint = backbone.describe(), backbone.fingerprint()
        self.num_features = backbone.num_features

    def differences(self, about: Mapping[str, Any]) -> list[str]:
        """How a file was made otherwise; one that does not tell does not differ."""
        found = []
        if about.get("backbone_fingerprint", self.backbone_fingerprint) != self.backbone_fingerprint:
            then = json.loads(about.get("backbone", "{}"))
            found += [
                f"backbone.{key}: {then.get(key)!r} there, {now!r} here"
                for key, now in self.backbone.items()
                if then.get(key) != now
            ]
        if about.get("chain_fingerprint", self.chain_fingerprint) != self.chain_fingerprint:
            try:
                self.chain.check_same(json.loads(about.get("chain", NO_CHAIN)))  # other library versions alone are fine
            except ChainMismatchError as error:
                found += error.differences
        return found


class _Found(NamedTuple):
    """What lies in the folder: files that must be made, those of them that are of an earlier slide, and how."""

    todo: list[Path]
    outdated: set[Path]
    precisions: set[str]


def _look(folder: Path, slides: Mapping[Path, Mapping[str, Any]], rows: Mapping[Path, Row], origin: _Origin) -> _Found:
    """Fill in the rows of the slides that are done or of no use, and tell which are not done."""
    found = _Found([], set(), set())
    others: Counter[str] = Counter()
    example: dict[str, Path] = {}
    for file, item in slides.items():
        try:
            there = look_into(file, origin.num_features)
        except ScanError as error:
            rows[file].update(status="skipped", reason=why_unusable(error, item["image"]))
            continue
        if there is None:
            found.todo.append(file)
            continue
        about, num_tiles = there
        for difference in origin.differences(about):
            others[difference] += 1
            example.setdefault(difference, file)
        if not Path(item["image"]).exists() or about.get("source") in (None, slide_source(item)):
            rows[file].update(status="kept", num_tiles=num_tiles)
            found.precisions.update({about["precision"]} if "precision" in about else ())
        else:
            found.todo.append(file)
            found.outdated.add(file)
    if others:
        told = [f"{count} file(s) such as {example[key].name}: {key}" for key, count in others.items()]
        way_out = "choose another features_dir, delete this one, or use the chain and backbone it was made with"
        raise CohortError(folder, [*told, way_out])
    return found


@dataclass
class _Pending:
    """A slide whose tiles are on their way."""

    tiles: Tiles
    picture: Mapping[str, Any]
    source: str
    start: float
    features: list[NDArray[np.float32]] = field(default_factory=list)
    num_done: int = 0


class _Extraction:
    """From slides to files."""

    def __init__(
        self,
        origin: _Origin,
        backbone: TileBackbone,
        batch_size: int,
        precision: Precision,
        dtype: str,
        device: torch.device,
    ) -> None:
        self.device = device
        self.infer = AutocastInferer(precision)
        self.backbone = backbone.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.origin, self.batch_size, self.dtype = origin, batch_size, dtype
        self.about = {
            "backbone": json.dumps(origin.backbone),
            "chain": json.dumps(origin.chain.describe()),
            "precision": precision,
            "versions": json.dumps(
                {"monai_pipelines": __version__, "torch": torch.__version__, "monai": version("monai")}
            ),
        }

    def __call__(
        self, items: Sequence[Mapping[str, Any]], files: Sequence[Path], num_workers: int
    ) -> Iterator[tuple[int, float, Row]]:
        """Number of a slide, the share of it that was done now, and what to put into its row."""
        stream = _TileStream(items, self.origin.chain, self.batch_size)
        pin = self.device.type == "cuda"
        loader = DataLoader(stream, batch_size=None, num_workers=num_workers, collate_fn=as_is, pin_memory=pin)
        pending: dict[int, _Pending] = {}
        for number, kind, content in loader:
            if kind == "bad":
                slide = pending.pop(number, None)
                done = slide.num_done / len(slide.tiles) if slide else 0
                yield number, 1 - done, {"status": "skipped", "reason": content}
            elif kind == "slide":
                pending[number] = _Pending(**content, start=time.monotonic())
            else:
                slide = pending[number]
                slide.features.append(self._features(content))
                slide.num_done += len(content)
                row: Row = {}
                if slide.num_done == len(slide.tiles):
                    self._write(files[number], pending.pop(number))
                    seconds = round(time.monotonic() - slide.start, 2)
                    row = {"status": "done", "num_tiles": slide.num_done, "seconds": seconds}
                yield number, len(content) / len(slide.tiles), row

    def _features(self, tiles: torch.Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.infer(tiles.to(self.device, non_blocking=True), self.backbone).cpu().numpy()

    def _write(self, file: Path, slide: _Pending) -> None:
        tiles = slide.tiles
        bag = FeatureBag(
            features=np.concatenate(slide.features),
            coords=tiles.coords,
            level0_px=tiles.size.level0_px,
            tile_px=tiles.size.tile_px,
            mpp=tiles.size.mpp,
            slide_mpp=tiles.slide.mpp,
            slide_size=tiles.slide.size,
            chain_fingerprint=self.origin.chain_fingerprint,
            backbone_fingerprint=self.origin.backbone_fingerprint,
            **slide.picture,
        )
        write_features(file, bag, {**self.about, "source": slide.source}, self.dtype)


class _TileStream(IterableDataset):
    """Slide by slide: (number, "slide", what it holds), then (number, "tiles", batch); or (number, "bad", reason)."""

    def __init__(self, items: Sequence[Mapping[str, Any]], chain: Chain, batch_size: int) -> None:
        self.items, self.batch_size = items, batch_size
        own = deepcopy(chain)  # the random numbers of the caller's go on as they would
        self.plan, self.read = own.until("tiles"), own.since("tiles")

    def __iter__(self) -> Iterator[tuple[int, str, Any]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(first, len(self.items), step):
            item = self.items[number]
            try:
                yield from self._slide(number, item)
            except (ScanError, OSError) as error:
                yield number, "bad", why_unusable(error, item["image"])
            except Exception as error:
                error.add_note(f"while reading {item['image']}")
                raise
            finally:
                close_slides()

    def _slide(self, number: int, item: Mapping[str, Any]) -> Iterator[tuple[int, str, Any]]:
        self.plan.set_random_state(seed=zlib.crc32(item["name"].encode()))
        planned = self.plan({"image": item["image"], "mpp": item.get("mpp")})
        source = slide_source(item)
        tiles, tissue = planned["image"], planned["tissue"]
        picture = {
            "tissue": tissue[0].numpy().astype(np.uint8),
            "thumbnail": tissue.meta["thumbnail"],
            "downsample": float(tissue.meta["downsample"]),
        }
        yield number, "slide", {"tiles": tiles, "picture": picture, "source": source}
        for start in range(0, len(tiles), self.batch_size):
            batch = self.read(tiles[start : start + self.batch_size])
            yield number, "tiles", torch.as_tensor(batch).as_subclass(torch.Tensor)


def read_backbone(source: str | PathLike[str], weights: str | PathLike[str] | None = None) -> TileBackbone:
    """The backbone that the command line names.

    Args:
        source: a 2D ResNet or DenseNet of `monai.networks.nets` ("resnet18", "resnet50", "densenet121", ...), or a YAML
            file whose entry ``backbone`` makes a `TileBackbone` of any network. Such files run code.
        weights: of the named network, see `TileBackbone`; None: random ones, the same each time.

    Raises:
        KeyError: no such network, or a file without the entry.
        ValueError: weights beside a file.

    Example:
        >>> read_backbone("densenet121").num_features
        1024
    """
    if Path(source).suffix in (".yaml", ".yml", ".json"):
        if weights is not None:
            raise ValueError(f"read_backbone: the weights of {source} are named in it, got {weights} beside it")
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
