"""PEFT's patterns mean the layers that they mean to PEFT, and none takes ages."""

import re
import time

import pytest

from scumble.families import FAMILIES
from scumble.formats.peft_patterns import MAX_EXPRESSIONS, LayerTable

PATHS = FAMILIES["stable_diffusion"].key_names.order["unet"]
PATTERNS = {
    "to_q": 32,
    "attn1.to_q": 16,
    r"attn1\.to_q$": 16,
    "^to_q": 0,
    r"^down_blocks\.0\.attentions\.0\.transformer_blocks\.0\.attn1\.to_q$": 1,
    "^down_blocks.0.attentions.0.*q$": 2,
    "to_q|to_k": 64,
    r"attn1\.to_q|ff.net.0.proj": 32,
    r"up_blocks\..*\.to_k": 18,
    r".*\.attn2\.to_v": 16,
    "mid_block.*": 15,
    ".+attn1.+q": 16,
    r"down_blocks\.\d+\..*\.(to_q|to_k)$": 24,
    r"up_blocks\.[0-9]+\.attentions\.1\..*to_out\.0": 6,
}
"""Pattern -> how many layers it means."""


def by_pefts_rule(pattern: str, path: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_the_layers_that_it_means_to_peft(pattern):
    table = LayerTable({pattern: 3})
    found = [path for path in PATHS if table.of(path) == 3]
    assert found == [path for path in PATHS if by_pefts_rule(pattern, path)]
    assert len(found) == PATTERNS[pattern]


def test_the_first_pattern_that_fits_decides():
    path = PATHS[0]
    name, expression = path.rpartition(".")[2], ".*" + path[-8:]
    assert LayerTable({name: 1, expression: 2}).of(path) == 1
    assert LayerTable({expression: 2, name: 1}).of(path) == 2


@pytest.mark.parametrize("pattern", ["(a+)+x", "(.*)*x", r"\1", "(?=a)", "a{9}", "(a|b)+", "["])
def test_a_pattern_of_another_kind_is_refused(pattern):
    with pytest.raises(ValueError, match="is not understood"):
        LayerTable({pattern: 1})


def test_too_many_patterns_that_are_no_names_are_refused():
    with pytest.raises(ValueError, match="more than"):
        LayerTable({f"({number})": 1 for number in range(MAX_EXPRESSIONS + 1)})


@pytest.mark.parametrize("pattern", [".*a" * 90 + "b", ".*(a|a|a|a)a.*" * 20 + "b"])
def test_gaps_are_never_tried_in_all_ways(pattern):
    start = time.monotonic()
    assert LayerTable({pattern: 1}).of("a." * 150) is None
    assert time.monotonic() - start < 0.5
