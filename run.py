#!/usr/bin/env python3
"""Set scumble up in `.venv` and run it; the standard library is all that this file needs."""

from __future__ import annotations  # an old Python must get as far as the message about its age

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OLDEST_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "set-up.json"
PROGRAMS, SUFFIX = (VENV / "Scripts", ".exe") if os.name == "nt" else (VENV / "bin", "")
PYTHON = str(PROGRAMS / f"python{SUFFIX}")

VERBS = {
    "demo": "teach the built-in base model a style, and show before and after",
    "test": "run the tests, with --long all of them; further words go to pytest: test -k lora",
    "check": "ruff, mypy --strict and import-linter: all of them, even if one fails",
    "setup": "only set up; the scumble command is then in .venv",
}
CHECKS = {
    "ruff check": [PYTHON, "-m", "ruff", "check"],
    "ruff format": [PYTHON, "-m", "ruff", "format", "--check"],
    "mypy": [PYTHON, "-m", "mypy"],
    "import-linter": [str(PROGRAMS / f"lint-imports{SUFFIX}")],
}
HELP = """\
Every verb first makes .venv and installs there what constraints.txt pins: 2 GB and some
minutes, more with CUDA. That is skipped until pyproject.toml, constraints.txt or Python changes.
To start over, delete .venv.

Linux and macOS get a torch that uses the graphics card by themselves. On Windows with an NVIDIA
card, name once the package index that pytorch.org gives for your CUDA version; it is remembered:
  python run.py setup --torch-index URL"""


def main(words: list[str]) -> int:
    """Run one verb and return its exit code."""
    parser = make_parser()
    if not words:
        parser.print_help()
        return 2
    options, rest = parser.parse_known_args(words)
    if rest and options.verb in ("check", "setup"):
        parser.error(f"{options.verb} takes no further words: {' '.join(rest)}")
    require_python()
    set_up(("test", "check") if options.verb == "check" else ("test",), options.torch_index)
    # The built-in model is too small to share: on a busy machine its threads mostly wait.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.verb == "demo":
        return call([PYTHON, "-m", "scumble", "demo", *rest], Path.cwd())
    if options.verb == "test":
        return call([PYTHON, "-m", "pytest", *pytest_words(rest)])
    return check() if options.verb == "check" else 0


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line; words that it does not know belong to the verb's program."""
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="Set scumble up and run it.",
        epilog=HELP,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    verbs = "\n".join(f"{verb:6} {purpose}" for verb, purpose in VERBS.items())
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help=verbs)
    parser.add_argument(
        "--torch-index",
        metavar="URL",
        default=os.environ.get("SCUMBLE_TORCH_INDEX"),
        help="package index with another build of torch\n(or the variable SCUMBLE_TORCH_INDEX)",
    )
    return parser


def require_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> None:
    """Stop, saying what to do, if this Python is too old or cannot make virtual environments."""
    if version < OLDEST_PYTHON:
        wanted, found = (".".join(map(str, numbers)) for numbers in (OLDEST_PYTHON, version))
        stop(
            f"Python {wanted} or newer is needed, and this is {found}.\n"
            f"  Install one from python.org or your system; then for example: python{wanted} run.py"
        )
    if not all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")):
        hint = "On Debian and Ubuntu: sudo apt install python3-venv. Elsewhere: python.org."
        stop(f"this Python comes without venv or pip.\n  {hint}")


def set_up(extras: tuple[str, ...], torch_index: str | None) -> None:
    """Bring .venv up to date; one that was cut short has an empty stamp and is made anew."""
    stamp = read_stamp()
    torch_index = torch_index or stamp.get("torch_index")
    fits = stamp.get("python") == sys.version and stamp.get("torch_index") == torch_index
    if fits and digest_of(extras) in stamp["digests"]:
        return
    started = time.monotonic()
    if not fits:
        make_venv()
    STAMP.write_text("", "utf-8")
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += [] if sys.stdout.isatty() else ["--quiet"]
    command += ["--extra-index-url", torch_index] if torch_index else []
    command += ["-c", "constraints.txt", "-e", f".[{','.join(extras)}]"]
    if call(command, title=f"installing what constraints.txt pins into {VENV}"):
        stop("the installation failed, as said above.\n  The same command tries again.")
    digests = [digest_of(extras[:count]) for count in range(1, len(extras) + 1)]
    content = {"python": sys.version, "torch_index": torch_index, "digests": digests}
    STAMP.write_text(json.dumps(content), "utf-8")
    say(f"set up in {time.monotonic() - started:.0f} s")


def digest_of(extras: tuple[str, ...]) -> str:
    """Fingerprint of everything that decides what an installation holds."""
    digest = hashlib.sha256(f"{sys.version}\0{','.join(extras)}\0".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def read_stamp() -> dict[str, Any]:
    """What the last complete set-up noted; empty if there was none."""
    try:
        return dict(json.loads(STAMP.read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def make_venv() -> None:
    """Make .venv anew, but never in the place of one that somebody else made."""
    if VENV.exists() and not STAMP.exists():
        stop(f"{VENV} was not made by run.py.\n  Delete it or move it away, then try again.")
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir(exist_ok=True)
    STAMP.write_text("", "utf-8")
    # Not sys.executable, which may be the Python of the .venv that was just deleted.
    outer = getattr(sys, "_base_executable", sys.executable)
    if call([outer, "-m", "venv", str(VENV)], title=f"making {VENV}"):
        stop("the virtual environment could not be made, as said above.")


def pytest_words(words: list[str]) -> list[str]:
    """Spread the tests over the cores, unless the user decides that or names single tests."""
    cores = os.cpu_count() or 1  # a worker more than these: some tests wait, for pages and servers
    words = [word for word in words if word != "--long"] + ["-m", ""] * ("--long" in words)
    own = ("-n", "--numprocesses", "--dist")
    told = any(w.startswith(own) or "::" in w or (ROOT / w).is_file() for w in words)
    return words if told or cores == 1 else ["-n", str(min(cores + 1, 4)), *words]


def check() -> int:
    """Run every check and return how many failed."""
    failed = [name for name, command in CHECKS.items() if call(command, title=name)]
    say(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return len(failed)


def call(command: list[str], folder: Path = ROOT, title: str = "") -> int:
    """Run a program to its end and return its exit code; Ctrl-C is first of all the program's."""
    if title:
        say(title)
    interrupted = False
    with subprocess.Popen(command, cwd=folder) as child:
        while child.poll() is None:
            try:
                child.wait()
            except KeyboardInterrupt:
                # The terminal sent it to the program too, which may have work to save.
                interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return child.returncode


def say(text: str) -> None:
    """Print a line of our own, ahead of the output of programs that follow."""
    print(f"run.py: {text}", flush=True)


def stop(text: str) -> None:
    """End with one clear message and exit code 1."""
    sys.exit(f"run.py: {text}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        say("interrupted")
        sys.exit(130)
