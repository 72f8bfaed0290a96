"""New processes that do not import torch and MONAI again: forked from a server that has done nothing else."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context, set_start_method
from pathlib import Path

from monai_pipelines.declared import declared_path

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["monai.bundle", "monai_pipelines.engines"])


def run_module(
    module: str, *arguments: str, cwd: Path, kill_when: Callable[[], bool] | None = None
) -> subprocess.CompletedProcess[str]:
    """As ``python -m MODULE ARGUMENTS`` in the folder ``cwd``, killed as soon as ``kill_when()``, which is polled."""
    with tempfile.TemporaryDirectory() as folder:
        output = [Path(folder) / name for name in ("stdout", "stderr")]
        for file in output:
            file.touch()
        process = CONTEXT.Process(target=_run_module, args=(module, arguments, cwd, output))
        process.start()
        while kill_when is not None and process.is_alive():
            if kill_when():
                process.kill()
            process.join(0.001)
        process.join()
        return subprocess.CompletedProcess(arguments, process.exitcode or 0, *(file.read_text() for file in output))


def _run_module(module: str, arguments: tuple[str, ...], cwd: Path, output: list[Path]) -> None:
    for descriptor, file in enumerate(output, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    set_start_method(None, force=True)  # the platform's; that of this process was inherited
    os.chdir(cwd)
    os.environ["PYTHONPATH"] = str(declared_path("bundles").parent)
    sys.orig_argv = [sys.executable, "-m", module, *arguments]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
