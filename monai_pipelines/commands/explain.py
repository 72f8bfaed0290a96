"""``explain``: the evidence for a class in scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def explain(
    source: Annotated[Path, typer.Argument(help="Folder of a run, or of a bundle together with --checkpoint.")],
    images: Annotated[str, typer.Argument(help="A scan, image, folder or table of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures, the map and the prediction.")],
    method: Annotated[str, typer.Option(help="gradcam, gradcam++ or occlusion.")] = "gradcam",
    stage: Annotated[str | None, typer.Option(help="Layer of the network; default: by the size of its cells.")] = None,
    class_name: Annotated[
        str | None, typer.Option(help="Default: the second of two classes, else the predicted one.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: best.pt of the run.")] = None,
) -> None:
    """Show the evidence for a class in one scan or many; of a volume also as NIfTI on the scan's grid."""
    from monai_pipelines.explain.scan import explain_scans

    explain_scans(source, images, out, method=method, stage=stage, class_name=class_name, checkpoint=checkpoint)
