"""Features of 256-pixel tiles by ResNet-50: `extract_features` against plain float32.

    python benchmarks/feature_extraction.py [--rounds 5] [--tiles 32] [--csv benchmarks/results/feature_extraction.csv]

Plain float32 is what most code does: tiles to float32 in [0, 1], normalized, channels first, `torch.no_grad`.
`extract_features` uses uint8 tiles, channels last, `torch.inference_mode`, and bfloat16 where that is faster for a
frozen network (CUDA, CPUs with AMX or AVX512-BF16); both precisions are timed. Reading the slide is not included.

Methods alternate. Appended to the CSV: also tiles/s, whether this CPU has AMX, and the difference of the features from
plain float32, relative to the largest feature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness import arguments, per_second, record, speedups, timed
from monai.networks.nets import resnet50

from monai_pipelines.inferers import AutocastInferer
from monai_pipelines.networks import TileBackbone
from monai_pipelines.networks.precision import Precision, fast_bf16

PLAIN, AUTO = "plain float32", "monai_pipelines, auto"
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
    parser = arguments(__doc__, "feature_extraction.csv")
    parser.add_argument("--tiles", type=int, default=32, help="in a batch, timed once per round")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    amx = "AMX" if torch.cpu.get_capabilities().get("amx_bf16") else "no AMX"
    auto: Precision = "bf16" if fast_bf16(device.type, gradients=False) else "fp32"
    print(f"{amx}; auto is {auto} on {device}")
    noise = torch.randint(256, (args.tiles, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tiles = noise.permute(0, 3, 1, 2)  # channels last in memory, as slides are read
    methods = {
        PLAIN: plain(device),
        AUTO: ours(device, auto),
        "monai_pipelines, bf16": ours(device, "bf16"),
        "monai_pipelines, fp32": ours(device, "fp32"),
    }
    reference = methods[PLAIN](tiles)
    scale = reference.abs().max()
    differences = {
        name: f"at most {float((infer(tiles) - reference).abs().max() / scale):.1e} of the largest feature"
        for name, infer in methods.items()
    }
    seconds = timed({name: partial(infer, tiles) for name, infer in methods.items()}, args.rounds)
    extra = {"tiles_per_s": per_second(seconds, args.tiles), "times_plain": speedups(seconds, PLAIN)}
    data = f"{args.tiles} tiles of 256 x 256, {amx}"
    record(args.csv, seconds, lambda name: AUTO, differences, data, "torch", "monai", extra=extra, device=args.device)


if __name__ == "__main__":
    main()
