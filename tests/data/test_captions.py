from collections import Counter

import pytest

from scumble.data.captions import caption_for
from scumble.randomness import generator


def drawn(captions, dropout, count=600, **order):
    return [
        caption_for(captions, generator(0, "caption", i), dropout, **order) for i in range(count)
    ]


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


class TestShuffling:
    def test_every_order_is_equally_likely(self):
        counts = Counter(drawn(("a, b,c",), 0.0, shuffle=True))
        assert len(counts) == 6
        assert all(60 < count < 140 for count in counts.values())
        assert {tuple(sorted(caption.split(", "))) for caption in counts} == {("a", "b", "c")}

    @pytest.mark.parametrize(("keep", "orders"), [(0, 24), (1, 6), (2, 2), (3, 1), (9, 1)])
    def test_kept_parts_stay_in_front_in_their_order(self, keep, orders):
        captions = set(drawn(("a b, c, d, e",), 0.0, shuffle=True, keep_tokens=keep))
        assert len(captions) == orders
        front = ["a b", "c", "d", "e"][:keep]
        assert all(caption.split(", ")[:keep] == front for caption in captions)

    def test_it_changes_neither_the_choice_nor_the_dropout(self):
        captions = ("a, b, c", "d, e", "f")
        plain = drawn(captions, 0.4)
        shuffled = drawn(captions, 0.4, shuffle=True)
        assert plain != shuffled
        for before, after in zip(plain, shuffled, strict=True):
            assert sorted(before.split(", ")) == sorted(after.split(", "))

    def test_without_it_a_caption_is_left_as_it_is(self):
        assert set(drawn(("a ,b,,c",), 0.0, count=50, keep_tokens=1)) == {"a ,b,,c"}

    @pytest.mark.parametrize(
        ("caption", "shown"), [("one fox", "one fox"), (" fox ,, ", "fox"), ("", ""), (",", "")]
    )
    def test_blank_parts_are_left_out(self, caption, shown):
        assert set(drawn((caption,), 0.0, count=5, shuffle=True)) == {shown}
