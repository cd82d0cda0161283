"""Run a training program unchanged, and write a JSON line whenever a step is done.

    python benchmarks/stamped.py STAMPS.jsonl -m scumble train text_to_image ...
    python benchmarks/stamped.py STAMPS.jsonl train_text_to_image_lora.py ...

The lines, by "event": "forward", the first pass with gradients through anything trainable, with
what went in; "step", training steps that are done, with their "number"; "end", the program is over.
Each has seconds of the monotonic clock, which all processes of a machine share, CPU seconds of all
threads, and the highest memory so far. Nothing is imported before the program itself does so, but
for what stand-ins need to find first.

`run_stamped` and `measure` are for those who start such a program.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any, TextIO

PEAKS = {
    "rss": "peak_rss_bytes",
    "cuda_allocated": "cuda_allocated_bytes",
    "cuda_reserved": "cuda_reserved_bytes",
    "cuda_used": "cuda_used_bytes",
}
"""Kind of memory -> its key in a line of stamps."""


class RunError(Exception):
    """A program that was to be measured did not finish."""


def run_stamped(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> dict[str, Any]:
    """Run a program behind this file, with no network, and measure it.

    Args:
        command: options of this file, if any; STAMPS; the program with its arguments. The stamps
            go where the word STAMPS stands.
        folder: for the stamps and what the program prints.
        environment: variables to add.
        python: interpreter that runs it.

    Returns:
        See `measure`.

    Raises:
        RunError: the program failed, or took too few steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamps, printed = folder / "stamps.jsonl", folder / "printed.txt"
    words = [str(stamps) if word == "STAMPS" else word for word in command]
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    with printed.open("w") as file:
        started = time.monotonic()
        done = subprocess.run(
            [python, str(Path(__file__).resolve()), *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | offline | (environment or {}),
        )
    if done.returncode != 0:
        lines = "\n  ".join(printed.read_text(errors="replace").splitlines()[-5:])
        raise RunError(f"exit code {done.returncode}, all it printed is in {printed}\n  {lines}")
    return measure([json.loads(line) for line in stamps.read_text().splitlines()], started)


def measure(records: Sequence[dict[str, Any]], started: float) -> dict[str, Any]:
    """What the stamps of one run say.

    Args:
        records: the lines that were written.
        started: the monotonic clock when the command was given.

    Returns:
        "steps_s" and "steps_cpu_s", a number of seconds per step for each pair of lines;
        their medians "step_s" and "step_cpu_s"; "step_low_s", the fastest; seconds from the command
        to the first training pass, first finished step and end; the highest memory until the last
        step, and of the whole command; "work", what the first pass got.

    Raises:
        RunError: fewer than two lines of steps.
    """
    steps = [record for record in records if record["event"] == "step"]
    if len(steps) < 2:
        raise RunError(f"{len(steps)} steps were seen, two are needed")
    forward = next((record for record in records if record["event"] == "forward"), None)
    result: dict[str, Any] = {
        "first_forward_s": None if forward is None else forward["wall_s"] - started,
        "first_step_s": steps[0]["wall_s"] - started,
        "command_s": records[-1]["wall_s"] - started,
    }
    for name, clock in (("steps_s", "wall_s"), ("steps_cpu_s", "cpu_s")):
        result[name] = [
            (after[clock] - before[clock]) / (after["number"] - before["number"])
            for before, after in pairwise(steps)
        ]
    result["step_s"] = median(result["steps_s"])
    result["step_low_s"] = min(result["steps_s"])
    result["step_cpu_s"] = median(result["steps_cpu_s"])
    last = records.index(steps[-1])
    for name, key in PEAKS.items():
        for end, part in (("", records[: last + 1]), ("_command", records)):
            peaks = [record[key] for record in part if key in record]
            if peaks:
                result[f"peak_{name}{end}_gib"] = max(peaks) / 2**30
    work = ("input_shape", "trained_parameters", "trained_dtypes", "frozen_dtype")
    result["work"] = {key: forward.get(key) for key in work} if forward else {}
    return result


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """The command line; everything behind STAMPS.jsonl is the program's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--every", type=int, default=1, help="write a line for every so many steps")
    parser.add_argument(
        "--yields",
        metavar="MODULE:FUNCTION",
        help="a step is what this generator yields, not a call of an optimizer",
    )
    parser.add_argument("--stand_ins", help="folder of packages for what is not installed")
    parser.add_argument("stamps", type=Path)
    parser.add_argument("program", nargs=argparse.REMAINDER, help="-m MODULE or SCRIPT, arguments")
    options = parser.parse_args(words)
    if len(options.program) < (2 if options.program[:1] == ["-m"] else 1):
        parser.error("name a program to run: -m MODULE or SCRIPT, with its arguments")
    return options


def peak_rss_bytes() -> int:
    """The most memory that this process has had in RAM."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss begins with what the parent had before this program was started.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def stamp(file: TextIO, event: str, **facts: Any) -> None:
    """Write one line: when, and what it has cost until now."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    if torch is not None and cuda:
        # A step is done when the device is: the same wait for every program.
        torch.cuda.synchronize()
    line = {
        "event": event,
        **facts,
        "wall_s": time.monotonic(),
        "cpu_s": time.process_time(),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if torch is not None and cuda:
        free, total = torch.cuda.mem_get_info()
        line["cuda_allocated_bytes"] = torch.cuda.max_memory_allocated()
        line["cuda_reserved_bytes"] = torch.cuda.max_memory_reserved()
        # With the context, and with whatever else runs on the device.
        line["cuda_used_bytes"] = total - free
    file.write(json.dumps(line) + "\n")
    file.flush()


class Steps:
    """Counts steps, and stamps every so many.

    Args:
        file: where the lines go.
        every: steps from line to line; the first step has one.
    """

    def __init__(self, file: TextIO, every: int) -> None:
        self.file, self.every, self.number = file, every, 0

    def count(self, *_: Any) -> None:
        """One more step is done."""
        self.number += 1
        # A line waits for the device; steps without one may overlap, as they do in real runs.
        if (self.number - 1) % self.every == 0:
            stamp(self.file, "step", number=self.number)


class AfterImport(MetaPathFinder):
    """Calls back once the program has imported a module.

    Args:
        actions: name of a module -> what to do with it.
    """

    def __init__(self, actions: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self.actions = dict(actions)

    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        """Let the others find it, and add to what its loader does."""
        action = self.actions.pop(fullname, None)
        if action is None:
            return None
        spec = importlib.util.find_spec(fullname)
        self.actions[fullname] = action  # to look for a module is not to import it
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            self.actions.pop(fullname)(module)

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


def work_of(module: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """What a pass works on: the same for two programs that do the same work."""
    trained = [p for p in module.parameters() if p.requires_grad]
    frozen = next((p for p in module.parameters() if not p.requires_grad), None)
    first = next((value for value in inputs if hasattr(value, "requires_grad")), None)
    return {
        "input_shape": None if first is None else list(first.shape),
        "trained_parameters": sum(p.numel() for p in trained),
        "trained_dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in trained}),
        "frozen_dtype": None if frozen is None else str(frozen.dtype).removeprefix("torch."),
    }


def watch_forward(modules: ModuleType, file: TextIO) -> None:
    """Stamp the first training pass of this process; `modules` is torch.nn.modules.module."""
    import torch

    def before_forward(module: torch.nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
            # Called for every module, so it goes once it has seen what it waited for.
            handle.remove()
            stamp(file, "forward", **work_of(module, inputs))

    handle = modules.register_module_forward_pre_hook(before_forward)


def watch_generator(module: ModuleType, name: str, steps: Steps) -> None:
    """Count what a generator function yields: an optimizer in a CUDA graph calls no hook."""
    generate: Callable[..., Iterator[Any]] = getattr(module, name)

    def counted(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for item in generate(*args, **kwargs):
            steps.count()
            yield item

    setattr(module, name, counted)


def actions(options: argparse.Namespace, file: TextIO) -> dict[str, Callable[[ModuleType], None]]:
    """What to do after which import, so that passes and steps are seen."""
    steps = Steps(file, options.every)
    found: dict[str, Callable[[ModuleType], None]] = {
        "torch.nn.modules.module": lambda module: watch_forward(module, file)
    }
    if options.yields:
        name, _, function = options.yields.partition(":")
        return found | {name: lambda module: watch_generator(module, function, steps)}
    count = steps.count
    return found | {
        "torch.optim.optimizer": lambda module: module.register_optimizer_step_post_hook(count)
    }


def use_stand_ins(folder: str) -> None:
    """Let the program, and no library, find the packages of a folder.

    The libraries look what is installed when they are imported or first asked, and would want more
    of a package than a stand-in has.
    """
    import datasets.config  # noqa: F401
    import diffusers.utils.import_utils  # noqa: F401
    from transformers.utils import is_torchvision_available

    is_torchvision_available()
    sys.path.append(folder)


def run(program: list[str]) -> None:
    """Run a module or a script as Python itself would."""
    is_module = program[0] == "-m"
    sys.argv = program[1:] if is_module else program
    name = sys.argv[0]
    if is_module:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")


def main() -> None:
    """Run the program that the command line names, and write its stamps."""
    options = parse_arguments(sys.argv[1:])
    is_module = options.program[0] == "-m"
    # What Python puts first for a module or a script, in place of this file's own folder.
    sys.path[0] = str(Path.cwd() if is_module else Path(options.program[0]).resolve().parent)
    with options.stamps.open("w", encoding="utf-8") as file:
        sys.meta_path.insert(0, AfterImport(actions(options, file)))
        if options.stand_ins:
            use_stand_ins(options.stand_ins)
        try:
            run(options.program)
        finally:
            stamp(file, "end")


if __name__ == "__main__":
    main()
