"""What can happen to a run from within, at a moment: called by name in the run's own process."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

YEAR_S = 365 * 24 * 3600.0


def fill(folder: str, leave: int) -> None:
    """Fill a disk but for some bytes."""
    with (Path(folder) / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
        file.truncate(max(0, file.tell() - leave))


def limit_files(size: int) -> None:
    """Let no file grow beyond a size, as a quota does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def stop_twice() -> None:
    """Ask for the end, and at once again."""
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)


def shake_clock(seed: int) -> None:
    """Have the clock jump by years, back and forth, whenever it is looked at."""
    draw, real = random.Random(seed), time.time
    time.time = lambda: real() + draw.uniform(-20, 20) * YEAR_S


def lose(names: list[str]) -> None:
    """Remove files and folders behind the run's back."""
    for name in names:
        path = Path(name)
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def spoil(folder: str, pattern: str, seed: int) -> None:
    """Overwrite files with others' content."""
    for path in sorted(Path(folder).rglob(pattern)):
        path.write_bytes(random.Random(seed).randbytes(100))


def protect(folder: str) -> None:
    """Have a disk take nothing more, as one does whose system has found errors."""
    subprocess.run(["mount", "-o", "remount,ro", folder], check=False)


def start_another(words: list[str], output: str) -> None:
    """Start the same run a second time and wait for its end."""
    with open(output, "wb") as file:
        command = [sys.executable, "-m", "scumble", *words]
        code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
        file.write(f"\ncode {code}".encode())
