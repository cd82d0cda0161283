"""Time scumble and diffusers' train_text_to_image_lora.py in turn, on a full-size base.

    python benchmarks/bench_train.py --work /tmp/bench --baseline train_text_to_image_lora.py \
        --resolution 256 --steps 5 --rounds 3 --output result.json

Both get the same base, pictures, rank, precision and steps, and both run unmodified through
stamped.py. The base is Stable Diffusion 1.5 with random weights, unless --base names another.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from full_size import build_base, make_pictures

SCRIPT = "train_text_to_image_lora.py"
SIDES = ("scumble", "diffusers")
PRECISIONS = {"fp32": "no", "bf16": "bf16"}
"""Precision -> what --mixed_precision calls it on both sides."""

MEASURES = {
    "step_s": "seconds per step",
    "step_cpu_s": "CPU seconds per step",
    "peak_rss_gib": "peak memory, GiB",
    "peak_cuda_allocated_gib": "peak CUDA allocated, GiB",
    "peak_cuda_reserved_gib": "peak CUDA reserved, GiB",
    "first_forward_s": "seconds to first training pass",
    "first_step_s": "seconds to first finished step",
    "command_s": "seconds of the whole command",
}
"""What is measured -> its name in the table."""


class RunFailed(Exception):
    """A program that was to be measured did not finish."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_common(parser)
    parser.add_argument("--baseline", type=Path, required=True, help=f"diffusers' {SCRIPT}")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--baseline_precision", choices=PRECISIONS, help="default: --precision")
    parser.add_argument("--rounds", type=int, default=1, help="ours, theirs: so many times")
    options = parser.parse_args(arguments)
    options.baseline_precision = options.baseline_precision or options.precision
    check_steps(parser, options)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not options.baseline.is_file():
        try:
            tag = f"v{version('diffusers')}"
        except PackageNotFoundError:
            tag = "main"
        parser.error(
            f"--baseline {options.baseline} is not a file; get diffusers' script with\n  curl -LO "
            "https://raw.githubusercontent.com/huggingface/diffusers/"
            f"{tag}/examples/text_to_image/{SCRIPT}"
        )
    return options


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every benchmark of training."""
    parser.add_argument("--work", type=Path, required=True, help="folder for base and results")
    parser.add_argument("--base", help="train this base; default: build WORK/base if missing")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--memory", help="scumble's --memory; left out when not given")
    parser.add_argument("--steps", type=int, default=5, help="the first is no steady step")
    parser.add_argument("--pictures", type=int, default=4, help="rounded up to full batches")
    parser.add_argument("--output", type=Path, help="write the result here, as JSON")


def check_steps(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a clear line where there would be no steady step."""
    if options.steps < 2:
        parser.error("--steps must be at least 2: times are taken between two finished steps")


def prepare(work: Path, base: str | None) -> str:
    """The base to train, built if it is missing and none is named."""
    work.mkdir(parents=True, exist_ok=True)
    if base is None:
        build_base(work / "base")
    return base or str(work / "base")


def captioned_pictures(folder: Path, count: int) -> None:
    """Write pictures that differ, with captions where both sides look: metadata.jsonl."""
    make_pictures(folder, count)
    lines = []
    for number in range(count):
        path, caption = folder / f"{number}.png", folder / f"{number}.txt"
        # Scumble encodes equal pictures once, which no real data set would let it do.
        with Image.open(path) as picture:
            picture.putpixel((320, 256), number % 256)
            picture.save(path)
        lines.append(json.dumps({"file_name": path.name, "text": caption.read_text()}))
        caption.unlink()
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def command_for(
    side: str, options: argparse.Namespace, base: str, pictures: Path, folder: Path
) -> list[str]:
    """What to run behind stamped.py, the same flags for both sides where both have them."""
    if side == "scumble":
        command = ["-m", "scumble", "train", "text_to_image", "--no_before_after"]
        command += ["--memory", options.memory] if options.memory else []
        precision = options.precision
    else:
        command = [str(options.baseline.resolve()), "--cache_dir", str(folder / "datasets")]
        precision = options.baseline_precision
    flags = {
        "pretrained_model_name_or_path": base,
        "train_data_dir": pictures,
        "output_dir": folder / "output",
        "resolution": options.resolution,
        "train_batch_size": options.batch_size,
        "max_train_steps": options.steps,
        "mixed_precision": PRECISIONS[precision],
        "rank": 4,
        "learning_rate": 1e-4,
        "lr_warmup_steps": 0,
        "checkpointing_steps": 1_000_000,
        "dataloader_num_workers": 0,
        "seed": 0,
    }
    return [*command, "--center_crop", *(str(w) for k, v in flags.items() for w in (f"--{k}", v))]


def run_stamped(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a program behind stamped.py and measure it.

    Args:
        command: `-m MODULE` or a script, with its arguments.
        folder: for the stamps and what the program prints.

    Returns:
        See `measure`.

    Raises:
        RunFailed: the program failed, or took too few steps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamps, printed = folder / "stamps.jsonl", folder / "printed.txt"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with printed.open("w") as file:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, str(HERE / "stamped.py"), str(stamps), *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    if done.returncode != 0:
        lines = "\n  ".join(printed.read_text(errors="replace").splitlines()[-5:])
        raise RunFailed(f"exit code {done.returncode}, all it printed is in {printed}\n  {lines}")
    records = [json.loads(line) for line in stamps.read_text().splitlines()]
    return measure(records, started)


def measure(records: Sequence[dict[str, Any]], started: float) -> dict[str, Any]:
    """What the stamps of one run say.

    Args:
        records: the lines that stamped.py wrote.
        started: the monotonic clock when the command was given.

    Returns:
        "steps_s" and "steps_cpu_s", a number for each step but the first, and `MEASURES`, those of
        CUDA only where it was used.

    Raises:
        RunFailed: there are fewer than two steps.
    """
    steps = [record for record in records if record["event"] == "step"]
    if len(steps) < 2:
        raise RunFailed(f"{len(steps)} optimizer steps were seen, two are needed")
    pairs = list(zip(steps, steps[1:], strict=False))
    forward = next((r["wall_s"] - started for r in records if r["event"] == "forward"), None)
    result: dict[str, Any] = {
        "steps_s": [after["wall_s"] - before["wall_s"] for before, after in pairs],
        "steps_cpu_s": [after["cpu_s"] - before["cpu_s"] for before, after in pairs],
        "first_forward_s": forward,
        "first_step_s": steps[0]["wall_s"] - started,
        "command_s": records[-1]["wall_s"] - started,
    }
    result["step_s"] = median(result["steps_s"])
    result["step_cpu_s"] = median(result["steps_cpu_s"])
    for name in ("rss", "cuda_allocated", "cuda_reserved"):
        key = f"peak_{name}_bytes" if name == "rss" else f"{name}_bytes"
        peaks = [record[key] for record in records if key in record]
        if peaks:
            result[f"peak_{name}_gib"] = max(peaks) / 2**30
    return result


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """All rounds of one side: medians over all steady steps or rounds, the highest of peaks."""
    summary: dict[str, float] = {}
    for name in MEASURES:
        values = [run[name] for run in runs if run.get(name) is not None]
        if name in ("step_s", "step_cpu_s"):
            values = [v for run in runs for v in run[name.replace("step_", "steps_")]]
        if values:
            summary[name] = max(values) if name.startswith("peak_") else median(values)
    return summary


def ratios(summaries: dict[str, dict[str, float]]) -> dict[str, float]:
    """Diffusers divided by scumble: above 1, scumble needs less."""
    ours, theirs = (summaries[side] for side in SIDES)
    return {name: theirs[name] / ours[name] for name in ours if name in theirs and ours[name]}


def machine() -> dict[str, Any]:
    """The hardware and the versions that numbers belong to."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s for s in info.read_text().splitlines() if s.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    versions = {}
    for package in ("torch", "diffusers", "accelerate", "peft", "transformers", "datasets"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    git = ["git", "-C", str(HERE)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip() or None,
        "uncommitted_changes": bool(changed.stdout.strip()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def configuration(options: argparse.Namespace, base: str) -> dict[str, Any]:
    """Every option, as JSON can hold it."""
    values = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    return values | {"base": base}


def table(summaries: dict[str, dict[str, float]], quotients: dict[str, float]) -> str:
    """The result for people."""
    lines = [f"{'':32}{SIDES[0]:>12}{SIDES[1]:>12}{'ratio':>8}"]
    for name, title in MEASURES.items():
        if any(name in summary for summary in summaries.values()):
            cells = [summaries[side].get(name, float("nan")) for side in SIDES]
            quotient = quotients.get(name, float("nan"))
            lines.append(f"{title:32}{cells[0]:12.3f}{cells[1]:12.3f}{quotient:8.2f}")
    return "\n".join([*lines, "ratio: diffusers / scumble, above 1 scumble needs less"])


def write(result: dict[str, Any], output: Path | None) -> None:
    """Put the result into a file, where one is wanted."""
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """Run both in turn, compare, print and write."""
    options = parse_arguments()
    work = options.work.resolve()
    base = prepare(work, options.base)
    folder = work / f"bench_train_{time.time():.0f}"
    # Full batches only: a smaller last one would be a cheaper step.
    count = -(-max(options.pictures, 1) // options.batch_size) * options.batch_size
    captioned_pictures(folder / "pictures", count)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    commands = {}
    for number in range(options.rounds):
        for side in SIDES:
            here = folder / f"{number}_{side}"
            command = command_for(side, options, base, folder / "pictures", here)
            commands[side] = command
            try:
                runs[side].append(run_stamped(command, here))
            except RunFailed as error:
                sys.exit(f"{side}, round {number}: {error}")
            step = runs[side][-1]["step_s"]
            print(f"round {number}: {side}: {step:.3f} s per step", file=sys.stderr, flush=True)
    summaries = {side: summarise(runs[side]) for side in SIDES}
    result = {
        "configuration": configuration(options, base) | {"pictures": count},
        "commands": commands,
        "baseline_sha256": hashlib.sha256(options.baseline.read_bytes()).hexdigest(),
        "machine": machine(),
        "summary": summaries,
        "ratios": ratios(summaries),
        "rounds": runs,
    }
    write(result, options.output)
    print(json.dumps(result, indent=2))
    print("\n" + table(summaries, result["ratios"]))


if __name__ == "__main__":
    main()
