"""Run a training program unchanged, and write a JSON line after every step of its optimizer.

    python benchmarks/stamped.py STAMPS.jsonl -m scumble train text_to_image ...
    python benchmarks/stamped.py STAMPS.jsonl train_text_to_image_lora.py ...

The lines, by "event": "forward", the first pass with gradients through anything trainable; "step", an
optimizer step that is done; "end", the program is over. Each has seconds of the monotonic clock, which
all processes of a machine share, CPU seconds of all threads, and the highest memory so far.
"""

from __future__ import annotations

import json
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

USAGE = "usage: stamped.py STAMPS.jsonl (-m MODULE | SCRIPT) [ARGUMENT ...]"


def peak_rss_bytes() -> int:
    """The most memory that this process has had in RAM."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss begins with what the parent had before this program was started.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def stamp(file: TextIO, event: str) -> None:
    """Write one line: when, and what it has cost until now."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    if cuda:
        # A step is done when the device is: the same wait for every program.
        torch.cuda.synchronize()
    line = {
        "event": event,
        "wall_s": time.monotonic(),
        "cpu_s": time.process_time(),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if cuda:
        line["cuda_allocated_bytes"] = torch.cuda.max_memory_allocated()
        line["cuda_reserved_bytes"] = torch.cuda.max_memory_reserved()
    file.write(json.dumps(line) + "\n")
    file.flush()


def install(file: TextIO) -> None:
    """Stamp every optimizer step and the first training pass of this process."""

    def before_forward(module: torch.nn.Module, _inputs: Any) -> None:
        if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
            # Called for every module, so it goes once it has seen what it waited for.
            first_forward.remove()
            stamp(file, "forward")

    def after_step(*_: Any) -> None:
        stamp(file, "step")

    first_forward = register_module_forward_pre_hook(before_forward)
    register_optimizer_step_post_hook(after_step)


def main() -> None:
    """Run the program that the command line names, as Python itself would."""
    if len(sys.argv) < 3 or (sys.argv[2] == "-m" and len(sys.argv) < 4):
        sys.exit(USAGE)
    stamps, is_module = sys.argv[1], sys.argv[2] == "-m"
    sys.argv = sys.argv[3:] if is_module else sys.argv[2:]
    program = sys.argv[0]
    # What Python puts first for a module or a script, in place of this file's own folder.
    sys.path[0] = str(Path.cwd() if is_module else Path(program).resolve().parent)
    with Path(stamps).open("w", encoding="utf-8") as file:
        install(file)
        try:
            if is_module:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(program, run_name="__main__")
        finally:
            stamp(file, "end")


if __name__ == "__main__":
    main()
