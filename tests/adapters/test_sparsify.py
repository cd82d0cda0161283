"""TIES and DARE: what they keep, that they equal PEFT's, and that they repeat."""

import math

import pytest
import torch
from peft.utils import merge_utils

from scumble.adapters.sparsify import dare, ties, trim
from scumble.errors import UserError

DENSITIES = pytest.mark.parametrize("density", [0.1, 0.37, 0.8, 1.0])


def deltas(count=3, shape=(20, 30), dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw).to(dtype) for _ in range(count)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@DENSITIES
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 1.3, 0.2]])
@pytest.mark.parametrize("shape", [(20, 30), (6, 5, 3, 3)])
@pytest.mark.filterwarnings("ignore:The density 1")
def test_ties_are_those_of_peft(shape, weights, density) -> None:
    parts = deltas(shape=shape)
    theirs = merge_utils.ties(parts, torch.tensor(weights), density, majority_sign_method="total")
    torch.testing.assert_close(ties(parts, weights, density), theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("density", [0.1, 0.37, 0.8])
def test_the_trim_is_that_of_peft(density: float) -> None:
    (delta,) = deltas(1)
    assert torch.equal(trim(delta, density), merge_utils.prune(delta, density, "magnitude"))


def test_ties_by_hand() -> None:
    one = torch.tensor([4.0, -3.0, 1.0, 0.0, 2.0])
    two = torch.tensor([-1.0, -5.0, -1.0, 0.0, 3.0])
    merged = ties([one, two], [1.0, 0.5], density=1)
    # 4 wins over -1; both pull down; a draw is +; nothing stays nothing; both pull up.
    assert merged.tolist() == [4.0, (-3 - 2.5) / 2, 1.0, 0.0, (2 + 1.5) / 2]


def test_equal_changes_merge_to_one_of_them() -> None:
    (delta,) = deltas(1)
    assert torch.equal(ties([delta, delta], [1.0, 1.0], 1), delta)


def test_a_change_of_negative_weight_votes_where_it_pulls() -> None:
    one, two, three = deltas()
    wanted = ties([one, -two, three], [1.0, 0.5, 1.0], 0.5)
    assert torch.equal(ties([one, two, three], [1.0, -0.5, 1.0], 0.5), wanted)


def test_a_change_of_weight_zero_takes_no_part() -> None:
    one, two, three = deltas()
    wanted = ties([one, three], [1.0, 0.5], 0.5)
    assert torch.equal(ties([one, two, three], [1.0, 0.0, 0.5], 0.5), wanted)
    assert torch.equal(ties([one], [0.0], 0.5), torch.zeros_like(one))


@pytest.mark.parametrize("keep", range(1, 9))
def test_of_equal_magnitudes_the_first_stay(keep: int) -> None:
    delta = torch.tensor([[1.0, -2.0, 1.0, 2.0], [-1.0, 1.0, 2.0, -2.0]])
    order = [1, 3, 6, 7, 0, 2, 4, 5]
    wanted = torch.zeros(8)
    wanted[order[:keep]] = delta.flatten()[order[:keep]]
    assert torch.equal(trim(delta, keep / 8), wanted.reshape(2, 4))


def test_a_trim_of_few_entries_keeps_one() -> None:
    assert trim(torch.tensor([1.0, -3.0, 2.0]), 0.01).tolist() == [0.0, -3.0, 0.0]


def test_full_density_changes_nothing() -> None:
    (delta,) = deltas(1)
    assert torch.equal(trim(delta, 1), delta)
    assert torch.equal(dare(delta, 1, seeded()), delta)


def test_dare_keeps_the_mean_change() -> None:
    (delta,) = deltas(1, shape=(300, 300))
    thinned = dare(delta, 0.25, seeded())
    stayed = thinned != 0
    assert torch.equal(thinned[stayed], delta[stayed] * 4)
    assert float(stayed.float().mean()) == pytest.approx(0.25, abs=0.01)
    draw = seeded(1)
    mean = sum(dare(delta[:8, :8], 0.5, draw) for _ in range(2000)) / 2000
    torch.testing.assert_close(mean, delta[:8, :8], rtol=0.12, atol=0)


def test_dare_draws_from_its_generator_alone() -> None:
    (delta,) = deltas(1)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = dare(delta, 0.5, seeded(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(dare(delta, 0.5, seeded(3)), first)
    assert not torch.equal(dare(delta, 0.5, seeded(4)), first)
    draw = seeded(3)
    assert torch.equal(dare(delta, 0.5, draw), first)
    assert not torch.equal(dare(delta, 0.5, draw), first), "each change needs draws of its own"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_type_gives_what_its_values_say(dtype: torch.dtype) -> None:
    parts = deltas(dtype=dtype)
    wide = [part.double() for part in parts]
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    for ours, exact in (
        (dare(parts[0], 0.3, seeded()), dare(wide[0], 0.3, seeded())),
        (ties(parts, [1.0, 0.7, 0.3], 1), ties(wide, [1.0, 0.7, 0.3], 1)),
        (trim(parts[0], 0.3), trim(wide[0], 0.3)),
    ):
        assert ours.dtype == wanted
        torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-6)


def test_gradients_are_not_tracked() -> None:
    parts = [delta.requires_grad_() for delta in deltas()]
    assert not ties(parts, [1.0, 1.0, 1.0], 0.5).requires_grad
    assert not dare(parts[0], 0.5, seeded()).requires_grad


@pytest.mark.parametrize("density", [0, -0.1, 1.01, math.nan])
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    (delta,) = deltas(1)
    for call in (
        lambda: trim(delta, density),
        lambda: dare(delta, density, seeded()),
        lambda: ties([delta], [1.0], density),
    ):
        with pytest.raises(UserError, match="density"):
            call()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_no_number_is_refused(bad: float) -> None:
    (delta,) = deltas(1)
    delta[0, 0] = bad
    for call in (
        lambda: trim(delta, 0.5),
        lambda: dare(delta, 0.5, seeded()),
        lambda: ties([delta], [1.0], 0.5),
    ):
        with pytest.raises(UserError, match="NaN"):
            call()


def test_changes_and_weights_that_do_not_fit_are_refused() -> None:
    one, two, _ = deltas()
    for parts, weights, said in (
        ([one, two], [1.0], "2 changes to merge, but 1 weights"),
        ([], [], "0 changes"),
        ([one, two[:4]], [1.0, 1.0], "one shape"),
        ([one, two], [1.0, math.nan], "weights are"),
    ):
        with pytest.raises(UserError, match=said):
            ties(parts, weights, 0.5)
