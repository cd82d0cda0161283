"""Runs that are really killed, stopped and starved come to the same end as undisturbed ones."""

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaign import Campaign
from disturbances import DISTURBANCES, ON_OWN_DISK, can_mount, damage
from fork_server import ForkServer
from promises import Standard, broken_in_the_end, standard
from recipes import RECIPES, Workplace

TIMES = {"kill": 220, "interrupt": 60, "terminate": 60, "stop twice": 40, "disk full": 40}
"""How often a run is disturbed in which way in the long part; 30 times in the other ways."""


@pytest.fixture
def server() -> Iterator[ForkServer]:
    """What runs are forked from."""
    with ForkServer() as started:
        yield started


@pytest.mark.long
def test_a_run_that_is_killed_again_and_again_loses_nothing(server, tmp_path):
    figures = Campaign(tmp_path, ["textual_inversion"], DISTURBANCES["kill"], 3, 3).run([server])
    assert figures.broken == []
    assert figures.hits.total() >= 3


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("how", DISTURBANCES)
def test_every_method_keeps_its_promises_in_every_phase(server, tmp_path, how, capsys):
    if how in ON_OWN_DISK and not can_mount(tmp_path):
        pytest.skip("no small disk can be mounted here: that takes the rights of root")
    times = TIMES.get(how, 30)
    figures = Campaign(tmp_path, list(RECIPES), DISTURBANCES[how], times, 0).run([server])
    with capsys.disabled():
        print(f"\n{how}\n\n{figures.table()}\n")  # noqa: T201
    assert figures.broken == []
    assert figures.hits.total() >= times


@pytest.mark.long
def test_the_same_run_started_twice_is_one_run(server, tmp_path):
    place = Workplace(tmp_path / "place", "textual_inversion")
    good = whole(server, tmp_path, place.method)
    place.prepare()
    said = tmp_path / "second.txt"
    options = {"words": place.arguments(resume=True), "output": str(said)}
    first = place.run(server, phase="train", line=99, act="start_another", options=options)
    assert first.fired
    assert re.search(r"scumble: another run is writing into out: process \d+ on", said.read_text())
    assert said.read_text().endswith("code 1")
    assert broken_in_the_end(place, good, first) == []


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", RECIPES)
def test_damage_behind_a_death_is_noticed_and_made_good(server, tmp_path, method):
    good = whole(server, tmp_path, method)
    for number in range(10):
        draw = random.Random(f"{method} {number}")
        place = Workplace(tmp_path / str(number), method)
        place.prepare()
        phase = draw.choice(sorted(good.lines))
        place.run(server, phase=phase, line=draw.randint(1, good.lines[phase]), act="SIGKILL")
        harm = damage(place, draw)
        again = place.run(server, resume=True)
        if again.code == 1:  # such as where the only checkpoint is damaged
            assert any(words in again.output for words in ("no checkpoint", "is damaged")), harm
            shutil.rmtree(place.out)
            shutil.rmtree(place.folder / "class", ignore_errors=True)
            again = place.run(server)
        broken = broken_in_the_end(place, good, again)
        if broken:
            # What cannot be made anew is said.
            assert any(words in again.output for words in ("left out", "has gone from")), harm
            assert again.code == 0, (harm, broken)


def whole(server: ForkServer, folder: Path, method: str) -> Standard:
    """What an undisturbed run leaves."""
    place = Workplace(folder / "whole", method)
    place.prepare()
    return standard(place, server.learn(place.job(count=True)).lines)
