"""How a launcher says which processes belong together, and how they find each other."""

import os
import platform
from datetime import timedelta
from typing import Any

import torch

from scumble.errors import UserError, first_line
from scumble.training.processes import Processes, ended_by_signals

WAY_OUT = "Start it with torchrun --nproc_per_node N -m scumble train ..., or unset WORLD_SIZE."

STARTERS = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
}
"""Variable with the number of processes -> what sets it and connects nothing."""

PATIENCE_MIN = 15
"""So long processes wait for one that does not come."""


def launched() -> Processes:
    """Which of the processes that a launcher started this one is, by its environment.

    Raises:
        UserError: there seem to be several that nothing connects.
    """
    count = os.environ.get("WORLD_SIZE")
    if count is None:
        _refuse_unconnected()
    if count in (None, "1"):
        return Processes()
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    lacking = [name for name in needed if name not in os.environ]
    if lacking:
        raise UserError(
            f"WORLD_SIZE is {count}, and {', '.join(lacking)} is not set: each process would train "
            "on its own",
            WAY_OUT,
        )
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        rank, size, local_rank, local = (int(os.environ.get(n, str(count))) for n in names)
    except ValueError as error:
        raise UserError(
            f"the launcher set {', '.join(names)} to what is no number", WAY_OUT
        ) from error
    return Processes(rank, size, local_rank, local)


def _refuse_unconnected() -> None:
    for variable, program in STARTERS.items():
        count = os.environ.get(variable, "1")
        if count not in ("", "1"):
            raise UserError(
                f"{program} started {count} processes, and each would train on its own",
                f"Let {program} start one torchrun on each machine: docs/how-to/multi_gpu.md has "
                "the lines.",
            )
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes and started one",
            "It does so for --cpu. Say --multi_gpu, which works on processors too, or use torchrun "
            "--nproc_per_node N.",
        )


def connect(processes: Processes, on_gpu: bool) -> None:
    """Let the processes find each other; they stay connected as long as they live.

    Raises:
        UserError: they did not find each other.
    """
    if processes.count == 1 or torch.distributed.is_initialized():
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        with ended_by_signals():
            timeout = timedelta(minutes=PATIENCE_MIN)
            store, rank, count = next(rendezvous("env://", timeout=timeout))
            # torchrun keeps one store for all its attempts, and in it the addresses of the dead.
            attempt = PrefixStore(f"{restarts()}/{count}", store)
            torch.distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                # Others may have to wait while the main process draws.
                timeout=timedelta(hours=12),
                store=attempt,
                rank=rank,
                world_size=count,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the {processes.count} processes did not find each other: {first_line(error)}",
            "Is the first machine's MASTER_ADDR and MASTER_PORT reachable from here? With several "
            "networks, name the right one in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME.",
        ) from error


def restarts() -> int:
    """How many times torchrun has started the processes of this launch anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launcher() -> dict[str, Any] | None:
    """What tells this launch from any other; None where no launcher started this process."""
    import psutil

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    agent = psutil.Process(os.getppid())
    started = float(agent.create_time())
    return {"pid": agent.pid, "started": started, "host": platform.node()}
