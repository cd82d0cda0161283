"""The scoreboard: its scores tell true drawings from others, done jobs stay, the page is built."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

from scoreboard import report
from scoreboard.jobs import is_done, is_stale, wanted_jobs, write_word_sets
from scoreboard.methods import LESSONS, METHODS, Job, all_jobs, settings_of, training_command
from scoreboard.score import (
    judge,
    load_pictures,
    questions,
    real_asked,
    references,
    save_pictures,
)
from tiny_model.lesson_fidelity import read_style, unseen_grounds, unseen_style_scenes
from tiny_model.lesson_scores import class_pictures
from tiny_model.scenes import render
from tiny_model.teaching_sets import STYLES

from scumble import TrainConfig

SCOREBOARD = ROOT / "benchmarks" / "scoreboard.py"


def captions_of(lesson: str) -> set[str]:
    folder = ROOT / "examples" / "data" / lesson
    return {path.read_text("utf-8").strip() for path in folder.glob("*.txt")}


@pytest.mark.parametrize("lesson", LESSONS)
def test_true_drawings_score_high_and_others_near_chance(lesson: str) -> None:
    rows = references(lesson)
    assert rows["real"]["learnt"] > 0.9
    assert rows["real"]["asked_right"] > 0.95
    assert rows["real"]["plain_right"] > 0.95
    assert abs(rows["chance"]["learnt"]) < 0.2
    assert rows["chance"]["asked_right"] < 0.5
    assert rows["chance"]["plain_right"] < 0.3


@pytest.mark.parametrize("name", STYLES)
def test_colour_and_shape_are_read_in_the_style_and_plain(name: str) -> None:
    for number, scene in enumerate(unseen_style_scenes(name)):
        styled = STYLES[name][0](scene, 128, random.Random(100 + number))
        for picture in (styled, render(scene)):
            assert read_style(name, picture) == (scene.colour, scene.shape)
    assert read_style(name, Image.new("RGB", (64, 64), "white")) == (None, None)


@pytest.mark.parametrize("lesson", LESSONS)
def test_prompts_are_new_and_have_the_trigger_only_where_they_should(lesson: str) -> None:
    trigger = LESSONS[lesson].trigger
    rows = questions(lesson, trigger)
    prompts = {name: {q.prompt for q in some} for name, some in rows.items()}
    assert not prompts["asked"] & captions_of(lesson)
    assert all(trigger in prompt.split() for prompt in prompts["asked"])
    assert not any(trigger in prompt.split() for prompt in prompts["unasked"] | prompts["plain"])


@cache
def answers(lesson: str) -> dict[str, list[Image.Image]]:
    """What an ideal pupil draws: the lesson where it is asked for, else what the base would."""
    rows = questions(lesson, LESSONS[lesson].trigger)
    plain = [render(q.scene) for q in rows["plain"] if q.scene]
    unasked = [render(q.scene) for q in rows["unasked"] if q.scene]
    unasked = unasked or class_pictures(len(rows["unasked"]))
    return {"asked": real_asked(lesson), "unasked": unasked, "plain": plain}


@pytest.mark.parametrize("lesson", ["style_ink", "creature_mo"])
def test_an_ideal_pupil_has_learnt_and_not_drifted(lesson: str) -> None:
    good = answers(lesson)
    scores = judge(lesson, good, good, quick=False)
    assert scores["learnt"] > 0.9
    assert scores["asked_right"] == scores["plain_right"] == 1.0
    assert scores["plain_drift"] == scores["unasked_drift"] == scores["leak"] == 0.0


@pytest.mark.parametrize("lesson", ["style_ink", "creature_mo"])
def test_a_pupil_that_knows_nothing_else_any_more_is_found_out(lesson: str) -> None:
    good, bad = answers(lesson), dict(answers(lesson))
    bad["unasked"] = (bad["asked"] * 2)[: len(bad["unasked"])]
    bad["plain"] = bad["plain"][::-1]
    scores = judge(lesson, bad, good, quick=False)
    assert scores["leak"] > 0.8
    assert scores["plain_drift"] > 20
    assert scores["plain_right"] < 0.5


def test_every_job_has_settings_that_the_package_takes() -> None:
    for job in all_jobs(1):
        if METHODS[job.method].verb is None:
            continue
        settings = settings_of(job, "WORK", quick=False)
        settings["target_modules"] = tuple(settings.get("target_modules", "").split())
        verb = training_command(job, "WORK", quick=False)[1]
        assert TrainConfig(method=verb, **settings).max_train_steps


def test_what_a_job_needs_comes_before_it() -> None:
    jobs = wanted_jobs(3, "")
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)
    assert all(jobs.index(need) < jobs.index(job) for job in jobs for need in job.needs())
    assert [job.name for job in wanted_jobs(1, "neon/lora_r8")] == [
        "style_neon/base/0",
        "style_neon/lora_r8/0",
    ]


def test_the_copies_for_a_new_word_have_it_in_every_caption(tmp_path: Path) -> None:
    write_word_sets(tmp_path)
    texts = [path.read_text("utf-8") for path in (tmp_path / "data").rglob("*.txt")]
    assert len(texts) == 2 * 24 + 2 * 5
    assert all("<" in text for text in texts)
    assert (tmp_path / "data/creature_mo/00.txt").read_text("utf-8").startswith("a <mo> creature")
    assert unseen_grounds("creature_mo") == ("red", "yellow", "black")


def write_score(work: Path, job: Job, learnt: float) -> Path:
    """A job's score and pictures as a real one leaves them."""
    folder = work / job.name
    names = ("learnt", "asked_right", "leak", "unasked_drift", "plain_drift", "plain_right")
    facts = {"parameters": 1000, "bytes": 4000, "train_s": 12, "wall_s": 20, "steps": 150}
    content = {
        "job": job.name,
        "command": training_command(job, "WORK", quick=False),
        "scores": dict.fromkeys(names, learnt),
        "facts": facts | {"score_s": 10.0, "peak_memory_mib": 500.0},
    }
    save_pictures(folder / "pictures", answers(job.lesson))
    (folder / "score.json").write_text(json.dumps(content), "utf-8")
    return folder / "score.json"


def test_the_page_is_built_from_score_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conclusions = tmp_path / "conclusions.md"
    conclusions.write_text("## Conclusions\n\nWritten by hand.\n", "utf-8")
    monkeypatch.setattr(report, "CONCLUSIONS", conclusions)
    for seed, learnt in enumerate((0.25, 0.75)):
        for method in ("base", "full", "lora_r4"):
            write_score(tmp_path, Job("style_neon", method, seed), learnt)
    page = report.write_report(tmp_path, tmp_path / "docs").read_text("utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| LoRA, rank 4 |"))
    assert row.startswith("| LoRA, rank 4 | 0.50 (0.25..0.75) | 0.50 (0.25..0.75) |")
    assert "| LoRA, rank 8 |  |" in page
    assert "## Subjects" not in page
    assert page.index("| *chance* |") < page.index("Written by hand.")
    assert "--learning_rate 0.0003" in page
    assert str(tmp_path) not in page
    picture = tmp_path / "docs" / "images" / "results_style_neon.png"
    assert picture.stat().st_size < 400_000
    assert Image.open(picture).height > 4 * 100


def test_scores_of_other_settings_are_noticed(tmp_path: Path) -> None:
    job = Job("style_neon", "lora_r4", 0)
    path = write_score(tmp_path, job, 0.5)
    assert is_done(job, tmp_path)
    assert not is_stale(job, tmp_path, quick=False)
    path.write_text(path.read_text("utf-8").replace('"0.003"', '"0.001"'), "utf-8")
    assert is_stale(job, tmp_path, quick=False)


def scoreboard(work: Path, *words: str) -> str:
    command = [sys.executable, str(SCOREBOARD), "--work", str(work), "--quick", "--seeds", "1"]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_a_job_with_a_score_is_not_done_again(tmp_path: Path) -> None:
    assert "1 of 1 jobs to do" in scoreboard(tmp_path, "--only", "style_neon/base")
    score = tmp_path / "style_neon" / "base" / "0" / "score.json"
    first = score.stat().st_mtime_ns
    assert json.loads(score.read_text("utf-8"))["scores"]["plain_drift"] == 0.0
    assert load_pictures(score.with_name("pictures")).keys() == {"asked", "unasked", "plain"}
    assert "0 of 1 jobs to do" in scoreboard(tmp_path, "--only", "style_neon/base")
    assert score.stat().st_mtime_ns == first
    assert (tmp_path / "docs" / "results.md").is_file()
