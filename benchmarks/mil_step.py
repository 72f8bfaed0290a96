"""Time for a training step of attention MIL on bags of unequal size: one masked batch, or bag by bag.

A step is forward, backward and AdamW on the same bags of features, with bf16 autocast where that is fast, otherwise in
float32. "one masked batch": `AttentionMIL` on bags padded with zeros. "bag by bag": the same network on one bag at a
time, gradients summed, one AdamW step. "a step for each bag": batches of one bag, an AdamW step after each, as CLAM
trains. "dense, padded": the same layers, computed on the padding too, with masked attention. "MONAI MILModel": its
attention pooling on the padded bags; it takes no mask, so its output depends on the padding, and it has fewer layers
(no embedding, no gate, 128 hidden units). `times_ours` is the method's median over that of the first row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness import arguments, record, timed
from monai.networks.nets import MILModel
from torch import Tensor, nn
from torch.nn import functional

from monai_pipelines.networks import AttentionMIL
from monai_pipelines.networks.precision import fast_bf16


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
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    parser = arguments(__doc__, "mil_step.csv")
    parser.add_argument("--bags", type=int, default=16)
    parser.add_argument("--tiles", type=int, nargs=2, default=(2000, 10000), help="minimum and maximum per bag")
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
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
    monai = monai_model(args.features).to(args.device)
    methods = {
        "one masked batch": partial(train(network, *options), batch),
        "bag by bag": partial(train(network, *options), single),
        "a step for each bag": partial(train(network, *options, each=True), single),
        "dense, padded": partial(train(Dense(network), *options), batch),
        "MONAI MILModel, padded, no mask": partial(train(monai, *options), [((padded[..., None, None],), labels)]),
    }
    data = (
        f"{args.bags} bags, {sum(sizes)} tiles padded to {args.bags * max(sizes)}, {args.features} features, "
        f"{'bf16' if bf16 else 'fp32'}"
    )
    seconds = timed(methods, args.rounds)
    record(args.csv, seconds, lambda name: "one masked batch", {}, data, "torch", "monai", device=args.device)


if __name__ == "__main__":
    main()
