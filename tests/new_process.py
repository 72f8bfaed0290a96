"""New processes that do not import torch and MONAI again: forked from a server that has done nothing else."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

from monai_pipelines import processes
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


def run_together(function: Callable[..., Any], num: int, *args: Any, timeout_s: float = 60, **kwargs: Any) -> list[Any]:
    """Have processes call a function together, as torchrun would start them.

    Returns:
        of each process its exit code, and what it printed; None for one that goes on 10 s after the first has ended.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(num)}
        free.close()
        started = []
        for rank in range(num):
            output = Path(folder) / str(rank)
            environment = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            call = (function, args, kwargs, environment, timeout_s, output)
            started.append((CONTEXT.Process(target=_together, args=call), output))
            started[-1][0].start()
        started[0][0].join()
        ends = []
        for process, output in started:
            process.join(10)
            ends.append((process.exitcode, output.read_text()))
            process.kill()
        return ends


def _together(
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    environment: dict[str, str],
    timeout_s: float,
    output: Path,
) -> None:
    opened = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.environ.update(environment)
    processes.start_processes(timeout_s)
    function(*args, **kwargs)
    processes.stop_processes()


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
