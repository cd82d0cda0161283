"""The garbage collector rests while libraries are imported, and works again afterwards."""

import gc

import pytest

from scumble.imports import uncollected


def test_nothing_is_collected_inside_and_everything_afterwards() -> None:
    before = gc.get_stats()[2]["collections"]
    with uncollected():
        assert not gc.isenabled()
        kept = [[] for _ in range(100_000)]
        assert gc.get_stats()[2]["collections"] == before
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    del kept


def test_an_error_inside_does_not_leave_it_off() -> None:
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()


def test_who_switched_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
