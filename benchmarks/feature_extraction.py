"""Features of 256-pixel tiles by ResNet-50: `extract_features` against plain float32.

    python benchmarks/feature_extraction.py [--rounds 5] [--tiles 32] [--csv benchmarks/results/feature_extraction.csv]

Plain float32 is what most code does: tiles to float32 in [0, 1], normalized, channels first, `torch.no_grad`.
`extract_features` uses uint8 tiles, channels last, `torch.inference_mode`, and bfloat16 where that is faster for a
frozen network (CUDA, CPUs with AMX or AVX512-BF16); both precisions are timed. Reading the slide is not included.

Methods alternate. Appended to the CSV: median tiles/s, whether this CPU has AMX, and the deviation of the features from
plain float32 (largest difference over the largest feature).
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.networks.nets import resnet50

from monai_pipelines.inferers import AutocastInferer
from monai_pipelines.networks import TileBackbone
from monai_pipelines.networks.precision import Precision, fast_bf16

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def network() -> torch.nn.Module:
    """The published ResNet-50, always with the same weights."""
    torch.manual_seed(0)
    return resnet50(spatial_dims=2, n_input_channels=3, conv1_t_stride=2, bias_downsample=False).eval()


def plain(device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """What most code does."""
    net = network().to(device)
    net.fc = torch.nn.Identity()
    mean, std = MEAN.to(device), STD.to(device)

    def infer(tiles: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return net((tiles.to(device).contiguous().float() / 255 - mean) / std).cpu()

    return infer


def ours(device: torch.device, precision: Precision) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `extract_features` does."""
    backbone = TileBackbone(network()).to(device).to(memory_format=torch.channels_last).eval()
    inferer = AutocastInferer(precision)

    def infer(tiles: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return inferer(tiles.to(device), backbone).cpu()

    return infer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=32, help="in a batch, timed once per round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "feature_extraction.csv")
    args = parser.parse_args()
    device = torch.device(args.device)
    amx = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    auto: Precision = "bf16" if fast_bf16(device.type, gradients=False) else "fp32"
    print(f"AMX: {'yes' if amx else 'no'}; auto is {auto} on {device}")
    noise = torch.randint(256, (args.tiles, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tiles = noise.permute(0, 3, 1, 2)  # channels last in memory, as slides are read
    methods = {
        "plain float32": plain(device),
        "monai_pipelines, auto": ours(device, auto),
        "monai_pipelines, bf16": ours(device, "bf16"),
        "monai_pipelines, fp32": ours(device, "fp32"),
    }
    reference = methods["plain float32"](tiles)
    scale = reference.abs().max()
    deviation = {name: float((infer(tiles) - reference).abs().max() / scale) for name, infer in methods.items()}
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(args.rounds):
        for name, infer in methods.items():
            start = time.perf_counter()
            infer(tiles)
            rates[name].append(args.tiles / (time.perf_counter() - start))
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    machine = f"{platform.machine()}, {where}, AMX {'yes' if amx else 'no'}, torch {torch.__version__}"
    args.csv.parent.mkdir(parents=True, exist_ok=True)
    new = not args.csv.exists()
    with args.csv.open("a", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        if new:
            columns = ["date", "method", "tiles_per_s", "min_per_s", "max_per_s", "times_plain", "difference"]
            out.writerow([*columns, "rounds", "tiles", "machine", "command"])
        for name, values in rates.items():
            rate = statistics.median(values)
            times = rate / statistics.median(rates["plain float32"])
            row = [name, *(round(v, 2) for v in (rate, min(values), max(values), times)), f"{deviation[name]:.1e}"]
            conditions = [args.rounds, args.tiles, machine, shlex.join(["python", *sys.argv])]
            out.writerow([datetime.date.today(), *row, *conditions])
            print(f"{name:24} {row[1]:8} tiles/s ({row[2]}-{row[3]})  {row[4]} times plain  difference {row[5]}")


if __name__ == "__main__":
    main()
