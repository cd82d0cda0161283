"""How time and memory of training grow with batch, resolution and --memory.

    python benchmarks/bench_multi.py --work WORK --batches 1 2 4 --resolutions 256 512 \
        --memory balanced lowest --precision bf16

Started again, it measures only what is missing. --baseline adds diffusers' script to every cell.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from bench_train import (
    BASELINE,
    Side,
    add_common,
    check_common,
    describe_machine,
    machine_line,
    portable,
    prepare,
    run_side,
    versions_of,
    write,
)
from stamped import RunError

DEFAULT = "scumble"
"""Label of ours where no --memory is given."""

COLUMNS = {
    "resolution": "px",
    "batch": "batch",
    "side": "side",
    "step_s": "s/step",
    "images_s": "images/s",
    "peak_gib": "peak GiB",
    "foretold_gib": "foretold GiB",
}
"""What a row has -> the head of its column."""


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_common(parser)
    parser.add_argument("--resolutions", nargs="+", type=int, default=[512])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--memory", nargs="+", default=[], help="values of ours; else one run each")
    parser.add_argument("--ours", default="", metavar="FLAGS", help="flags for scumble as well")
    parser.add_argument("--again", action="store_true", help="measure what is done once more")
    options = parser.parse_args(words)
    check_common(parser, options)
    return options


def sides_of(options: argparse.Namespace) -> list[Side]:
    """Who runs in every cell: ours with each --memory, then the baseline if it is wanted."""
    common = tuple(shlex.split(options.ours))
    settings = {name: ("--memory", name) for name in options.memory} or {DEFAULT: ()}
    sides = [Side(label, options.precision, (*common, *flags)) for label, flags in settings.items()]
    if options.baseline != "none":
        script = Path(options.baseline).resolve()
        python = options.baseline_python
        sides.append(Side(BASELINE, options.baseline_precision, (), script, python))
    return sides


def cell_name(side: Side, resolution: int, batch: int, options: argparse.Namespace) -> str:
    """A name that changes with everything that the numbers depend on, the code included."""
    sources = sorted((HERE.parent / "src").rglob("*.py")) if side.script is None else [side.script]
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    machine = describe_machine()
    settings = [options.base, options.steps, options.every, side.precision, side.flags]
    settings += [machine["gpu"], machine["cpu"], machine["torch_threads"], versions_of(side.python)]
    digest.update(json.dumps(settings).encode())
    return f"{resolution}px_b{batch}_{side.label}_{digest.hexdigest()[:12]}.json"


def measure_cell(
    side: Side, resolution: int, batch: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One row: a short training, or what hindered it."""
    row: dict[str, Any] = {"resolution": resolution, "batch": batch, "side": side.label}
    contest = prepare(
        options.work.resolve(),
        options.base,
        resolution,
        batch,
        options.pictures,
        options.baseline_python,
    )
    try:
        run = run_side(contest, side, "cell", options.steps, options.every)
    except RunError as error:
        print(error, file=sys.stderr)
        full = "out of memory" in str(error).lower() or "exit code -9" in str(error)
        return row | {"failed": "out of memory" if full else "failed"}
    row["images_s"] = batch / run["step_s"]
    row["peak_gib"] = run.get("peak_cuda_allocated_gib", run["peak_rss_gib"])
    if "foretold_peak_mib" in run:
        row["foretold_gib"] = run["foretold_peak_mib"] / 1024
    return row | {"step_s": run["step_s"], "run": run}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people, as a table of Markdown."""
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|---:" * len(COLUMNS) + "|"]
    for row in rows:
        cells = []
        for name in COLUMNS:
            value = row.get(name, row.get("failed", "") if name == "step_s" else "")
            cells.append(f"{value:.3g}" if isinstance(value, float) else str(value))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, print and write."""
    options = parse_arguments()
    folder = options.work.resolve() / "multi"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    grid = product(options.resolutions, options.batches, sides_of(options))
    for resolution, batch, side in grid:
        done = folder / cell_name(side, resolution, batch, options)
        if done.exists() and not options.again:
            row = json.loads(done.read_text("utf-8"))
        else:
            row = measure_cell(side, resolution, batch, options)
            # A failure may have had a reason that is gone: it is tried again.
            if "failed" not in row:
                done.write_text(json.dumps(row), "utf-8")
        rows.append(row)
        print(f"{resolution} px, batch {batch}: {side.label}", file=sys.stderr, flush=True)
    machine = describe_machine()
    result = {
        "command": portable(["python", "benchmarks/bench_multi.py", *sys.argv[1:]]),
        "machine": machine,
        "rows": rows,
    }
    write(json.dumps(result, indent=2) + "\n", options.output)
    print(f"{machine_line(machine)}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
