"""The page on formats says of every file and program what really happens."""

import pytest
from format_matrix import NOT_FOR_IT, PAGE, ROWS, line, name_of, on_page

RENEW = f"""{PAGE.name} says otherwise. If the programs are right and the change is meant, let it
be written anew and read what it says around the tables:
    python tests/parity/format_matrix.py"""


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.source.strip('`')}-{row.holds}")
def test_the_page_says_what_the_programs_do(row):
    found = line(row)
    said = [line for line in on_page() if name_of(line) == name_of(found)]
    assert said == [found], RENEW


def test_the_page_has_every_row_once_and_no_other():
    named = [name_of(line) for line in on_page() if line.startswith("|")]
    rows = [(row.source, row.holds) for row in ROWS]
    assert [name for name in named if name in rows] == rows, RENEW
    assert len(named) == len(rows) + 4, RENEW


def test_scumble_draws_what_it_writes_and_never_draws_wrong():
    rows = [line for line in on_page() if line.startswith("|")]
    ours = [line.split("|")[3].strip() for line in rows if line.startswith("| `")]
    assert set(ours) == {"same"}
    assert {line.split("|")[3].strip() for line in rows} <= {"scumble", "---", "same", "refused"}
    assert NOT_FOR_IT not in ours
