"""The processes that ``accelerate launch`` has started, or this one alone.

Accelerate starts several processes on processors only with ``--multi_gpu`` (which then means: several) or through MPI;
plain ``--num_processes 2`` starts one there and says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from allheads.corpus.running_statistics import Tally
from allheads.extras import extra

#: What torchrun and MPI tell the processes that they start.
_SIGNS = {"RANK", "LOCAL_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}


@dataclass(frozen=True)
class Processes:
    """How many, and which one this is; 0 is the one that writes."""

    count: int
    index: int

    @classmethod
    def found(cls) -> Processes:
        """Those of this launch; joins their group, gloo on processors."""
        if not _launched():
            return cls(1, 0)
        state = _state()
        return cls(state.num_processes, state.process_index)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()

    def gather(self, total: Tally, part: Tally, parts: int) -> None:
        """Add the tallies of the first ``parts`` processes to the first one's total, in their order."""
        if self.index == 0:
            total.add(part)
            for sender in range(1, parts):
                # What was added is no longer needed.
                for tensor in _in_order(part):
                    distributed.recv(tensor, sender)
                total.add(part)
        elif self.index < parts:
            for tensor in _in_order(part):
                distributed.send(tensor, 0)

    def share(self, total: Tally) -> None:
        """Let all have the first one's total."""
        if self.count > 1:
            for tensor in _in_order(total):
                distributed.broadcast(tensor, 0)


def _in_order(tally: Tally) -> Iterable[Tensor]:
    return tally.tensors().values()


def device() -> str:
    """Where a process is to work: on the device that accelerate gives it, and alone on the processor."""
    return "cpu" if Processes.found().count == 1 else str(_state().device)


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
