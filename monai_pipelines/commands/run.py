"""``run``: a bundle from any folder."""

from __future__ import annotations

import runpy
import sys

import typer


def run(context: typer.Context) -> None:
    """Run a bundle as python -m monai.bundle run does, from any folder.

    Takes its arguments. --bundle_root may be the name of a bundle, and configs are also found in the bundle:
    run --bundle_root chest_xray_classification --config_file configs/train.yaml --dataset_dir DATA --output_dir RUN
    """
    from monai_pipelines.runs.command_line import bundle_arguments

    sys.argv[1:] = ["run", *bundle_arguments(context.args)]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
