from collections import Counter

import pytest

from scumble.data.captions import caption_for
from scumble.randomness import generator


def drawn(captions, dropout, count=600):
    return [caption_for(captions, generator(0, "caption", i), dropout) for i in range(count)]


def test_each_caption_is_equally_likely():
    counts = Counter(drawn(("a", "b", "c"), dropout=0.0))
    assert set(counts) == {"a", "b", "c"}
    assert all(150 < count < 250 for count in counts.values())


@pytest.mark.parametrize(
    ("dropout", "low", "high"), [(0.0, 0, 0), (0.25, 110, 190), (1.0, 600, 600)]
)
def test_dropout_gives_the_empty_caption_that_often(dropout, low, high):
    assert low <= drawn(("a",), dropout).count("") <= high


def test_dropout_changes_no_choice_of_caption():
    kept = drawn(("a", "b", "c"), dropout=0.0)
    some = drawn(("a", "b", "c"), dropout=0.5)
    assert all(after in (before, "") for before, after in zip(kept, some, strict=True))
