"""A process that has imported everything, and forks a child for each run: a start costs nothing.

The child is a process like any other and runs the `scumble` command: it can be killed, and its
disk can be full. Jobs come in as lines of JSON, and outcomes go out.
"""

import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LIMIT_S = 900
PIPELINE = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
TRACEBACK = 70
"""Exit code of a run that ended in a traceback."""


@dataclass(frozen=True)
class Job:
    """A run.

    Args:
        arguments: of the `scumble` command.
        output: file that gets what it says.
        environment: variables of it alone.
        folder: that it works in.
        phase: in which something happens; None where nothing does.
        line: of the phase.
        act: name of a function in `acts.py`, or of a signal, which is then sent from outside.
        options: of the act.
        delay_s: how long after the moment a signal comes.
        modules: have the outcome say what was imported.
        count: have the outcome say how many lines each phase has.
        uid: whose run it is.
    """

    arguments: list[str]
    output: str
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "."
    phase: str | None = None
    line: int = 0
    act: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    delay_s: float = 0.0
    modules: bool = False
    count: bool = False
    uid: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        code: exit code; that of a signal is negative.
        fired: whether its moment came.
        lines: of each phase, where the run could still say so.
        output: what it said.
        modules: it imported, where asked for.
    """

    code: int
    fired: bool
    lines: dict[str, int]
    output: str
    modules: list[str] = field(default_factory=list)


class ForkServer:
    """Starts the server on entry and ends it on exit."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(self, job: Job) -> Outcome:
        """Run a job to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Outcome(**answer, output=Path(job.output).read_text("utf-8", "replace"))

    def learn(self, job: Job) -> Outcome:
        """Run a job, and import in the server what it had to import."""
        outcome = self.run(Job(**(asdict(job) | {"modules": True})))
        assert outcome.code == 0, outcome.output
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"modules": outcome.modules}) + "\n")
        return outcome


def serve() -> None:
    """Answer jobs until there are no more."""
    for line in sys.stdin:
        asked = json.loads(line)
        if "arguments" not in asked:
            for name in asked["modules"]:
                with suppress(ImportError):  # some make modules that are nowhere on the disk
                    importlib.import_module(name)
            gc.freeze()  # or each child would copy everything, by looking through it
            continue
        print(json.dumps(_run(Job(**asked))), flush=True)  # noqa: T201


def _run(job: Job) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_run(job, writing)
    os.close(writing)
    answer: dict[str, Any] = {"fired": False, "lines": {}}
    signal.alarm(LIMIT_S)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    with os.fdopen(reading, encoding="utf-8") as news:
        for line in news:
            answer |= json.loads(line)
            if line.startswith('{"fired"') and job.act.startswith("SIG"):
                time.sleep(job.delay_s)
                os.kill(child, signal.Signals[job.act])
    _, status = os.waitpid(child, 0)
    signal.alarm(0)
    return answer | {"code": os.waitstatus_to_exitcode(status)}


def _be_the_run(job: Job, news: int) -> None:
    code = TRACEBACK
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        output = os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(job.environment)
        os.chdir(job.folder)
        if job.uid is not None:
            os.setuid(job.uid)
        code = _command(job, news)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(job: Job, news: int) -> int:
    import acts
    from moments import Clock

    from scumble.cli.main import run

    def act() -> None:
        os.write(news, b'{"fired": true}\n')
        if not job.act.startswith("SIG"):
            getattr(acts, job.act)(**job.options)
        elif not job.delay_s:
            signal.pause() if job.act == "SIGKILL" else time.sleep(0.01)

    clock = Clock(job.phase, job.line, act)
    if job.phase or job.count:
        clock.start()
    code = run(job.arguments)
    sys.settrace(None)
    last: dict[str, Any] = {"lines": clock.counts}
    if job.modules:
        last["modules"] = sorted(name for name in sys.modules if not name.startswith("__"))
    os.write(news, json.dumps(last).encode() + b"\n")
    return code


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    # What every run needs; what else it imports is learnt from the first.
    for needed in ("scumble.cli.train", "scumble.training.run", PIPELINE):
        importlib.import_module(needed)

    serve()
