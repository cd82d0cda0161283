"""Files that are damaged between two sittings: each is noticed, named, and made anew."""

import errno
import json
import os
import random
import sys
from pathlib import Path

import pytest
import torch
from promises import files, log
from recipes import Workplace

from scumble import TrainConfig, drafts, read_adapter
from scumble.cli.main import run
from scumble.data.cache import TensorStore
from scumble.drafts import ABANDONED_S, draft_of, sweep, sync
from scumble.errors import UserError
from scumble.training.checkpoints import STATE, CheckpointWriter, open_checkpoint

STATE_OF = {"parameters": {"a": torch.ones(3)}, "update": {}, "average": {}, "choice": {}}


def writer(folder: Path) -> CheckpointWriter:
    config = TrainConfig(
        pretrained_model_name_or_path="scumble-tiny",
        train_data_dir="pictures",
        output_dir=str(folder),
    )
    return CheckpointWriter(config, "digest")


def write(folder: Path, step: int, name: str | None = None) -> Path:
    return writer(folder).write(
        step,
        lambda draft: (draft / "adapter").write_bytes(b"weights"),
        STATE_OF | {"phase": "only"},
        name,
    )


def same_results(place: Workplace, original: Workplace) -> bool:
    names = [name for name in files(original.out) if "/" not in name]
    return {n: files(place.out).get(n) for n in names} == {n: files(original.out)[n] for n in names}


@pytest.mark.parametrize("name", ["manifest.json", STATE, "adapter"])
def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed(tmp_path, name):
    folder = write(tmp_path, 2)
    intact = (folder / name).read_bytes()
    draw = random.Random(name)
    places = range(len(intact)) if len(intact) < 8000 else draw.sample(range(len(intact)), 500)
    for place in places:
        damaged = bytearray(intact)
        damaged[place] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(damaged)
        with pytest.raises(UserError):
            open_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(UserError):
        open_checkpoint(folder)
    (folder / name).write_bytes(intact)
    assert open_checkpoint(folder).step == 2


def test_a_manifest_of_an_early_version_is_still_read(tmp_path):
    folder = write(tmp_path, 2)
    content = json.loads((folder / "manifest.json").read_text())
    del content["sha256"]
    (folder / "manifest.json").write_text(json.dumps(content))
    assert open_checkpoint(folder).step == 2


def test_a_checkpoint_under_another_step_s_name_is_refused(tmp_path):
    folder = write(tmp_path, 2).rename(tmp_path / "checkpoint-3")
    with pytest.raises(UserError, match="of step 2"):
        open_checkpoint(folder)


def test_a_best_checkpoint_whose_writer_was_killed_halfway_comes_back(tmp_path):
    best = write(tmp_path, 2, "best")
    newer = write(tmp_path, 4, "best.new")
    aside = draft_of(tmp_path / "best.before")
    best.rename(aside)
    newer.rename(draft_of(tmp_path / "best"))
    writer(tmp_path).make_way(2)
    assert open_checkpoint(best).step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    mine = draft_of(tmp_path / "a")
    machine = mine.name.split(".")[2].partition("-")[0]
    dead, alive = (tmp_path / f".a.{machine}-{pid}.tmp" for pid in (2**22 + 1, os.getppid()))
    foreign, abandoned = (tmp_path / f".{name}.0000abcd-1.tmp" for name in "bc")
    other = tmp_path / ".mine.tmp"
    for path in (mine, dead, alive, foreign, abandoned, other):
        path.touch()
    os.utime(abandoned, (0, abandoned.stat().st_mtime - ABANDONED_S - 60))
    sweep(tmp_path.iterdir())
    assert set(tmp_path.iterdir()) == {alive, foreign, other}


@pytest.mark.skipif(sys.platform != "linux", reason="only there are numbers of processes parted")
def test_another_container_s_drafts_are_not_taken_for_those_of_this_one(tmp_path, monkeypatch):
    other = draft_of(tmp_path / "a")  # of a process there that has the number of this one
    drafts._machine.cache_clear()
    monkeypatch.setattr("os.readlink", lambda _: "pid:[4026532999]")
    try:
        other.touch()
        sweep(tmp_path.iterdir())
        assert other.exists()
    finally:
        drafts._machine.cache_clear()


def test_a_disk_that_does_not_sync_folders_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "a").touch()
    monkeypatch.setattr("os.fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid"):
        sync(tmp_path / "a")


def test_a_damaged_log_and_record_cost_no_step(original, copied, capsys):
    place = copied(until=2)
    lines = (place.out / "log.jsonl").read_bytes().splitlines(keepends=True)
    lines[1:2] = [b"\xff\xfe\n", b"[]\n", b'{"step": "2"}\n', lines[1][:-9] + b"\n"]
    (place.out / "log.jsonl").write_bytes(b"".join(lines))
    (place.out / "run.json").write_bytes(b"\xff[1]")
    assert place.run_here(resume=True) == 0
    output = capsys.readouterr().out
    assert "log.jsonl: 4 lines damaged and left out" in output
    assert "checkpoint-2, step 2" in output
    assert (
        files(place.out)["learned_embeds.safetensors"]
        == (files(original.out)["learned_embeds.safetensors"])
    )
    assert log(place.out) == [entry for n, entry in enumerate(log(original.out)) if n != 1]


def test_what_was_read_from_the_cache_does_not_change_with_its_file(tmp_path):
    TensorStore(tmp_path).put("key", {"a": torch.ones(1000)}, "a picture")
    read = TensorStore(tmp_path).get("key")
    (file,) = tmp_path.glob("*/key.safetensors")
    with file.open("r+b") as stream:  # in its place, as a copying program does it
        stream.write(bytes(file.stat().st_size))
    assert torch.equal(read["a"], torch.ones(1000))


def test_a_damaged_cache_is_made_anew(original, copied, capsys):
    place = copied(until=2)
    for path in [path for path in place.cache.rglob("*") if path.is_file()]:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    assert place.run_here(resume=True) == 0
    output = capsys.readouterr().out
    assert "damaged cache entry made anew" in output
    assert "have changed" not in output
    assert same_results(place, original)


@pytest.mark.parametrize("folder", ["out", "out/checkpoint-4"])
def test_an_adapter_that_is_not_as_its_run_wrote_it_is_called_so(copied, capsys, folder):
    place = copied()
    file = place.folder / folder / "learned_embeds.safetensors"
    read_adapter(file)
    assert "not as its run wrote it" not in capsys.readouterr().err
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # still a number, and nothing of its format is hurt
    file.write_bytes(content)
    assert run(["inspect", str(file), "--json"]) == 0
    said = capsys.readouterr()
    assert f"{file} is not as its run wrote it: it is damaged, or was changed since" in said.err
    assert json.loads(said.out)


def test_a_damaged_result_is_made_anew(original, copied, capsys):
    place = copied()
    (place.out / "learned_embeds.safetensors").write_bytes(b"rubbish")
    assert place.run_here(resume=True) == 0
    assert "learned_embeds.safetensors is damaged or gone" in capsys.readouterr().out
    assert same_results(place, original)
    assert place.run_here(resume=True) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_checkpoint_of_which_half_is_gone_is_passed_over(original, copied, capsys):
    place = copied()
    (place.out / "run.json").unlink()
    (place.out / "checkpoint-4" / STATE).unlink()
    assert place.run_here(resume=True) == 0
    output = capsys.readouterr().out
    assert "passed over checkpoint-4" in output
    assert "checkpoint-2, step 2" in output
    assert same_results(place, original)
