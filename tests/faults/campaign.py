"""Kill runs of every method in every phase, resume them, and compare: a table of figures.

    python tests/faults/campaign.py --kills 200 --seed 0
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

from fork_server import ForkServer
from moments import ALL
from promises import Standard, broken_in_between, broken_in_the_end, newest, standard
from recipes import RECIPES, Workplace

MOST_DEATHS = 3
"""So often a run is cut off before it may come to its end."""
MOST_DELAY_S = 0.03


@dataclass
class Figures:
    """What a campaign has found.

    Args:
        deaths: (method, phase) -> how often a run was killed there.
        runs: method -> how many were brought to their end, all compared with the undisturbed one.
        broken: what was not as promised, with the words that repeat it.
    """

    deaths: Counter[tuple[str, str]] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The figures as Markdown."""
        methods = [method for method in RECIPES if self.runs[method]]
        rows = [("phase", *methods), ("---", *("---:" for _ in methods))]
        for phase in ALL:
            counts = [self.deaths[method, phase] for method in methods]
            rows.append((phase, *(str(count or "-") for count in counts)))
        sums = [sum(n for (m, _), n in self.deaths.items() if m == method) for method in methods]
        rows.append(("all kills", *map(str, sums)))
        rows.append(("runs resumed to their end", *(str(self.runs[m]) for m in methods)))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def undisturbed(server: ForkServer, folder: Path, method: str) -> Standard:
    """Run a method without any disturbance."""
    place = Workplace(folder / method / "whole", method)
    place.prepare()
    outcome = server.learn(place.job())
    return standard(place, outcome.lines)


def cut_off(
    server: ForkServer, place: Workplace, good: Standard, phase: str, draw: random.Random
) -> tuple[list[str], list[str]]:
    """Start a run, kill it in a phase, and again while it is resumed, until it may end.

    Returns:
        The phases in which it was killed, and what was not as promised.
    """
    place.prepare()
    deaths: list[str] = []
    for attempt in range(1, draw.randint(1, MOST_DEATHS) + 1):
        line = draw.randint(1, good.lines[phase])
        delay_s = draw.choice((0.0, draw.uniform(0, MOST_DELAY_S)))
        before = newest(place.out)
        killed = place.run(
            server, attempt > 1, phase=phase, line=line, act="SIGKILL", delay_s=delay_s
        )
        if killed.code != -9:
            # The moment never came in what was left of the run, or it was over before the signal.
            return deaths, broken_in_the_end(place, good, killed)
        deaths.append(phase)
        broken = broken_in_between(place, good, before)
        if broken:
            return deaths, [f"killed at line {line} of '{phase}', attempt {attempt}: {broken}"]
        phase = draw.choice(sorted(good.lines))
    return deaths, broken_in_the_end(place, good, place.run(server, resume=True))


def campaign(
    server: ForkServer, folder: Path, methods: Sequence[str], kills: int, seed: int
) -> Figures:
    """Go through the phases of the methods until so many runs have been killed."""
    figures = Figures()
    goods = {method: undisturbed(server, folder, method) for method in methods}
    for number, (method, phase) in enumerate(_turns(goods)):
        if figures.deaths.total() >= kills:
            return figures
        case = folder / method / str(number)
        deaths, broken = cut_off(
            server,
            Workplace(case, method),
            goods[method],
            phase,
            random.Random(f"{seed} {number}"),
        )
        figures.deaths.update((method, phase) for phase in deaths)
        figures.runs[method] += 1
        figures.broken += [f"{method}, seed {seed}, case {number}: {line}" for line in broken]
        if not broken:
            shutil.rmtree(case)
    raise AssertionError("turns never end")


def _turns(goods: dict[str, Standard]) -> Iterator[tuple[str, str]]:
    while True:
        for phase in ALL:
            yield from ((method, phase) for method, good in goods.items() if phase in good.lines)


def main() -> int:
    """Run a campaign and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=list(RECIPES))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="scumble-faults-"))
    with ForkServer() as server:
        figures = campaign(server, folder, options.methods, options.kills, options.seed)
    said = [figures.table(), *figures.broken]
    if figures.broken:
        said.append(f"what is left of them: {folder}")
    else:
        shutil.rmtree(folder)
    sys.stdout.write("\n".join(said) + "\n")
    return 1 if figures.broken else 0


if __name__ == "__main__":
    sys.exit(main())
