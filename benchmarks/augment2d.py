"""Images per second of `augment_image2d` on a batch, against MONAI's per-sample dictionary transforms.

Both turn a uint8 batch into a float32 batch in [0, 1], with the same operations at the same probabilities and limits:
flip, rotation, scale, shift, brightness, contrast. MONAI's are `RandFlipd`, `RandRotated`, `RandZoomd`, `RandAffined`
for the shift, `RandScaleIntensityd`, and for contrast the closest match, the gamma curve of `RandAdjustContrastd`.
"one affine" is the fastest variant: one `RandAffined` draws rotation, scale and shift together, for as many images as
get any of the three here; "no metadata" also turns MONAI's metadata off. MONAI has no dictionary transforms for
saturation, hue and stains: "all color" and "+ stain" exist in this project only.
`times_ours` is the method's median over that of the first row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from harness import arguments, per_second, record, timed
from monai.data import set_track_meta
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandRotated,
    RandScaleIntensityd,
    RandZoomd,
    ScaleIntensityRanged,
)

from monai_pipelines import load_chain

OURS = "monai_pipelines augment_image2d"


def ours(**knobs: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """`augment_image2d` on the whole batch."""
    chain = load_chain("augment_image2d", **knobs)
    return lambda batch: chain({"image": batch})["image"]


def monai(side: int, one_affine: bool = False, track_meta: bool = True) -> Callable[[torch.Tensor], torch.Tensor]:
    """MONAI's dictionary transforms, image by image, then stacked."""
    angle, shift, border = float(np.deg2rad(10)), 0.05 * side, {"padding_mode": "border"}
    if one_affine:
        any_of_three = 1 - 0.5**3
        affine = {"rotate_range": angle, "scale_range": 0.1, "translate_range": shift}
        spatial = [RandAffined("image", prob=any_of_three, **affine, **border)]
    else:
        spatial = [
            RandRotated("image", range_x=angle, prob=0.5, **border),
            RandZoomd("image", prob=0.5, min_zoom=0.9, max_zoom=1.1, mode="bilinear", padding_mode="edge"),
            RandAffined("image", prob=0.5, translate_range=shift, **border),
        ]
    chain = Compose(
        [
            ScaleIntensityRanged("image", 0, 255, 0, 1),
            RandFlipd("image", prob=0.5, spatial_axis=1),
            *spatial,
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandAdjustContrastd("image", prob=0.5, gamma=(0.9, 1.1)),
        ]
    )

    def run(batch: torch.Tensor) -> torch.Tensor:
        set_track_meta(track_meta)
        out = torch.stack([torch.as_tensor(chain({"image": image})["image"]) for image in batch])
        set_track_meta(True)
        return out

    return run


def main() -> None:
    parser = arguments(__doc__, "augment2d.csv", rounds=7)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=224)
    args = parser.parse_args()
    methods = {
        OURS: ours(saturation=0, hue_turns=0),
        "MONAI transforms": monai(args.side),
        "MONAI transforms, one affine": monai(args.side, one_affine=True),
        "MONAI transforms, one affine, no metadata": monai(args.side, one_affine=True, track_meta=False),
        f"{OURS}, all color": ours(),
        f"{OURS}, all color + stain": ours(stain_sigma=0.05),
    }
    shape = (args.batch, 3, args.side, args.side)
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    for name, method in methods.items():
        out = method(batch)
        if out.shape != batch.shape or out.dtype != torch.float32:
            raise RuntimeError(f"{name}: got {out.dtype} {tuple(out.shape)}")
    seconds = timed({name: partial(method, batch) for name, method in methods.items()}, args.rounds)
    rates = {"images_per_s": per_second(seconds, args.batch)}
    record(args.csv, seconds, lambda name: OURS, {}, "x".join(map(str, shape)), "torch", "monai", extra=rates)


if __name__ == "__main__":
    main()
