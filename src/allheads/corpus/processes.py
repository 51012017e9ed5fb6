"""The processes that ``accelerate launch`` has started, or this one alone.

Accelerate starts several processes on processors only with ``--multi_gpu`` (which then means: several) or through MPI;
plain ``--num_processes 2`` starts one there and says nothing.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import distributed

from allheads.corpus.running_statistics import RunningStatistics
from allheads.extras import extra

#: What torchrun and MPI tell the processes that they start.
_SIGNS = {"RANK", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}


def join() -> tuple[int, int]:
    """Join the processes of this launch, over gloo on processors: the index of this one, and how many there are.

    The process with index 0 is the one that writes.
    """
    if not _launched():
        return 0, 1
    state = _state()
    return state.process_index, state.num_processes


def wait() -> None:
    """Until all processes are here."""
    if join()[1] > 1:
        distributed.barrier()


def gather(total: RunningStatistics, part: RunningStatistics, parts: int) -> None:
    """Add the parts of the first ``parts`` processes to the first one's total, in their order."""
    index, _ = join()
    if index == 0:
        total.add(part)
        for sender in range(1, parts):
            # What was added is no longer needed.
            for tensor in part.tensors().values():
                distributed.recv(tensor, sender)
            total.add(part)
    elif index < parts:
        for tensor in part.tensors().values():
            distributed.send(tensor, 0)


def share(total: RunningStatistics) -> None:
    """Give all processes the first one's total."""
    if join()[1] > 1:
        for tensor in total.tensors().values():
            distributed.broadcast(tensor, 0)


def device() -> str:
    """Where a process is to work: on the device that accelerate gives it, and alone on the processor."""
    return "cpu" if join()[1] == 1 else str(_state().device)


def fewer_than_asked() -> bool:
    """Was accelerate asked for several processes, and started one?"""
    return {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys() and not _launched()


def leave() -> None:
    """Leave the group of processes, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _state() -> Any:
    """What accelerate knows of this process. Raises `AllHeadsError` without it: it comes with an extra."""
    accelerate = extra("accelerate", "distributed", "sweep in several processes")
    return accelerate.PartialState(cpu=not torch.cuda.is_available())


def _launched() -> bool:
    return not _SIGNS.isdisjoint(os.environ)
