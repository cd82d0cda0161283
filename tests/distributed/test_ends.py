"""However one process ends, all of them do, with one clear line, and at the same step."""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import Arguments, Ended, Rank, free_port, run, wired

from scumble.errors import UserError
from scumble.training.launch import launched
from scumble.training.phase import Dropouts, Phase

pytestmark = pytest.mark.multiprocess

QUICK = ("--train_batch_size", 1, "--resolution", 64)


def signal_at(step: int, signals: dict[int, Sequence[int]]) -> None:
    """Send each process its signals, by rank, when it is about to take a step."""
    from scumble.training import loop

    taken, original = iter(range(10_000)), loop.StepWork.__call__

    def take(work: loop.StepWork, parts: object) -> object:
        if next(taken) == step:
            for number in signals.get(int(os.environ["RANK"]), ()):
                os.kill(os.getpid(), number)
                time.sleep(0.05)
        return original(work, parts)

    loop.StepWork.__call__ = take  # type: ignore[method-assign, assignment]


def two(
    lines: Sequence[Sequence[str]], folder: Path, signals: dict[int, Sequence[int]] | None = None
) -> list[Ended]:
    """Two processes of one machine, of which each says what it has to say into a file."""
    before = None if signals is None else signal_at
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    wires = wired(2, free_port())
    return run(
        [
            Rank(
                words,
                folder / f"rank-{number}.txt",
                wire | cache,
                before,
                {"step": 1, "signals": signals},
            )
            for number, (words, wire) in enumerate(zip(lines, wires, strict=True))
        ]
    )


def require_ended(ended: Sequence[Ended], code: int, *words: str) -> None:
    """All ended alike; the main one said why, in one line and a hint, and the others nothing."""
    main, other = ended
    assert [main.code, other.code] == [code, code], main.output + other.output
    assert "Traceback" not in main.output + other.output
    for word in words:
        assert word in main.output
    assert main.output.count("scumble: ") == (0 if code == 130 else 1)
    assert "scumble: " not in other.output


def test_a_folder_that_is_not_empty(arguments: Arguments, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    require_ended(two([arguments("out", *QUICK)] * 2, tmp_path), 1, "out is not empty")


def test_what_is_wrong_everywhere_is_said_once(arguments: Arguments, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "3.txt").unlink()
    require_ended(two([arguments("out", *QUICK)] * 2, tmp_path), 1, "3.png")


def test_other_settings(arguments: Arguments, tmp_path: Path) -> None:
    lines = [arguments("out", *QUICK, "--rank", rank) for rank in (4, 8)]
    require_ended(two(lines, tmp_path), 1, "--rank is 4 in process 0 and 8 in process 1")


@pytest.mark.parametrize("what", ["picture", "caption", "fewer"])
def test_other_data(what: str, arguments: Arguments, tmp_path: Path) -> None:
    mine, other = tmp_path / "pictures", tmp_path / "others"
    other.mkdir()
    for path in mine.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    if what == "picture":
        (other / "2.png").write_bytes((other / "1.png").read_bytes())
    elif what == "caption":
        (other / "2.txt").write_text("something else")
    else:
        (other / "2.png").unlink()
    lines = [arguments("out", *QUICK), arguments("out", *QUICK)]
    lines[1][lines[1].index(str(mine))] = str(other)
    wanted = {
        "picture": "the picture 2.png is",
        "caption": "'a blue circle at night' in process 0 and 'something else' in process 1",
        "fewer": "not there in process 1",
    }
    require_ended(two(lines, tmp_path), 1, wanted[what])
    assert not (tmp_path / "out").exists()


def test_what_goes_wrong_in_one_alone(arguments: Arguments, tmp_path: Path) -> None:
    """It says so itself; the main process says that another one has ended."""
    lines = [arguments("out", *QUICK) for _ in range(2)]
    (tmp_path / "file").write_text("no folder")
    lines[1] += ["--latent_cache_dir", str(tmp_path / "file" / "cache")]
    main, other = two(lines, tmp_path)
    assert (main.code, other.code) == (1, 1)
    assert "scumble: another process of this run has ended; its own message" in main.output
    assert f"the cache folder {tmp_path / 'file'}" in other.output
    assert "Traceback" not in main.output + other.output


def test_all_stop_after_the_same_step(arguments: Arguments, tmp_path: Path) -> None:
    """Launchers pass signals on to every process, twice where a terminal did so already."""
    signals = {1: (signal.SIGTERM, signal.SIGINT)}
    ended = two([arguments("out", *QUICK)] * 2, tmp_path, signals)
    require_ended(ended, 130, "stopped after step 2 of 4")
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "stopped"
    # The steps that are left by one process, which says that this is not the same.
    more = arguments("out", "--resolution", 64, "--train_batch_size", 2)
    wire = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = [*more, "--resume_from_checkpoint", "latest"]
    (resumed,) = run([Rank(words, tmp_path / "alone.txt", wire)])
    assert resumed.code == 0, resumed.output
    assert "the number of processes was 2 and is 1 now: a step sees up to 2 pict" in resumed.output


def test_a_killed_process_ends_the_others(arguments: Arguments, tmp_path: Path) -> None:
    main, other = two([arguments("out", *QUICK)] * 2, tmp_path, {1: (signal.SIGKILL,)})
    assert (main.code, other.code) == (1, -signal.SIGKILL)
    assert "scumble: another process of this run has ended" in main.output
    assert "Traceback" not in main.output


def test_not_a_number(arguments: Arguments, tmp_path: Path) -> None:
    words = arguments("out", *QUICK, "--learning_rate", "1e30")
    require_ended(two([words] * 2, tmp_path), 1, "the loss is nan", "step 2")
    assert (tmp_path / "out" / "checkpoint-1").is_dir()


def test_each_process_drops_other_inputs_and_the_same_each_time() -> None:
    def drawn(process: int) -> list[float]:
        phase = SimpleNamespace(
            taught=SimpleNamespace(adapters={}), dropouts=Dropouts(inputs=0.5, process=process)
        )
        Phase.enter_step(phase, 7)
        return torch.rand(4).tolist()

    assert drawn(0) == drawn(0)
    assert drawn(1) == drawn(1)
    assert drawn(0) != drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, and RANK, LOCAL_RANK"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "MASTER_ADDR, MASTER_PORT"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, "srun started 4 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun started 2 processes"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"},
            "accelerate launch was asked for several processes and started one",
        ),
    ],
)
def test_processes_that_nothing_connects(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        launched()


def test_a_slurm_job_may_use_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    for name, value in wired(4, 1, 2)[3].items():
        monkeypatch.setenv(name, value)
    processes = launched()
    assert (processes.rank, processes.count) == (3, 4)
    assert (processes.local_rank, processes.local_count) == (1, 2)
