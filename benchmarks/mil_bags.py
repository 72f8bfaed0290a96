"""Attention MIL on bags of real tiles: are bags classified correctly, and does attention find the positive tiles?

    python benchmarks/mil_bags.py TILES colon_n colon_aca [--seeds 0 1 2]

TILES has one folder of tiles per class. Negative bags have tiles of the first class named, positive bags 10% of the
second. For each seed the tiles are split into four pools: one trains the tile network, by the demo of
colorectal_histology_classification, the others fill the bags for training, validation and test; the demo of
histology_slide_classification then trains and evaluates on the bags' features, with gated attention and with mean
pooling, selecting the epoch by validation loss. A bag's tiles are laid out on a grid, as its slide. Tiles of nearly
the same colors stay in one pool: data sets contain rotated and mirrored copies (LC25000 has twenty of each photograph).

Bags share the tiles of their pool, so the intervals, which treat bags as independent, are too narrow: look at the
spread over the seeds. Appends a row per seed and pooling to benchmarks/results/mil_bags.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from skimage.color import rgb2lab

from monai_pipelines import load_chain
from monai_pipelines.data import feature_file
from monai_pipelines.features import FeatureBag, write_features
from monai_pipelines.networks import TileBackbone

ROOT = Path(__file__).parents[1]
TILE_BUNDLE, SLIDE_BUNDLE = (
    ROOT / "bundles" / name for name in ("colorectal_histology_classification", "histology_slide_classification")
)
LABELS = ("normal", "tumour")  # of the bags
POOLS = {"backbone": 0.3, "train": 0.3, "validation": 0.15, "test": 0.25}  # share of the tiles
NUM_BAGS = {"train": 100, "validation": 40, "test": 60}
TILE_PX, MPP, SHRINK = 224, 0.5, 8  # of a tile in its bag's artificial slide; SHRINK for the thumbnail
BACKBONE_EPOCHS = 125  # as many steps as the demo, which has six times as many tiles
NEAR = 0.2  # standard deviations: copies in LC25000 are below, most other tiles above
COLUMNS = (
    *("date", "tiles", "pooling", "seed", "num_bags", "bag_tiles", "positive_tiles"),
    *("roc_auc", "roc_auc_low", "roc_auc_high", "accuracy", "tile_auc", "tile_auc_low", "tile_auc_high"),
    *("shortcut", "shortcut_roc_auc", "machine", "command"),
)


def color_groups(files: Sequence[Path]) -> NDArray[np.int64]:
    """Group of each tile; tiles of nearly the same colors (standardized quantiles of L*, a* and b*) share one."""
    points = np.linspace(0.02, 0.98, 25)
    lab = [rgb2lab(np.asarray(Image.open(file).convert("RGB"))).reshape(-1, 3) for file in files]
    quantiles = np.array([np.quantile(values, points, axis=0).ravel() for values in lab])
    quantiles /= quantiles.std(axis=0)
    near = cdist(quantiles, quantiles) / quantiles.shape[1] ** 0.5 < NEAR
    return connected_components(near, directed=False)[1]


def split(groups: NDArray[np.int64], rng: np.random.Generator) -> dict[str, list[int]]:
    """Indices of the tiles in each pool; groups are not split."""
    order = rng.permutation(np.unique(groups))
    sizes = np.array([(groups == group).sum() for group in order])
    ends = np.cumsum([*POOLS.values()]) * len(groups)
    place = np.searchsorted(ends, np.cumsum(sizes) - sizes / 2)
    return {pool: np.flatnonzero(np.isin(groups, order[place == k])).tolist() for k, pool in enumerate(POOLS)}


def run_bundle(bundle: Path, log: Path, **options: object) -> dict[str, object]:
    """Train and evaluate the bundle's demo; returns the content of metrics.json."""
    configs = [str(bundle / "configs" / f"{name}.yaml") for name in ("train", "demo")]
    options = {"bundle_root": bundle, "config_file": configs, "output_dir": log.parent, "num_workers": 0, **options}
    arguments = [a for name, v in options.items() for a in (f"--{name}", "$None" if v is None else str(v))]
    log.parent.mkdir(parents=True)
    with log.open("w") as output:
        for run_id in ("run", "evaluate"):
            command = [sys.executable, "-m", "monai.bundle", "run", "--run_id", run_id, *arguments]
            if subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT).returncode:
                raise SystemExit(f"{shlex.join(command)}\nfailed: see {log}")
    return json.loads((log.parent / "metrics.json").read_text())


def train_backbone(files: Sequence[Path], groups: Sequence[int], seed: int, folder: Path) -> Path:
    """Train the tile network on copies of the tiles, groups as slides; returns its weights."""
    classes = sorted({file.parent.name for file in files})
    for number, (file, group) in enumerate(zip(files, groups, strict=True)):
        copy = folder / "tiles" / file.parent.name / f"slide-{group:05d}_{number}{file.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    options = {"dataset_dir": folder / "tiles", "classes": classes, "cache_dir": None, "max_epochs": BACKBONE_EPOCHS}
    run_bundle(TILE_BUNDLE, folder / "run" / "log.txt", **options, seed=seed)
    return folder / "run" / "best.pt"


def tile_backbone(weights: Path) -> TileBackbone:
    """The tile network of the slide bundle's demo."""
    parser = ConfigParser()
    parser.read_config([str(SLIDE_BUNDLE / "configs" / f"{name}.yaml") for name in ("train", "demo")])
    parser["backbone_weights"] = str(weights)
    return parser.get_parsed_content("backbone").eval()


@torch.inference_mode()
def features(files: Sequence[Path], backbone: TileBackbone) -> NDArray[np.float32]:
    """Features (N, D) of the tiles, read as in the training of the backbone."""
    read = load_chain("histology_tile", size=[96, 96]).until("normalize")
    tiles = torch.stack([read({"image": str(file)})["image"].as_tensor() for file in files])
    return torch.cat([backbone(part) for part in tiles.split(64)]).numpy()


def square(x: int, y: int) -> dict[str, object]:
    """A tile as GeoJSON."""
    corners = [[x, y], [x + TILE_PX, y], [x + TILE_PX, y + TILE_PX], [x, y + TILE_PX], [x, y]]
    properties = {"objectType": "annotation", "classification": {"name": "Tumor"}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [corners]}, "properties": properties}


def write_bags(
    files: Sequence[Path],
    positive: NDArray[np.bool_],
    vectors: NDArray[np.float32],
    pools: Mapping[str, Sequence[int]],
    num_tiles: int,
    num_positive: int,
    rng: np.random.Generator,
    folder: Path,
) -> None:
    """Write table.csv, features and outlines of the positive tiles; half of the bags of each pool are positive."""
    thumbnails = [
        np.asarray(Image.open(file).convert("RGB").resize((TILE_PX, TILE_PX)).reduce(SHRINK)) for file in files
    ]
    columns = int(np.ceil(num_tiles**0.5))
    cells = np.array([divmod(k, columns)[::-1] for k in range(num_tiles)])
    width, height = (cells.max(axis=0) + 1) * TILE_PX
    side, rows = TILE_PX // SHRINK, []
    (folder / "annotations").mkdir()
    for pool, num_bags in NUM_BAGS.items():
        members = np.array(pools[pool])
        for label in rng.permutation(np.arange(num_bags) % 2):
            drawn = [
                rng.choice(members[positive[members] == bool(kind)], number, replace=False)
                for kind, number in ((0, num_tiles - label * num_positive), (1, label * num_positive))
            ]
            chosen = rng.permutation(np.concatenate(drawn))
            name = f"bag-{len(rows):04d}"
            thumbnail = np.full((height // SHRINK, width // SHRINK, 3), 255, np.uint8)
            for (x, y), tile in zip(cells * side, chosen, strict=True):
                thumbnail[y : y + side, x : x + side] = thumbnails[tile]
            bag = FeatureBag(
                features=vectors[chosen],
                coords=cells * TILE_PX,
                level0_px=TILE_PX,
                tile_px=96,
                mpp=MPP * TILE_PX / 96,
                slide_mpp=MPP,
                slide_size=(int(width), int(height)),
                thumbnail=thumbnail,
                tissue=np.ones(thumbnail.shape[:2], np.uint8),
                downsample=SHRINK,
            )
            write_features(feature_file(folder / "features", name), bag, {})
            annotation = f"annotations/{name}.geojson" if label else ""
            if annotation:
                squares = [square(*corner.tolist()) for corner in bag.coords[positive[chosen]]]
                (folder / annotation).write_text(json.dumps({"type": "FeatureCollection", "features": squares}))
            rows.append({"image": name, "label": LABELS[label], "split": pool, "annotation": annotation})
    write_rows(folder / "table.csv", rows, list(rows[0]))


def write_rows(file: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Append rows to a table; create it if missing."""
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def row(evaluation: Mapping[str, object]) -> dict[str, object]:
    """The results of a run on bags."""
    tiles = {"tile_auc": None, "tile_auc_interval": (None, None)}
    for explanation in evaluation["explanations"]:
        tiles |= explanation
    ends = {"roc_auc": evaluation["intervals"]["roc_auc"], "tile_auc": tiles["tile_auc_interval"]}
    values = {**evaluation["metrics"], "tile_auc": tiles["tile_auc"]}
    values["shortcut_roc_auc"] = evaluation["shortcut"]["roc_auc"]
    values |= {f"{name}_{end}": value for name in ends for end, value in zip(("low", "high"), ends[name], strict=True)}
    rounded = {name: value if value is None else round(value, 4) for name, value in values.items() if name in COLUMNS}
    return {"num_bags": evaluation["num_images"], "shortcut": evaluation["shortcut_name"], **rounded}


def main() -> None:
    """Run the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("negative")
    parser.add_argument("positive")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--bag-tiles", type=int, default=20)
    parser.add_argument("--positive-tiles", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "mil_bags")
    args = parser.parse_args()
    classes = [sorted((args.tiles / name).iterdir()) for name in (args.negative, args.positive)]
    files = [file for members in classes for file in members]
    positive = np.repeat([False, True], [len(members) for members in classes])
    groups = [color_groups(members) for members in classes]
    for seed in args.seeds:
        folder, rng = args.runs / str(seed), np.random.default_rng(seed)
        if folder.exists():
            raise SystemExit(f"{folder} exists: remove it, or choose another --runs")
        parts = [split(of_class, rng) for of_class in groups]
        pools = {pool: parts[0][pool] + [len(classes[0]) + k for k in parts[1][pool]] for pool in POOLS}
        source = np.concatenate([groups[0], groups[1] + len(files)])
        pool = pools["backbone"]
        weights = train_backbone([files[k] for k in pool], source[pool].tolist(), seed, folder / "backbone")
        vectors = features(files, tile_backbone(weights))
        write_bags(files, positive, vectors, pools, args.bag_tiles, args.positive_tiles, rng, folder)
        for pooling in ("gated", "mean"):
            options = {"dataset_dir": folder, "features_dir": folder / "features", "backbone_weights": weights}
            options |= {"seed": seed, "pooling": pooling, "key_metric": "loss"}
            evaluation = run_bundle(SLIDE_BUNDLE, folder / pooling / "log.txt", **options)
            result = {
                **{"date": datetime.date.today(), "tiles": args.tiles.name, "pooling": pooling, "seed": seed},
                **{"bag_tiles": args.bag_tiles, "positive_tiles": args.positive_tiles, **row(evaluation)},
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
                "command": f"python benchmarks/mil_bags.py TILES {args.negative} {args.positive} --seeds {seed}",
            }
            print({name: result[name] for name in COLUMNS[2:-2]}, flush=True)
            write_rows(ROOT / "benchmarks" / "results" / "mil_bags.csv", [result], COLUMNS)


if __name__ == "__main__":
    main()
