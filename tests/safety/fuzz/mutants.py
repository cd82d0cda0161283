"""What can happen to any file or text: seeded, the same every time."""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

STRANGE_VALUES: list[Any] = [None, True, -1, 0, 10**12, 2**63, 1e308, -0.5, "", "x", "../../x"]
STRANGE_VALUES += ["\ud800", "\x1b[2J", "a\0b", "9" * 400, "猫" * 300, [], {}, [[]], {"a": {}}]
STRANGE_VALUES += [[None], ["x", 1], float("nan"), float("inf")]
STRANGE_TEXTS = ["", "\0", "\r", "\n\n", "\x85", "\u2028", "\ufeff", "\x1b[2J", "NaN", "1e999"]
STRANGE_TEXTS += ["../../", "null", "-1", "{", "}", "[" * 3000, '"', "'", ",", ":", "---\n", "*a"]
STRANGE_TEXTS += ["&a [*a]", "!!python/name:os.system", "9" * 5000, "2001-99-99", "1_0", "0x", "%"]
STRANGE_TEXTS += ["{{x}}", "${HOME}", "~", "é".encode().decode("latin-1"), "a" * 20_000]


def mutants(seeds: Sequence[bytes], rng: random.Random, count: int) -> Iterator[bytes]:
    """So many damaged forms of some files.

    Args:
        seeds: sound files.
        rng: decides what happens to them.
        count: how many to make.
    """
    for _ in range(count):
        raw = rng.choice(seeds)
        # Once is what accidents do; more often leaves the beaten track.
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            raw = rng.choice(WAYS)(raw, seeds, rng)
        yield raw


def _place(raw: bytes, rng: random.Random) -> int:
    """Somewhere in a file; every other time near its beginning, where it says what it is."""
    return rng.randrange(min(len(raw), rng.choice((64, len(raw) or 1))) + 1)


def _cut(raw: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    return raw[: _place(raw, rng)]


def _flip(raw: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    spoilt = bytearray(raw or b"\0")
    for _ in range(rng.choice((1, 1, 8))):
        spoilt[min(_place(raw, rng), len(spoilt) - 1)] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _number(raw: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    start, width = _place(raw, rng), rng.choice((1, 2, 4, 8))
    value = rng.choice((b"\xff", b"\0", b"\x7f")) * width
    return raw[:start] + value + raw[start + width :]


def _leave_out(raw: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    start = _place(raw, rng)
    return raw[:start] + raw[start + rng.randrange(1, 40) :]


def _repeat(raw: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    start = _place(raw, rng)
    piece = raw[start : start + rng.randrange(1, 40)]
    return raw[:start] + piece * rng.choice((2, 3, 200)) + raw[start:]


def _insert(raw: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    start = _place(raw, rng)
    piece = rng.choice(STRANGE_TEXTS).encode() if rng.random() < 0.7 else rng.randbytes(9)
    return raw[:start] + piece + raw[start + rng.choice((0, 0, 1, 8)) :]


def _splice(raw: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(seeds)
    return raw[: _place(raw, rng)] + other[_place(other, rng) :]


def _word(raw: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Another word in the place of one; of no use in a file that is no text."""
    words = raw.split(b" ") if rng.random() < 0.5 else raw.split(b"\n")
    words[rng.randrange(len(words))] = rng.choice(STRANGE_TEXTS).encode()
    return (b" " if b" " in raw else b"\n").join(words)


def _json(raw: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """A sound JSON file, or line of one, that says something else."""
    lines = raw.split(b"\n")
    for number in (None, rng.randrange(len(lines))):
        try:
            content = json.loads(raw if number is None else lines[number])
        except (ValueError, RecursionError):
            continue
        said = json.dumps(_changed(content, rng)).encode()
        if number is None:
            return said
        lines[number] = said
        return b"\n".join(lines)
    return _word(raw, seeds, rng)


def _changed(content: Any, rng: random.Random) -> Any:
    strange = rng.choice(STRANGE_VALUES)
    inner = content if isinstance(content, dict | list) and content else None
    if inner is None or rng.random() < 0.05:
        return strange
    keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
    key = rng.choice(keys)
    if rng.random() < 0.1:
        del inner[key]
    elif isinstance(inner, dict) and rng.random() < 0.1:
        inner[rng.choice(STRANGE_TEXTS[:30])] = inner[key]
    elif isinstance(inner[key], dict | list) and rng.random() < 0.8:
        inner[key] = _changed(inner[key], rng)
    else:
        inner[key] = strange
    return inner


WAYS = (_cut, _flip, _number, _leave_out, _repeat, _insert, _splice, _word, _json, _json, _json)
