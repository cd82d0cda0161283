"""The real launchers: torchrun on one machine and on two, accelerate launch; killed processes."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from ranks import Arguments, free_port, wait_for

from scumble import TrainConfig
from scumble.errors import UserError
from scumble.training import start
from scumble.training.launch import launcher

pytestmark = pytest.mark.multiprocess

LIMIT_S = 280
QUICK = ("--train_batch_size", 1, "--resolution", 64)
TORCHRUN = ("torch.distributed.run", "--nproc_per_node")


@contextmanager
def launched(words: Sequence[str], output: Path, cache: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher at work; whatever happens, nothing that it started is left."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    with (
        output.open("wb") as stream,
        subprocess.Popen(
            [sys.executable, "-m", *words], stdout=stream, stderr=stream, env=environment
        ) as process,
    ):
        try:
            yield process
        finally:
            for one in family(process.pid):
                one.kill()


def family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def launch(words: Sequence[str], folder: Path) -> str:
    """Run a launcher to its end."""
    output = folder / "launcher.txt"
    with launched(words, output, folder / "cache") as process:
        code = process.wait(LIMIT_S)
    text = output.read_text("utf-8", "replace")
    assert code == 0, text[-4000:]
    return text


def of_rank(pid: int, rank: int) -> list[psutil.Process]:
    found = []
    for process in family(pid):
        with suppress(psutil.Error):
            if process.environ().get("RANK") == str(rank):
                found.append(process)
    return found


def steps_done(folder: Path) -> int:
    log = folder / "log.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def adapter(folder: Path) -> bytes:
    return (folder / "pytorch_lora_weights.safetensors").read_bytes()


@pytest.mark.long
def test_torchrun_and_accelerate_do_the_same(arguments: Arguments, tmp_path: Path) -> None:
    launch([*TORCHRUN, "2", "-m", "scumble", *arguments("torchrun", *QUICK)], tmp_path)
    words = ["--multi_gpu", "--num_processes", "2", "-m", "scumble"]
    launch(["accelerate.commands.launch", *words, *arguments("accelerate", *QUICK)], tmp_path)
    assert adapter(tmp_path / "torchrun") == adapter(tmp_path / "accelerate")


@pytest.mark.long
def test_two_machines(arguments: Arguments, tmp_path: Path) -> None:
    """Each with a launcher, a cache and an output folder of its own; only the first writes."""
    port = str(free_port())

    def words(machine: int) -> list[str]:
        place = ("--nnodes", "2", "--node_rank", str(machine))
        meeting = ("--master_addr", "127.0.0.1", "--master_port", port)
        run = arguments(f"out-{machine}", *QUICK)
        return [*TORCHRUN, "1", *place, *meeting, "-m", "scumble", *run]

    outputs = [tmp_path / f"machine-{machine}.txt" for machine in range(2)]
    with (
        launched(words(0), outputs[0], tmp_path / "cache-0") as first,
        launched(words(1), outputs[1], tmp_path / "cache-1") as second,
    ):
        codes = [first.wait(LIMIT_S), second.wait(LIMIT_S)]
    assert codes == [0, 0], "\n".join(output.read_text()[-3000:] for output in outputs)
    launch([*TORCHRUN, "2", "-m", "scumble", *arguments("one", *QUICK)], tmp_path)
    assert adapter(tmp_path / "out-0") == adapter(tmp_path / "one")
    assert not (tmp_path / "out-1").exists()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_process_is_started_anew(seed: int, arguments: Arguments, tmp_path: Path) -> None:
    """torchrun starts all processes anew, and they go on from the last checkpoint by themselves."""
    draw = random.Random(seed)
    more = (*QUICK, "--max_train_steps", 12, "--checkpointing_steps", 4)
    words = [*TORCHRUN, "2", "--max-restarts", "3", "-m", "scumble"]
    output = tmp_path / "disturbed.txt"
    run = [*words, *arguments("disturbed", *more)]
    with launched(run, output, tmp_path / "cache") as process:
        step, rank = draw.randint(0, 10), draw.randint(0, 1)
        wait_for(lambda: steps_done(tmp_path / "disturbed") >= step)
        wait_for(lambda: bool(of_rank(process.pid, rank)))
        of_rank(process.pid, rank)[0].send_signal(signal.SIGKILL)
        code = process.wait(LIMIT_S)
    text = output.read_text("utf-8", "replace")
    assert code == 0, text[-4000:]
    assert "started anew by the launcher (1)" in text or step == 0
    launch([*words, *arguments("undisturbed", *more)], tmp_path)
    assert adapter(tmp_path / "disturbed") == adapter(tmp_path / "undisturbed")


def test_only_its_own_run_goes_on_by_itself(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that refused the first attempt refuses the second as well."""
    folder = tmp_path / "out"
    folder.mkdir()
    config = TrainConfig(
        pretrained_model_name_or_path="scumble-tiny",
        train_data_dir=str(tmp_path / "pictures"),
        output_dir=str(folder),
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    (folder / "run.json").write_text(json.dumps({"status": "running", "launcher": {"pid": 1}}))
    with pytest.raises(UserError, match="already holds a run"):
        start.find_start(config)
    (folder / "run.json").write_text(json.dumps({"status": "failed", "launcher": launcher()}))
    begun = start.find_start(config)
    assert begun.checkpoint is None
    assert not begun.is_finished
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with pytest.raises(UserError, match="already holds a run"):
        start.find_start(config)
