"""The log of a run as it is read while the run writes it, is killed and goes on."""

import json
import os
from pathlib import Path

from scumble.runs.log import follow, read_tail, recent_steps


def add(folder: Path, *steps: int) -> None:
    with (folder / "log.jsonl").open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": 0.1, "elapsed_s": float(step)}) + "\n")


def steps_in(entries: list[dict[str, int]]) -> list[int]:
    return [entry["step"] for entry in entries]


def test_a_log_is_followed_from_where_it_was_read_to(tmp_path: Path) -> None:
    nothing = follow(tmp_path)
    assert (nothing.entries, nothing.restarted) == ([], False)
    add(tmp_path, 1, 2)
    first = follow(tmp_path, nothing.position)
    assert steps_in(first.entries) == [1, 2]
    add(tmp_path, 3)
    second = follow(tmp_path, first.position)
    assert (steps_in(second.entries), second.restarted) == ([3], False)
    assert follow(tmp_path, second.position).entries == []


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    add(tmp_path, 1)
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + '{"step": 2, "lo')
    news = follow(tmp_path)
    assert steps_in(news.entries) == [1]
    with path.open("a") as file:
        file.write('ss": 0.1}\n')
    assert steps_in(follow(tmp_path, news.position).entries) == [2]


def test_a_log_that_a_resumed_run_put_in_place_is_read_anew(tmp_path: Path) -> None:
    add(tmp_path, 1, 2, 3)
    news = follow(tmp_path)
    path = tmp_path / "log.jsonl"
    kept = path.read_text().splitlines(keepends=True)[:2]
    (tmp_path / "draft").write_text("".join(kept))
    os.replace(tmp_path / "draft", path)
    add(tmp_path, 3, 4)
    again = follow(tmp_path, news.position)
    assert (steps_in(again.entries), again.restarted) == ([1, 2, 3, 4], True)


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n\0\0\0\n[1]\n' + b"[" * 9999 + b"\n")
    add(tmp_path, 2)
    assert steps_in(follow(tmp_path).entries) == [1, 2]
    assert steps_in(read_tail(tmp_path)) == [1, 2]


def test_the_end_of_a_long_log_is_enough(tmp_path: Path) -> None:
    add(tmp_path, *range(1, 5001))
    tail = steps_in(read_tail(tmp_path))
    assert tail == list(range(tail[0], 5001))
    assert 100 < len(tail) < 5000


def test_the_pace_is_that_of_one_sitting() -> None:
    entries = [{"step": n, "loss": 0.1, "elapsed_s": e} for n, e in ((1, 50.0), (2, 90.0), (3, 1))]
    entries += [{"step": 3, "held_out_loss": 0.1}, {"step": 4, "loss": 0.1, "elapsed_s": 2.0}]
    assert steps_in(recent_steps(entries)) == [3, 4]
