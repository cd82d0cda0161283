"""Time scumble and diffusers' train_text_to_image_lora.py in turn, on a full-size base.

    python benchmarks/bench_train.py --work WORK --baseline train_text_to_image_lora.py \
        --resolution 256 --steps 5 --rounds 3 --output result.json --markdown result.md

All get the same base, pictures, rank, precision and steps, and all run unmodified through
stamped.py. The base is Stable Diffusion 1.5 with random weights, unless --base names another.
Several settings of ours beside each other: --variant "lean=--memory lowest" --variant "plain=".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from full_size import build_base, make_pictures
from stamped import RunError, run_stamped

SCRIPT = "train_text_to_image_lora.py"
BASELINE = "diffusers"
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Precision -> what --mixed_precision calls it on both sides."""
RANK = 4
PACKAGES = ("torch", "diffusers", "accelerate", "peft", "transformers", "datasets", "bitsandbytes")
"""What is imported where it is installed, so that times depend on it."""

ABSOLUTE = re.compile(r"(?<![\w.~/])/(?:[^\s/'\"=]+/)*([^\s/'\"=]+)")
"""An absolute path; its last name is the group."""

Runs = dict[str, list[dict[str, Any]]]
"""Label of a side -> what each of its runs measured, see `stamped.measure`."""

MEASURES = {
    "step_s": "seconds per step",
    "step_low_s": "seconds per step, fastest",
    "step_cpu_s": "CPU seconds per step",
    "peak_rss_gib": "peak memory until the last step, GiB",
    "peak_rss_command_gib": "peak memory of the whole command, GiB",
    "peak_cuda_allocated_gib": "peak CUDA allocated until the last step, GiB",
    "peak_cuda_allocated_command_gib": "peak CUDA allocated of the whole command, GiB",
    "peak_cuda_reserved_gib": "peak CUDA reserved until the last step, GiB",
    "peak_cuda_used_gib": "CUDA device in use, with its context, GiB",
    "first_forward_s": "seconds to the first training pass",
    "first_step_s": "seconds to the first finished step",
    "cold_first_step_s": "seconds to the first finished step, nothing cached",
    "command_s": "seconds of the whole command",
}
"""What is measured -> its name in the table."""


@dataclass(frozen=True)
class Side:
    """One program with one setting.

    Args:
        label: its name in tables.
        precision: a key of `PRECISIONS`.
        flags: that it gets besides those that all get.
        script: diffusers' script; None for scumble.
        python: interpreter that runs it.
    """

    label: str
    precision: str
    flags: tuple[str, ...] = ()
    script: Path | None = None
    python: str = sys.executable


@dataclass(frozen=True)
class Contest:
    """What all sides do alike.

    Args:
        base: the model to train, as both programs take it.
        base_name: the same for people, without a path.
        pictures: folder of the data.
        folder: where results and caches of this contest go.
        resolution: edge in pixels.
        batch_size: pictures per step.
        torchvision: the version that the baseline will find, or "stand-in".
    """

    base: str
    base_name: str
    pictures: Path
    folder: Path
    resolution: int
    batch_size: int
    torchvision: str


def prepare(
    work: Path,
    base: str | None,
    resolution: int,
    batch_size: int,
    pictures: int,
    python: str = sys.executable,
) -> Contest:
    """Build the base if it is missing and none is named, and write the pictures.

    Args:
        work: folder for everything.
        base: folder or id of a base; tiny for the built-in one; None for a full-size one with
            random weights.
        resolution: edge in pixels.
        batch_size: pictures per step.
        pictures: how many, rounded up to full batches: a smaller last one would be a cheaper step.
        python: the interpreter of the baseline.
    """
    folder = work / f"contest_{time.time_ns() // 1_000_000}"
    folder.mkdir(parents=True)
    if base is None:
        build_base(work / "base")
        base, name = str(work / "base"), "Stable Diffusion 1.5, random weights"
    elif base == "tiny":
        base, name = str(files("scumble") / "assets" / "tiny"), "the built-in scumble-tiny"
    else:
        name = Path(base).name
    _read_all(Path(base))
    count = -(-max(pictures, 1) // batch_size) * batch_size
    captioned_pictures(folder / "pictures", count)
    torchvision = _torchvision(python)
    return Contest(base, name, folder / "pictures", folder, resolution, batch_size, torchvision)


def _read_all(folder: Path) -> None:
    """Let the system keep the base in memory: whoever loads it first has no worse start."""
    for path in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else ():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _torchvision(python: str) -> str:
    # In a process of its own, as the baseline will try it.
    code = "import torchvision; from torchvision import transforms; print(torchvision.__version__)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else "stand-in"


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


def command_for(contest: Contest, side: Side, folder: Path, steps: int, every: int) -> list[str]:
    """Words for `run_stamped`: the same flags for all sides, then the side's own."""
    cache = contest.folder / "cache" / side.label
    flags = {
        "pretrained_model_name_or_path": contest.base,
        "train_data_dir": contest.pictures,
        "output_dir": folder / "output",
        "resolution": contest.resolution,
        "train_batch_size": contest.batch_size,
        "max_train_steps": steps,
        "mixed_precision": PRECISIONS[side.precision],
        "rank": RANK,
        "learning_rate": 1e-4,
        "lr_warmup_steps": 0,
        "checkpointing_steps": 1_000_000,
        "dataloader_num_workers": 0,
        "seed": 0,
    }
    if side.script is None:
        command = ["--every", str(every), "--yields", "scumble.training.loop:train_steps", "STAMPS"]
        command += ["-m", "scumble", "train", "text_to_image", "--no_before_after"]
        flags["latent_cache_dir"] = cache / "latents"
    else:
        command = ["--every", str(every)]
        if contest.torchvision == "stand-in":
            command += ["--stand_ins", str(HERE / "stand_ins")]
        command += ["STAMPS", str(side.script)]
        flags["cache_dir"] = cache / "datasets"
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return [*command, "--center_crop", *words, *side.flags]


def run_side(contest: Contest, side: Side, name: str, steps: int, every: int) -> dict[str, Any]:
    """Run one side once.

    Args:
        contest: what to do.
        side: who.
        name: of the run; a side's caches are kept from run to run.
        steps: to train.
        every: look at the clock so often.

    Returns:
        See `stamped.measure`; "cache_grew", whether something was encoded that was not cached; for
        ours what its run.json foretold and measured of memory.

    Raises:
        RunError: it did not finish.
    """
    folder = contest.folder / f"{side.label}_{name}"
    cache = contest.folder / "cache" / side.label
    # What is compiled is kept here too: the machine's own caches neither help nor change.
    environment = {
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    before = sum(1 for _ in (cache / "latents").rglob("*"))
    try:
        command = command_for(contest, side, folder, steps, every)
        run = run_stamped(command, folder, environment, side.python)
    except RunError as error:
        raise RunError(f"{side.label}, run {name}: {error}") from error
    run["cache_grew"] = sum(1 for _ in (cache / "latents").rglob("*")) > before
    record = folder / "output" / "run.json"
    facts = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    run |= {key: facts[key] for key in ("peak_memory_mib", "foretold_peak_mib") if key in facts}
    shutil.rmtree(folder / "output", ignore_errors=True)
    return run


def check_same_work(works: dict[str, dict[str, Any]]) -> None:
    """Make sure that every side's first pass got the same amount of work.

    Args:
        works: label of a side -> "work" of one of its runs.

    Raises:
        RunError: they differ in what the model got or in how much of it learns.
    """
    known = {label: work for label, work in works.items() if work}
    for key in ("input_shape", "trained_parameters"):
        values = {label: work[key] for label, work in known.items()}
        if len({json.dumps(value) for value in values.values()}) > 1:
            raise RunError(f"the sides do not do the same work: {key} is {values}")


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """All rounds of one side: medians over all steady steps or rounds, the highest of peaks."""
    summary: dict[str, float] = {}
    for name in MEASURES:
        values = [run[name] for run in runs if run.get(name) is not None]
        if name in ("step_s", "step_cpu_s"):
            values = [v for run in runs for v in run[name.replace("step_", "steps_")]]
        if values:
            reduce = max if name.startswith("peak_") else min if "_low_" in name else median
            summary[name] = float(reduce(values))
    return summary


def ratios(summaries: dict[str, dict[str, float]], reference: str) -> dict[str, dict[str, float]]:
    """The reference divided by each other side: above 1, that side needs less."""
    base = summaries[reference]
    return {
        label: {name: base[name] / summary[name] for name in base if summary.get(name)}
        for label, summary in summaries.items()
        if label != reference
    }


def round_ratios(runs: Runs, reference: str) -> dict[str, list[float]]:
    """The ratio of seconds per step, round by round: how far the machine lets it be trusted."""
    return {
        label: [
            theirs["step_s"] / ours["step_s"]
            for theirs, ours in zip(runs[reference], rounds, strict=False)
        ]
        for label, rounds in runs.items()
        if label != reference
    }


def describe_machine() -> dict[str, Any]:
    """The hardware and the versions that numbers belong to, and nothing that names a machine."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s for s in info.read_text().splitlines() if s.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    try:
        git = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cpu": model,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions_of(sys.executable),
        "commit": commit or None,
        "month": time.strftime("%Y-%m", time.gmtime()),
    }


def versions_of(python: str) -> dict[str, str]:
    """The packages that matter in an environment, by the interpreter's own word."""
    code = f"""
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {{"python": platform.python_version()}}
for name in {PACKAGES}:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = "missing"
print(json.dumps(found))"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    parts = [machine["gpu"]] if machine["gpu"] else []
    parts += [f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} threads"]
    load = machine["load_average"][0]
    return f"{'; '.join(parts)}; {machine['system']}; load {load} at the end; {versions}"


def portable(words: Sequence[str]) -> str:
    """A command as it can be repeated elsewhere: absolute paths are cut down to their names."""
    return shlex.join(ABSOLUTE.sub(r"\1", word) for word in words)


def result_of(
    contest: Contest, sides: Sequence[Side], options: argparse.Namespace, runs: Runs
) -> dict[str, Any]:
    """All numbers and what they belong to, without paths of this machine."""
    summaries = {label: summarise(rounds) for label, rounds in runs.items()}
    reference = sides[0].label
    script = sides[0].script
    return {
        "command": portable(["python", "benchmarks/bench_train.py", *sys.argv[1:]]),
        "configuration": {
            "base": contest.base_name,
            "rank": RANK,
            "resolution": contest.resolution,
            "batch_size": contest.batch_size,
            "pictures": len(list(contest.pictures.glob("*.png"))),
            "steps": options.steps,
            "every": options.every,
            "rounds": len(runs[reference]),
            "precision": {side.label: side.precision for side in sides},
            "flags": {side.label: portable(side.flags) for side in sides},
        },
        "commands": {
            side.label: portable(command_for(contest, side, Path(), options.steps, options.every))
            for side in sides
        },
        "work": {label: rounds[0]["work"] for label, rounds in runs.items()},
        "baseline": {
            "script": SCRIPT,
            "sha256": hashlib.sha256(script.read_bytes()).hexdigest(),
            "torchvision": contest.torchvision,
            "versions": versions_of(sides[0].python),
        }
        if script
        else None,
        "machine": describe_machine(),
        "reference": reference,
        "summary": summaries,
        "ratios": ratios(summaries, reference),
        "ratios_by_round": round_ratios(runs, reference),
        "rounds": runs,
    }


def table(result: dict[str, Any]) -> str:
    """The numbers for people, as a table of Markdown; in brackets the ratio to the first side."""
    summaries, quotients = result["summary"], result["ratios"]
    lines = ["| | " + " | ".join(summaries) + " |", "|---" + "|---:" * len(summaries) + "|"]
    for name, title in MEASURES.items():
        cells = []
        for label, summary in summaries.items():
            cell = f"{summary[name]:.3g}" if name in summary else ""
            quotient = quotients.get(label, {}).get(name)
            cells.append(cell if quotient is None else f"{cell} ({quotient:.2f}x)")
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def notes(result: dict[str, Any]) -> list[str]:
    """What must be known to read the table."""
    settings = result["configuration"]
    lines = [
        f"In brackets: {result['reference']} divided by it; above 1 it needs less. Steps: medians "
        f"of {settings['rounds']} interleaved rounds of {settings['steps']} steps, the first left "
        "out. Where nothing else is said, everybody had what it caches from a run before.",
    ]
    for label, values in result["ratios_by_round"].items():
        lines.append(
            f"{label}: {min(values):.2f}x to {max(values):.2f}x in time per step, by round."
        )
    for label, work in result["work"].items():
        lines.append(
            f"{label}: {settings['precision'][label]}, further flags: "
            f"{settings['flags'][label] or 'none'}; the model got {work.get('input_shape')}, "
            f"{work.get('trained_parameters', 0):,} parameters trained as "
            f"{', '.join(work.get('trained_dtypes', []))}, frozen ones are "
            f"{work.get('frozen_dtype')}."
        )
    if result["baseline"]:
        found = result["baseline"]
        lines.append(
            f"{BASELINE}: unmodified `{SCRIPT}`, sha256 {found['sha256'][:16]}, torchvision: "
            f"{found['torchvision']}. It encodes pictures and captions in every step."
        )
        if found["versions"] != result["machine"]["versions"]:
            packages = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
            lines.append(f"{BASELINE} ran in an environment of its own, with {packages}.")
    if any(run["cache_grew"] for rounds in result["rounds"].values() for run in rounds):
        lines.append("Not every run of ours found all pictures in its cache.")
    return lines


def markdown(result: dict[str, Any]) -> str:
    """The result as a page that can be committed."""
    settings, machine = result["configuration"], result["machine"]
    title = (
        f"# Training at {settings['resolution']} px, batch {settings['batch_size']}, "
        f"{machine['gpu'] or 'processor'}, {machine['month']}"
    )
    body = [
        f"`{result['command']}`",
        f"{settings['base']}, LoRA of rank {settings['rank']}. {machine_line(machine)}.",
        table(result),
        "\n".join(f"- {line}" for line in notes(result)),
    ]
    return "\n\n".join([title, *body]) + "\n"


def write(text: str, output: Path | None) -> None:
    """Put a result into a file, where one is wanted."""
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, "utf-8")


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_common(parser)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--ours", default="", metavar="FLAGS", help="flags for scumble as well")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="LABEL=FLAGS",
        help="a setting of ours, in place of the one without; may be given several times",
    )
    parser.add_argument("--theirs", default="", metavar="FLAGS", help="flags for the baseline")
    parser.add_argument("--rounds", type=int, default=1, help="every side: so many times")
    parser.add_argument("--minutes", type=float, help="begin no round that would end later")
    parser.add_argument("--markdown", type=Path, help="write the result here, for people")
    options = parser.parse_args(words)
    check_common(parser, options)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every benchmark of training."""
    parser.add_argument("--work", type=Path, required=True, help="folder for base and results")
    parser.add_argument("--baseline", default="none", help=f"diffusers' {SCRIPT}, or none")
    parser.add_argument(
        "--baseline_python",
        default=sys.executable,
        metavar="PYTHON",
        help="interpreter of the baseline's own environment, which has what the script requires",
    )
    parser.add_argument("--base", help="train this base, tiny for the built-in one")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--baseline_precision", choices=PRECISIONS)
    parser.add_argument("--steps", type=int, default=5, help="the first is no steady step")
    parser.add_argument("--every", type=int, default=1, help="look at the clock so often; GPU: 10")
    parser.add_argument("--pictures", type=int, default=4, help="rounded up to full batches")
    parser.add_argument("--output", type=Path, help="write the result here, as JSON")


def check_common(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a clear line where nothing could be measured."""
    if options.every < 1 or options.steps < options.every + 1:
        parser.error("--steps must be above --every: times are taken between two looks")
    options.baseline_precision = options.baseline_precision or options.precision
    if shutil.which(options.baseline_python) is None:
        parser.error(f"--baseline_python {options.baseline_python} is not an interpreter")
    if options.baseline != "none" and not Path(options.baseline).is_file():
        number = versions_of(options.baseline_python)["diffusers"]
        tag = "main" if number == "missing" else f"v{number}"
        parser.error(
            f"--baseline {options.baseline} is not a file; get diffusers' script with\n  curl -LO "
            "https://raw.githubusercontent.com/huggingface/diffusers/"
            f"{tag}/examples/text_to_image/{SCRIPT}\nor leave it out, to run ours alone"
        )


def sides_of(options: argparse.Namespace) -> list[Side]:
    """Who runs: the baseline if it is wanted, then every setting of ours."""
    sides = []
    if options.baseline != "none":
        flags = tuple(shlex.split(options.theirs))
        sides.append(
            Side(
                BASELINE,
                options.baseline_precision,
                flags,
                Path(options.baseline).resolve(),
                options.baseline_python,
            )
        )
    common = tuple(shlex.split(options.ours))
    for text in options.variant or ["scumble="]:
        label, separator, flags = text.partition("=")
        if not separator or not label or label in [side.label for side in sides]:
            sys.exit(f"--variant {text}: write LABEL=FLAGS, each label once")
        sides.append(Side(label, options.precision, (*common, *shlex.split(flags))))
    return sides


def run_rounds(
    contest: Contest,
    sides: Sequence[Side],
    options: argparse.Namespace,
    save: Callable[[Runs], None],
) -> Runs:
    """Every side once with nothing cached, then all in turn, so often as asked and possible.

    Args:
        contest: what they all do.
        sides: who runs.
        options: of the command line.
        save: called with all runs so far after each round.
    """
    started = time.monotonic()
    runs: Runs = {side.label: [] for side in sides}
    cold = {side.label: run_side(contest, side, "cold", steps=2, every=1) for side in sides}
    check_same_work({label: run["work"] for label, run in cold.items()})
    longest = 0.0
    for number in range(options.rounds):
        begun = time.monotonic()
        left = (options.minutes or float("inf")) * 60 - (begun - started)
        if number and longest > left:
            print(f"no time for round {number + 1}", file=sys.stderr)
            break
        # Forth and back, so that a machine that slows down wrongs nobody.
        for side in sides if number % 2 == 0 else reversed(sides):
            run = run_side(contest, side, str(number), options.steps, options.every)
            run["cold_first_step_s"] = cold[side.label]["first_step_s"]
            runs[side.label].append(run)
            print(f"round {number + 1}: {side.label}: {run['step_s']:.4f} s/step", file=sys.stderr)
        longest = max(longest, time.monotonic() - begun)
        save(runs)
    return runs


def main() -> None:
    """Run all in turn, compare, print and write."""
    options = parse_arguments()
    sides = sides_of(options)
    contest = prepare(
        options.work.resolve(),
        options.base,
        options.resolution,
        options.batch_size,
        options.pictures,
        options.baseline_python,
    )

    def save(runs: Runs) -> None:
        result = result_of(contest, sides, options, runs)
        write(json.dumps(result, indent=2) + "\n", options.output)
        write(markdown(result), options.markdown)

    try:
        runs = run_rounds(contest, sides, options, save)
    except RunError as error:
        sys.exit(str(error))
    result = result_of(contest, sides, options, runs)
    print("\n".join([machine_line(result["machine"]), "", table(result), "", *notes(result)]))


if __name__ == "__main__":
    main()
