"""Disturb runs of every method in every phase, resume them, and compare: a table of figures.

python tests/faults/campaign.py --how kill --times 200 --seed 0
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from disturbances import DISTURBANCES, Disturbance, unmount
from fork_server import ForkServer
from moments import ALL
from promises import Standard, broken_in_between, broken_in_the_end, newest, standard
from recipes import RECIPES, Workplace

MOST_TIMES = 3
"""So often a run is disturbed before it may come to its end."""
MOST_DELAY_S = 0.03


class Case(NamedTuple):
    """A run that was disturbed.

    Args:
        method: that trains.
        hits: the phases in which it was disturbed.
        broken: what was not as promised.
    """

    method: str
    hits: list[str]
    broken: list[str]


@dataclass
class Figures:
    """What a campaign has found.

    Args:
        hits: (method, phase) -> how often a run was disturbed there.
        runs: method -> how many were brought to their end, all compared with the undisturbed one.
        broken: what was not as promised, with the words that repeat it.
    """

    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def add(self, case: Case) -> None:
        """Count a case."""
        self.hits.update((case.method, phase) for phase in case.hits)
        self.runs[case.method] += 1
        self.broken += case.broken

    def table(self) -> str:
        """The figures as Markdown."""
        methods = [method for method in RECIPES if self.runs[method]]
        rows = [("phase", *methods), ("---", *("---:" for _ in methods))]
        for phase in ALL:
            counts = [self.hits[method, phase] for method in methods]
            rows.append((phase, *(str(count or "-") for count in counts)))
        sums = [sum(n for (m, _), n in self.hits.items() if m == method) for method in methods]
        rows.append(("in all", *map(str, sums)))
        rows.append(("runs that came to the same end", *(str(self.runs[m]) for m in methods)))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def disturbed(
    server: ForkServer,
    place: Workplace,
    good: Standard,
    how: Disturbance,
    phase: str,
    draw: random.Random,
) -> tuple[list[str], list[str]]:
    """Start a run, disturb it in a phase, and again while it is resumed, until it may end.

    Returns:
        The phases in which it was disturbed, and what was not as promised.
    """
    how.prepare(place, draw)
    place.prepare()
    hits: list[str] = []
    for attempt in range(1, (draw.randint(1, MOST_TIMES) if how.again else 1) + 1):
        line = draw.randint(1, good.lines[phase])
        delay_s = draw.choice((0.0, draw.uniform(0, MOST_DELAY_S))) if how.late else 0.0
        before = newest(place.out)
        options = how.options(place, draw)
        ended = place.run(
            server,
            attempt > 1,
            phase=phase,
            line=line,
            act=how.act,
            options=options,
            delay_s=delay_s,
        )
        what = f"{how.act} {options} at line {line} of '{phase}', attempt {attempt}"
        if ended.fired and ended.code in how.codes:
            hits.append(phase)
        if not ended.fired or ended.code == 0:
            # The moment never came in what was left of the run, or the run went on regardless.
            broken = broken_in_the_end(place, good, ended)
            return hits, [f"{what}: {broken}"] if broken else []
        broken = broken_in_between(place, good, before, how.statuses)
        if ended.code not in how.codes:
            broken.append(f"it ended with {ended.code}: {ended.output[-300:]}")
        if how.says and not any(words in ended.output for words in how.says):
            broken.append(f"it did not say what happened: {ended.output[-300:]}")
        if broken:
            return hits, [f"{what}: {broken}"]
        how.repair(place, draw)
        phase = draw.choice(sorted(good.lines))
    broken = broken_in_the_end(place, good, place.run(server, resume=True))
    return hits, [f"{what}, resumed: {broken}"] if broken else []


@dataclass(frozen=True)
class Campaign:
    """Goes through the phases of the methods until runs have been disturbed so often.

    Args:
        folder: for workplaces; those of runs that kept their promises are removed.
        methods: that train.
        how: they are disturbed.
        times: in all.
        seed: of every draw.
        only: the number of a case that is to be repeated.
    """

    folder: Path
    methods: Sequence[str]
    how: Disturbance
    times: int
    seed: int
    only: int | None = None

    def run(self, servers: Sequence[ForkServer]) -> Figures:
        """Run it, on as many cores as there are servers; their number changes no figure."""
        figures = Figures()
        idle: SimpleQueue[ForkServer] = SimpleQueue()
        for server in servers:
            idle.put(server)
        with ThreadPoolExecutor(len(servers)) as pool:
            standards = pool.map(lambda method: self._undisturbed(idle, method), self.methods)
            goods = dict(zip(self.methods, standards, strict=True))
            ahead: deque[Future[Case]] = deque()
            for number, (method, phase) in enumerate(_turns(goods)):
                if self.only in (None, number):
                    ahead.append(
                        pool.submit(self._case, idle, number, goods[method], method, phase)
                    )
                if len(ahead) > 2 * len(servers) or number == self.only:
                    figures.add(ahead.popleft().result())
                if figures.hits.total() >= self.times or number == self.only:
                    break
            for case in ahead:  # begun, and so they count
                figures.add(case.result())
        return figures

    def _undisturbed(self, idle: "SimpleQueue[ForkServer]", method: str) -> Standard:
        place = Workplace(self.folder / method / "whole", method)
        place.prepare()
        server = idle.get()
        try:
            return standard(place, server.learn(place.job(count=True)).lines)
        finally:
            idle.put(server)

    def _case(
        self,
        idle: "SimpleQueue[ForkServer]",
        number: int,
        good: Standard,
        method: str,
        phase: str,
    ) -> "Case":
        place = Workplace(self.folder / method / str(number), method)
        draw = random.Random(f"{self.seed} {number}")
        server = idle.get()
        try:
            hits, broken = disturbed(server, place, good, self.how, phase, draw)
        finally:
            idle.put(server)
        if broken:
            broken = [f"{method}, seed {self.seed}, case {number}: {'; '.join(broken)}"]
            sys.stderr.write(f"{broken[0]}\n")
            shutil.copytree(place.folder, self.folder / f"broken-{method}-{number}")
        unmount(place)
        shutil.rmtree(place.folder)
        return Case(method, hits, broken)


def _turns(goods: dict[str, Standard]) -> Iterator[tuple[str, str]]:
    while True:
        for phase in ALL:
            yield from ((method, phase) for method, good in goods.items() if phase in good.lines)


def main() -> int:
    """Run a campaign and print its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--how", choices=DISTURBANCES, default="kill")
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", type=int, help="number of a case, to repeat it")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="scumble-faults-"))
    how = DISTURBANCES[asked.how]
    campaign = Campaign(folder, asked.methods, how, asked.times, asked.seed, asked.only)
    with ExitStack() as stack:
        servers = [stack.enter_context(ForkServer()) for _ in range(asked.workers)]
        figures = campaign.run(servers)
    said = [figures.table(), *figures.broken]
    if figures.broken:
        said.append(f"what is left of them: {folder}")
    else:
        shutil.rmtree(folder)
    sys.stdout.write("\n".join(said) + "\n")
    return 1 if figures.broken else 0


if __name__ == "__main__":
    sys.exit(main())
