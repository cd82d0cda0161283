"""Disturb runs of every method in every phase, resume them, and compare: a table of figures.

python tests/faults/campaign.py --how kill --times 200 --seed 0
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from disturbances import DISTURBANCES, Disturbance, unmount
from fork_server import ForkServer
from moments import ALL
from promises import Standard, broken_in_between, broken_in_the_end, newest, standard
from recipes import RECIPES, Workplace

MOST_TIMES = 3
"""So often a run is disturbed before it may come to its end."""
MOST_DELAY_S = 0.03


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


def undisturbed(server: ForkServer, folder: Path, method: str) -> Standard:
    """Run a method without any disturbance."""
    place = Workplace(folder / method / "whole", method)
    place.prepare()
    outcome = server.learn(place.job())
    return standard(place, outcome.lines)


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


def campaign(
    server: ForkServer,
    folder: Path,
    methods: Sequence[str],
    how: Disturbance,
    times: int,
    seed: int,
    only: int | None = None,
) -> Figures:
    """Go through the phases of the methods until runs have been disturbed so often.

    Args:
        server: that runs them.
        folder: for their workplaces; those of runs that kept their promises are removed.
        methods: that train.
        how: they are disturbed.
        times: in all.
        seed: of every draw.
        only: the number of a case that is to be repeated.
    """
    figures = Figures()
    goods = {method: undisturbed(server, folder, method) for method in methods}
    for number, (method, phase) in enumerate(_turns(goods)):
        if figures.hits.total() >= times or (only is not None and number > only):
            break
        if only not in (None, number):
            continue
        place = Workplace(folder / method / str(number), method)
        draw = random.Random(f"{seed} {number}")
        hits, broken = disturbed(server, place, goods[method], how, phase, draw)
        figures.hits.update((method, phase) for phase in hits)
        figures.runs[method] += 1
        figures.broken += [f"{method}, seed {seed}, case {number}: {line}" for line in broken]
        if broken:
            shutil.copytree(place.folder, folder / f"broken-{method}-{number}")
        unmount(place)
        shutil.rmtree(place.folder)
    return figures


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
    parser.add_argument("--only", type=int, help="number of a case, to repeat it")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="scumble-faults-"))
    with ForkServer() as server:
        how = DISTURBANCES[asked.how]
        figures = campaign(server, folder, asked.methods, how, asked.times, asked.seed, asked.only)
    said = [figures.table(), *figures.broken]
    if figures.broken:
        said.append(f"what is left of them: {folder}")
    else:
        shutil.rmtree(folder)
    sys.stdout.write("\n".join(said) + "\n")
    return 1 if figures.broken else 0


if __name__ == "__main__":
    sys.exit(main())
