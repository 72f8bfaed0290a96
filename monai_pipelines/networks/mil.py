"""Multiple-instance learning: one prediction for a bag of tiles, by attention, mean or maximum."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from monai_pipelines.networks.recompute import recomputed

Pooling = Literal["gated", "attention", "mean", "max"]
CHUNK = 64  # tiles in each pass of a checkpointed backbone


class AttentionMIL(nn.Module):
    """Classify bags of tiles, such as whole slides.

    The features x_n of each tile become ``h_n = ReLU(dropout(W x_n))``, and a bag's vector is
    ``z = sum_n a_n h_n`` with ``a = softmax_n(w . tanh(V h_n))`` ("attention"), or
    ``a = softmax_n(w . (tanh(V h_n) * sigmoid(U h_n)))`` ("gated"), or the mean or maximum over the tiles; W, V and U
    have a bias. The logits are a linear layer of z. With one branch per class, class c has a separate w_c, attention
    and z_c, and its logit is row c of the linear layer applied to z_c.

    Padding is never computed: it costs nothing, may hold anything, and gets no gradient.

    Args:
        in_features: D, features of a tile.
        num_classes: logits; 1 is the head with one logit.
        hidden: size of h and z.
        attention: rows of V and U.
        dropout: probability, 0..1.
        pooling: "gated", "attention", "mean" or "max".
        branches: 1, one attention for all classes, or num_classes, one per class.
        backbone: network from tiles (M, 3, H, W) to (M, in_features), trained end to end, such as a `TileBackbone`;
            None: bags hold features.
        checkpoint_backbone: in training, run the backbone on 64 tiles at a time and again in the backward pass: memory
            for the activations of 64 tiles instead of all. Batch normalization then sees 64 tiles at a time.

    Attributes:
        attention_weights: attention of the last forward pass, (B, branches, N) float32; with its graph in training,
            detached otherwise. None before the first, and for mean and max pooling.

    Raises:
        ValueError: an argument out of range, or options that exclude each other.

    Example:
        >>> network = AttentionMIL(in_features=8, num_classes=2).eval()
        >>> mask = torch.tensor([[True, True, True], [True, False, False]])
        >>> logits, attention = network(torch.ones(2, 3, 8), mask, return_attention=True)
        >>> logits.shape, attention[1]
        (torch.Size([2, 2]), tensor([[1., 0., 0.]], grad_fn=<SelectBackward0>))

    Reference:
        Ilse et al., Attention-based deep multiple instance learning, ICML 2018, which has no bias in V and U; branches
        as in Lu et al., Nature Biomedical Engineering 2021. MONAI's `MILModel` takes no mask and does not
        return its attention.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden: int = 512,
        attention: int = 256,
        dropout: float = 0.25,
        pooling: Pooling = "gated",
        branches: int = 1,
        backbone: nn.Module | None = None,
        checkpoint_backbone: bool = False,
    ) -> None:
        super().__init__()
        if min(in_features, num_classes, hidden, attention) < 1 or not 0 <= dropout <= 1:
            raise ValueError(
                "AttentionMIL: in_features, num_classes, hidden and attention must be 1 or more and dropout in "
                f"0..1, got {in_features}, {num_classes}, {hidden}, {attention} and {dropout}"
            )
        if pooling not in get_args(Pooling):
            raise ValueError(f"AttentionMIL: pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
        if branches not in (1, num_classes):
            raise ValueError(f"AttentionMIL: branches must be 1 or num_classes ({num_classes}), got {branches}")
        if branches > 1 and pooling in ("mean", "max"):
            raise ValueError(f"AttentionMIL: pooling {pooling!r} has no attention to branch (set branches to 1)")
        if checkpoint_backbone and backbone is None:
            raise ValueError("AttentionMIL: checkpoint_backbone needs a backbone (bags of features have none)")
        self.in_features, self.pooling = in_features, pooling
        self.checkpoint_backbone = checkpoint_backbone
        self.backbone = backbone
        self.embed = nn.Sequential(nn.Linear(in_features, hidden), nn.Dropout(dropout), nn.ReLU(inplace=True))
        self.attend = (
            None if pooling in ("mean", "max") else _Attention(hidden, attention, branches, gated=pooling == "gated")
        )
        self.head = nn.Linear(hidden, num_classes) if branches == 1 else _PerClassLinear(hidden, num_classes)
        self.attention_weights: Tensor | None = None

    def forward(
        self, bag: Tensor, mask: Tensor | None = None, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of bags and, on request, the attention.

        Args:
            bag: (B, N, in_features) floating point; with a backbone its input, (B, N, 3, H, W).
            mask: (B, N) bool, True where there is a tile; None: everywhere.
            return_attention: return the attention too.

        Returns:
            logits (B, num_classes) float32, and the attention (B, branches, N) float32, which sums to 1 over the tiles
            of a bag and is 0 on padding.

        Raises:
            ValueError: another shape, a bag without tiles, or attention requested from mean or max pooling.
        """
        if not torch.jit.is_scripting():
            self._check(bag, mask, return_attention)
            if torch.jit.is_tracing():
                return self._traced(bag, mask, return_attention)
        if mask is None:
            mask = torch.ones(bag.shape[:2], dtype=torch.bool, device=bag.device)
        num_tiles: list[int] = mask.sum(1).tolist()
        if 0 in num_tiles:
            raise ValueError("AttentionMIL: wanted tiles in each bag, got an empty one (leave such slides out)")
        embedded: list[Tensor] = []  # of each bag
        scores: list[Tensor] = []
        groups = self._groups(bag, mask, num_tiles)
        counts = [num_tiles] if len(groups) == 1 else [[n] for n in num_tiles]
        for tiles, sizes in zip(groups, counts):  # noqa: B905  TorchScript has no strict
            hidden = self.embed(self._features(tiles))
            embedded += hidden.split(sizes)
            if self.attend is not None:
                scores.append(self.attend(hidden).float())
        if self.attend is None:
            pooled = [part.mean(0) if self.pooling == "mean" else part.max(0)[0] for part in embedded]
            return self.head(torch.stack(pooled)).float()
        packed = torch.cat(scores)
        padded = torch.full((bag.shape[0], bag.shape[1], packed.shape[1]), -torch.inf, device=packed.device)
        attention = padded.index_put([mask], packed).softmax(1)
        weights = attention[mask].to(embedded[0].dtype).split(num_tiles)
        pooled = [(weight.t() @ part).flatten() for weight, part in zip(weights, embedded)]  # noqa: B905
        logits = self.head(torch.stack(pooled)).float()
        attention = attention.transpose(1, 2)
        if not torch.jit.is_scripting():
            self.attention_weights = attention if self.training else attention.detach()
        if return_attention:
            return logits, attention
        return logits

    def _traced(self, bag: Tensor, mask: Tensor | None, return_attention: bool) -> Tensor:
        """Logits by tensor operations that hold for any number of tiles; padding is computed, too."""
        if return_attention:
            raise ValueError("AttentionMIL: a trace gives no attention")
        hidden = self.embed(self._features(bag.flatten(0, 1)))
        of_bags = hidden.reshape(bag.shape[0], bag.shape[1], -1)
        padding = torch.zeros_like(of_bags[..., :1], dtype=torch.bool) if mask is None else ~mask[..., None]
        if self.attend is None and self.pooling == "max":
            return self.head(of_bags.masked_fill(padding, -torch.inf).amax(1)).float()
        of_bags = of_bags.masked_fill(padding, 0)
        if self.attend is None:
            return self.head(of_bags.sum(1) / (~padding).sum(1)).float()
        scores = self.attend(hidden).float().reshape(bag.shape[0], bag.shape[1], -1)
        weights = scores.masked_fill(padding, -torch.inf).softmax(1)
        return self.head((weights.transpose(1, 2).to(hidden.dtype) @ of_bags).flatten(1)).float()

    def __getstate__(self) -> dict[str, Any]:
        """Without the attention, as its graph can be neither copied nor pickled."""
        return {**self.__dict__, "attention_weights": None}

    def _groups(self, bag: Tensor, mask: Tensor, num_tiles: list[int]) -> list[Tensor]:
        """Real tiles: all in one (M, ...), or a tensor for each bag.

        On the CPU linear layers take bags one by one: large tensors are allocated in fresh pages, small ones are not.
        """
        if self.backbone is None and bag.device.type == "cpu":
            parts = zip(bag, mask, num_tiles)  # noqa: B905
            return [tiles[:n] if bool(real[:n].all()) else tiles[real] for tiles, real, n in parts]
        return [bag.flatten(0, 1) if sum(num_tiles) == mask.numel() else bag[mask]]

    def _features(self, tiles: Tensor) -> Tensor:
        """(M, in_features) of tiles (M, 3, H, W), or of features, which stay."""
        if self.backbone is None:
            return tiles
        if torch.jit.is_scripting() or not (self.checkpoint_backbone and self.training):
            return self.backbone(tiles)
        return torch.cat([recomputed(self.backbone, chunk) for chunk in tiles.split(CHUNK)])

    def _check(self, bag: Tensor, mask: Tensor | None, return_attention: bool) -> None:
        if self.backbone is None and (bag.ndim != 3 or bag.shape[2] != self.in_features):
            raise ValueError(f"AttentionMIL: wanted bags (B, N, {self.in_features}), got {tuple(bag.shape)}")
        if self.backbone is not None and bag.ndim != 5:
            raise ValueError(f"AttentionMIL: wanted bags of tiles (B, N, 3, H, W), got {tuple(bag.shape)}")
        if mask is not None and (mask.shape != bag.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"AttentionMIL: wanted a bool mask {tuple(bag.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}"
            )
        if return_attention and self.attend is None:
            raise ValueError(f"AttentionMIL: pooling {self.pooling!r} has no attention (set it to gated or attention)")


class _Attention(nn.Module):
    """Scores (M, branches) of tiles (M, hidden), before the softmax."""

    def __init__(self, hidden: int, attention: int, branches: int, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.project = nn.Linear(hidden, 2 * attention if gated else attention)  # V, then U
        self.score = nn.Linear(attention, branches, bias=False)

    def forward(self, embedded: Tensor) -> Tensor:
        projected = self.project(embedded)
        if not self.gated:
            return self.score(projected.tanh())
        content, gate = projected.chunk(2, 1)
        return self.score(content.tanh() * gate.sigmoid())


class _PerClassLinear(nn.Linear):
    """A linear layer whose output c sees only vector c of the concatenated vectors (B, num_classes * hidden)."""

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors.unflatten(1, self.weight.shape) * self.weight).sum(2) + self.bias
