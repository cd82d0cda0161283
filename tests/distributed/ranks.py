"""Processes of one run, forked from a server that has imported everything: a start costs nothing.

Each is a process like any other, with the variables that a launcher sets, and runs the `scumble`
command.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

Arguments = Callable[..., list[str]]
"""Builds the words of a quick run; its output folder is the first."""

LIMIT_S = 200
TRACEBACK = 70
"""Exit code of a process that ended in a traceback."""

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["preloaded"])


@cache
def start_server() -> None:
    """Start the server; it finds what it is to import by PYTHONPATH alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), before or ""])
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        code: exit code; that of a signal is negative.
        output: what it said.
        counts: what it did how often.
    """

    code: int
    output: str
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rank:
    """A process to be.

    Args:
        arguments: of the `scumble` command.
        output: file for what it says.
        environment: variables of it.
        before: called first with `options`; may put things in the way.
        options: of it.
    """

    arguments: Sequence[str]
    output: Path
    environment: Mapping[str, str]
    before: Callable[..., None] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wired(count: int, port: int, per_machine: int | None = None) -> list[dict[str, str]]:
    """The variables that a launcher sets for each of so many processes."""
    local = per_machine or count
    return [
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_RANK": str(rank % local),
            "LOCAL_WORLD_SIZE": str(local),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(count)
    ]


class Running:
    """Processes that were started, to be looked at, signalled and waited for."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        start_server()
        self.ranks = ranks
        self.processes = [SERVER.Process(target=_be, args=(rank,)) for rank in ranks]
        for process in self.processes:
            process.start()

    def signal(self, number: signal.Signals, rank: int) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def wait(self) -> list[Ended]:
        """Wait for all, and end those that do not end."""
        end = time.monotonic() + LIMIT_S
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [number for number, process in enumerate(self.processes) if process.is_alive()]
        self.kill()
        ended = [_ended(r, p.exitcode) for r, p in zip(self.ranks, self.processes, strict=True)]
        assert not late, f"processes {late} did not end:\n" + "\n".join(e.output for e in ended)
        return ended

    def kill(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def running(ranks: Sequence[Rank]) -> Any:
    """Start processes; whatever happens, none of them is left."""
    started = Running(ranks)
    try:
        yield started
    finally:
        started.kill()


def run(ranks: Sequence[Rank]) -> list[Ended]:
    with running(ranks) as started:
        ended: list[Ended] = started.wait()
        return ended


def wait_for(what: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def _ended(rank: Rank, code: int | None) -> Ended:
    text = rank.output.read_text("utf-8", "replace") if rank.output.exists() else ""
    counts = rank.output.with_suffix(".json")
    found = json.loads(counts.read_text()) if counts.exists() else {}
    return Ended(-1 if code is None else code, text, found)


def _be(rank: Rank) -> None:
    code = TRACEBACK
    try:
        os.setsid()
        output = os.open(rank.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(rank.environment)
        code = _command(rank)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(rank: Rank) -> int:
    import torch
    from tqdm import tqdm

    from scumble.cli.main import run as command
    from scumble.families.stable_diffusion import StableDiffusion
    from scumble.inference import generator

    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is one of processes, which would be missed
    counts = {"encode_pixels": 0, "encode_prompts": 0, "draw_together": 0}

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            counts[function.__name__] += 1
            return function(*arguments, **options)

        return call

    StableDiffusion.encode_pixels = counted(StableDiffusion.encode_pixels)  # type: ignore[method-assign]
    StableDiffusion.encode_prompts = counted(StableDiffusion.encode_prompts)  # type: ignore[method-assign]
    import scumble.training.class_pictures as class_pictures

    class_pictures.draw_together = counted(generator.draw_together)
    if rank.before is not None:
        rank.before(**rank.options)
    try:
        return command(rank.arguments)
    finally:
        rank.output.with_suffix(".json").write_text(json.dumps(counts))
