"""Time for a training step of attention MIL on bags of unequal size: one masked batch, or bag by bag.

A step is forward, backward and AdamW on the same bags of features, with bf16 autocast where that is fast, otherwise in
float32. "one masked batch": `AttentionMIL` on bags padded with zeros. "bag by bag": the same network on one bag at a
time, gradients summed, one AdamW step. "a step for each bag": batches of one bag, an AdamW step after each, as CLAM
trains. "dense, padded": the same layers, computed on the padding too, with masked attention. "MONAI MILModel": its
attention pooling on the padded bags; it takes no mask, so its output depends on the padding, and it has fewer layers
(no embedding, no gate, 128 hidden units). `batch_faster_by` is the method's median over that of the first row.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.networks.nets import MILModel
from recording import appended
from torch import Tensor, nn
from torch.nn import functional

from monai_pipelines.networks import AttentionMIL
from monai_pipelines.networks.precision import fast_bf16

COLUMNS = (
    *("date", "method", "median_ms", "min_ms", "max_ms", "batch_faster_by", "rounds", "bags", "tiles", "padded_to"),
    *("features", "precision", "machine", "command"),
)


class Dense(nn.Module):
    """The layers of an `AttentionMIL`, applied to the whole padded batch."""

    def __init__(self, network: AttentionMIL) -> None:
        super().__init__()
        self.network = network

    def forward(self, bag: Tensor, mask: Tensor) -> Tensor:
        embedded = self.network.embed(bag)
        scores = self.network.attend(embedded.flatten(0, 1)).float().reshape(mask.shape)
        attention = scores.masked_fill(~mask, -torch.inf).softmax(1).to(embedded.dtype)
        return self.network.head((attention[:, None] @ embedded)[:, 0])


def monai_model(num_features: int) -> nn.Module:
    """MONAI's MILModel on features as one-pixel images, with an identity backbone."""
    return MILModel(num_classes=2, mil_mode="att", backbone=nn.Flatten(), backbone_num_features=num_features)


def train(network: nn.Module, device: str, bf16: bool, each: bool = False) -> Callable[..., None]:
    """A function for one training step on (inputs, labels) pieces; with `each`, one step per piece."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step(pieces: list[tuple[tuple[Tensor, ...], Tensor]]) -> None:
        for inputs, label in pieces:
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                logits = network(*inputs)
            (functional.cross_entropy(logits.float(), label) * len(label)).backward()
            if each:
                optimizer.step()
                optimizer.zero_grad()
        if not each:
            optimizer.step()
            optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bags", type=int, default=16)
    parser.add_argument("--tiles", type=int, nargs=2, default=(2000, 10000), help="minimum and maximum per bag")
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "mil_step.csv")
    args = parser.parse_args()
    torch.manual_seed(0)
    sizes = torch.randint(args.tiles[0], args.tiles[1] + 1, (args.bags,)).tolist()
    bags = [torch.randn(size, args.features, device=args.device) for size in sizes]
    padded = nn.utils.rnn.pad_sequence(bags, batch_first=True)
    mask = torch.arange(max(sizes), device=args.device) < torch.tensor(sizes, device=args.device)[:, None]
    labels = torch.arange(args.bags, device=args.device) % 2

    batch = [((padded, mask), labels)]
    single = [((bag[None],), label[None]) for bag, label in zip(bags, labels, strict=True)]
    bf16 = fast_bf16(args.device)
    network = AttentionMIL(args.features, num_classes=2).to(args.device)
    options = (args.device, bf16)
    methods = {
        "one masked batch": (train(network, *options), batch),
        "bag by bag": (train(network, *options), single),
        "a step for each bag": (train(network, *options, each=True), single),
        "dense, padded": (train(Dense(network), *options), batch),
        "MONAI MILModel, padded, no mask": (
            train(monai_model(args.features).to(args.device), *options),
            [((padded[..., None, None],), labels)],
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(args.rounds + 1):
        for name, (step, pieces) in methods.items():
            start = time.perf_counter()
            step(pieces)
            if args.device == "cuda":
                torch.cuda.synchronize()
            if round_:
                times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    machine = f"{platform.machine()}, {where}, torch {torch.__version__}"
    with appended(args.csv, COLUMNS) as out_file:
        for name, values in times.items():
            row = [name, *(round(value, 1) for value in (medians[name], min(values), max(values)))]
            row += [round(medians[name] / medians["one masked batch"], 2), args.rounds, args.bags, sum(sizes)]
            row += [args.bags * max(sizes), args.features, "bf16" if bf16 else "fp32", machine]
            out_file.writerow([datetime.date.today(), *row, shlex.join(["python", *sys.argv])])
            print(f"{name:32} {row[1]:9} ms ({row[2]}-{row[3]})  x{row[4]}")


if __name__ == "__main__":
    main()
