"""Runs that are really killed, stopped and starved come to the same end as undisturbed ones."""

from collections.abc import Iterator

import pytest
from campaign import Campaign
from disturbances import DISTURBANCES, can_mount
from fork_server import ForkServer
from recipes import RECIPES

TIMES = {"kill": 220, "interrupt": 60, "terminate": 60, "stop twice": 40, "disk full": 40}
"""How often a run is disturbed in which way in the long part; 30 times in the other ways."""


@pytest.fixture
def server() -> Iterator[ForkServer]:
    """What runs are forked from."""
    with ForkServer() as started:
        yield started


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_loses_nothing(server, tmp_path):
    figures = Campaign(tmp_path, ["textual_inversion"], DISTURBANCES["kill"], 4, 3).run([server])
    assert figures.broken == []
    assert figures.hits.total() >= 4


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("how", DISTURBANCES)
def test_every_method_keeps_its_promises_in_every_phase(server, tmp_path, how, capsys):
    if how == "disk full" and not can_mount(tmp_path):
        pytest.skip("no small disk can be mounted here: that takes the rights of root")
    times = TIMES.get(how, 30)
    figures = Campaign(tmp_path, list(RECIPES), DISTURBANCES[how], times, 0).run([server])
    with capsys.disabled():
        print(f"\n{how}\n\n{figures.table()}\n")  # noqa: T201
    assert figures.broken == []
    assert figures.hits.total() >= times
