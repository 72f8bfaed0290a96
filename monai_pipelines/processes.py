"""The processes of a distributed training: which one this is, what they exchange, and which one failed."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")

_CONNECTION = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out", re.IGNORECASE)
_GRACE_S = 5.0  # in which processes whose connection failed report
_FOREVER = timedelta(days=30)

_store: distributed.Store | None = None
_sync_batchnorm = False
_blocks = count()


def started_processes() -> int:
    """Number of processes that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def started_rank() -> int:
    """Rank of this process among those that torchrun has started."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """Number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Rank of this process among those that train together."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and logs: the one of rank 0."""
    return rank() == 0


def process_device() -> torch.device:
    """The device of this process: the GPU of its rank on this machine, or the CPU.

    Raises:
        ValueError: more processes than GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= num_gpus:
        raise ValueError(
            f"wanted a GPU for each process, got {num_gpus} for {local + 1} or more processes: lower nproc_per_node"
        )
    return torch.device("cuda", local)


def start_processes(timeout_s: float = 1800, sync_batchnorm: bool = False) -> None:
    """Join the processes that torchrun has started, with NCCL on GPUs and gloo on CPUs; does nothing without torchrun.

    All but the main process log warnings only.

    Args:
        timeout_s: how long a process waits for the others before the run ends with an error.
        sync_batchnorm: whether batch normalization uses the statistics of all processes; on GPUs only.

    Raises:
        ValueError: ``sync_batchnorm`` on a CPU, or more processes than GPUs.
    """
    global _store, _sync_batchnorm
    if started_processes() == 1 or distributed.is_initialized():
        return
    if sync_batchnorm and not torch.cuda.is_available():
        raise ValueError("sync_batchnorm works on GPUs only; set --sync_batchnorm false")
    store, own_rank, size = next(rendezvous("env://"))
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(process_device())
    timeout = timedelta(seconds=timeout_s)
    distributed.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=timeout)
    _store, _sync_batchnorm = distributed.PrefixStore("monai_pipelines", store), sync_batchnorm
    if not is_main():
        logging.disable(logging.INFO)


def stop_processes() -> None:
    """Leave the processes that train together."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def averaging_gradients(network: nn.Module) -> nn.Module:
    """The network, on its device, as all processes train it together; a single process gets the network itself."""
    if num_processes() == 1:
        return network
    if _sync_batchnorm:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place: its parameters are the optimizer's
    devices = [process_device()] if torch.cuda.is_available() else None
    # otherwise gradients are summed in another order after the first step, and a resume is not exact
    return DistributedDataParallel(network, devices, find_unused_parameters=True)


def gathered(value: Value) -> list[Value]:
    """The values of all processes, by rank; collective."""
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    distributed.all_gather_object(values, value)
    return values


def from_main(make: Callable[[], Value]) -> Value:
    """What ``make`` returns in the main process, for all processes; collective."""
    if num_processes() == 1:
        return make()
    values: list[Any] = [make() if is_main() else None]
    distributed.broadcast_object_list(values)
    return values[0]


def mean(value: torch.Tensor) -> torch.Tensor:
    """Mean over all processes, without a gradient; collective."""
    if num_processes() == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / num_processes()


def share_buffers(network: nn.Module) -> None:
    """Copy the main process's buffers, such as the averages of batch normalization, to all processes; collective."""
    if num_processes() > 1:
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


@contextmanager
def one_before_others() -> Iterator[None]:
    """Run a block in the first process of each machine, and then in the others, which find what it has written.

    Unlike in ignite's `one_rank_first`, the others wait as long as it takes, not only for the timeout.
    """
    key = f"block {next(_blocks)} of machine {os.environ.get('GROUP_RANK', '0')}"
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if _store is not None and not first:
        _store.wait([key], _FOREVER)
    yield
    if _store is not None and first:
        _store.set(key, "done")


def explained(error: Exception) -> Exception:
    """The error that this process ends with; if a connection failed, one that names the process that caused it."""
    if _store is None:
        return error
    with suppress(RuntimeError):  # the store is gone with the main process
        if not (isinstance(error, RuntimeError) and _CONNECTION.search(str(error))):
            _store.set("failure", f"process {rank()}: {type(error).__name__}: {error}")
            return error
        lost = _without_a_report(_store)
        if _store.check(["failure"]):
            return RuntimeError(f"stopped, since another process failed; {_store.get('failure').decode()}")
        names = ", ".join(map(str, lost))
        return RuntimeError(f"lost process {names} of {num_processes()}: killed, stuck or unreachable ({error})")
    return error


def _without_a_report(store: distributed.Store) -> list[int]:
    """The processes that do not report in time."""
    store.set(f"lost a connection {rank()}", "")
    end = time.monotonic() + _GRACE_S
    missing = list(range(num_processes()))
    while missing and time.monotonic() < end and not store.check(["failure"]):
        missing = [other for other in missing if not store.check([f"lost a connection {other}"])]
        time.sleep(0.05)
    return missing
