"""Low-rank factors: exact sums, norms, and truncations against dense float64 SVDs."""

import math
import resource

import pytest
import torch

from scumble.adapters.low_rank import (
    EXACT_UP_TO,
    Factors,
    Spectrum,
    compress,
    product_norm,
    stack,
    truncated_svd,
)
from scumble.errors import UserError

SHAPES = {
    "square": (40, 40, 6),
    "wide": (24, 90, 6),
    "tall": (90, 24, 6),
    "rank 1": (40, 30, 1),
    "one output": (1, 30, 1),
    "rank of the smaller side": (16, 30, 16),
    "rank beyond both sides": (16, 30, 50),
}
SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
LARGE = EXACT_UP_TO + 80
"""Wide enough for the randomised SVD."""
FINDERS = {
    "compress": lambda factors: compress(factors),
    "full svd": lambda factors: truncated_svd(product(factors), factors.rank),
}
FIND = pytest.mark.parametrize("find", FINDERS.values(), ids=FINDERS)


def numbers(*shape, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)


def random_factors(out, into, rank, seed=0, dtype=torch.float64):
    return Factors(
        numbers(rank, into, seed=seed, dtype=dtype),
        numbers(out, rank, seed=seed + 1, dtype=dtype),
    )


def product(factors):
    return factors.up_OR.double() @ factors.down_RI.double()


def best(matrix, rank):
    """The best approximation of a rank, from a dense SVD."""
    up, values, down = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (up[:, :rank] * values[:rank]) @ down[:rank]


def decaying(out, into):
    """A full-rank matrix whose values fall like 1 / i, as those of fine-tuned layers about do."""
    up, values, down = torch.linalg.svd(numbers(out, into), full_matrices=False)
    return (up / torch.arange(1, len(values) + 1)) @ down


def relative(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_a_stack_is_the_weighted_sum() -> None:
    parts = [(0.7, random_factors(20, 30, 4)), (-1.5, random_factors(20, 30, 9, seed=2))]
    stacked = stack(parts)
    assert stacked.rank == 13
    same(product(stacked), sum(weight * product(factors) for weight, factors in parts))


def test_a_stack_of_half_precision_rounds_no_product() -> None:
    half = random_factors(20, 30, 4, dtype=torch.bfloat16)
    stacked = stack([(1.0, half), (0.5, random_factors(20, 30, 2, seed=2, dtype=torch.float16))])
    assert stacked.up_OR.dtype == stacked.down_RI.dtype == torch.float32
    assert torch.equal(stacked.down_RI[:4], half.down_RI.float())
    assert torch.equal(stacked.up_OR[:, :4], half.up_OR.float())


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_stack_with_an_endless_weight_is_refused(weight: float) -> None:
    with pytest.raises(UserError, match="weights"):
        stack([(weight, random_factors(4, 4, 1))])


def test_only_products_of_one_shape_can_be_stacked() -> None:
    with pytest.raises(UserError, match="20 x 30, 20 x 31"):
        stack([(1.0, random_factors(20, 30, 4)), (1.0, random_factors(20, 31, 4))])
    with pytest.raises(UserError, match="none"):
        stack([])


@SHAPE
def test_the_norm_is_that_of_the_product(shape: tuple[int, int, int]) -> None:
    factors = random_factors(*shape)
    assert product_norm(factors) == pytest.approx(float(product(factors).norm()), rel=1e-12)


def test_a_rank_far_beyond_the_layer_costs_no_more_than_the_layer() -> None:
    factors = random_factors(8, 8, 20_000, dtype=torch.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert product_norm(factors) == pytest.approx(float(product(factors).norm()), rel=1e-6)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


@pytest.mark.parametrize("seed", range(6))  # rounding leaves a square above or below zero
def test_products_that_cancel_have_almost_no_norm(seed: int) -> None:
    factors = random_factors(40, 40, 4, seed=seed)
    cancelled = stack([(0.1, factors), (0.2, factors), (-0.3, factors)])
    assert product_norm(cancelled) < 1e-7 * product_norm(factors)


@FIND
@SHAPE
def test_values_and_products_are_those_of_a_dense_svd(shape, find) -> None:
    factors = random_factors(*shape)
    spectrum = find(factors)
    known = min(shape)
    dense = torch.linalg.svdvals(product(factors))
    assert len(spectrum.values_K) == known
    same(spectrum.values_K, dense[:known])
    for rank in {1, (known + 1) // 2, known}:
        same(product(spectrum.factors(rank)), best(product(factors), rank))


@SHAPE
def test_a_product_is_kept_by_its_own_rank(shape: tuple[int, int, int]) -> None:
    factors = random_factors(*shape, dtype=torch.float32)
    kept = compress(factors).factors(factors.rank)
    assert kept.rank == min(shape)
    assert relative(product(kept), product(factors)) < 1e-6


def test_no_matrix_as_large_as_the_product_is_formed() -> None:
    factors = random_factors(100_000, 100_000, 2, dtype=torch.float32)  # 40 GB
    spectrum = compress(factors)
    assert product_norm(factors) == pytest.approx(math.sqrt(spectrum.total_energy))


def test_the_two_sides_share_the_values_evenly() -> None:
    spectrum = compress(random_factors(40, 30, 5))
    found = spectrum.factors(5)
    same(found.up_OR.norm(dim=0), spectrum.values_K.sqrt())
    same(found.down_RI.norm(dim=1), spectrum.values_K.sqrt())


@pytest.mark.parametrize("rank", [2, 5])
def test_a_compressed_spectrum_knows_the_energy_it_lost(rank: int) -> None:
    factors = random_factors(40, 30, 9)
    share = float((best(product(factors), rank).norm() / product(factors).norm()) ** 2)
    assert compress(factors).energy(rank) == pytest.approx(share, rel=1e-12)
    cut = compress(factors, rank)
    assert len(cut.values_K) == rank
    assert cut.energy(rank) == pytest.approx(share, rel=1e-12)


def spectrum_of(*values, total=None):
    values_K = torch.tensor(values, dtype=torch.float64)
    eye = torch.eye(len(values))
    return Spectrum(eye, values_K, eye, float(values_K.square().sum()) if total is None else total)


def test_the_rank_for_an_energy_is_the_smallest_that_keeps_it() -> None:
    spectrum = spectrum_of(3.0, 2.0, 1.0, 1.0)
    assert spectrum.energy(2) == 13 / 15
    assert [spectrum.rank_for(share) for share in (0.01, 9 / 15, 0.61, 0.9, 1)] == [1, 1, 2, 3, 4]


def test_all_the_energy_is_all_but_rounding() -> None:
    assert spectrum_of(1.0, 1e-3, 1e-8).rank_for(1) == 2


def test_a_cut_spectrum_gives_all_it_has_where_more_is_asked_for() -> None:
    spectrum = spectrum_of(3.0, 1.0, total=20.0)
    assert spectrum.rank_for(0.9) == 2
    assert spectrum.energy(2) == 0.5
    assert spectrum.factors(7).rank == 2


@pytest.mark.parametrize("share", [0, -0.1, 1.01, math.nan])
def test_an_energy_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="energy"):
        spectrum_of(1.0).rank_for(share)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank: int) -> None:
    factors = random_factors(8, 8, 2)
    spectrum = compress(factors)
    calls = (
        lambda: spectrum.factors(rank),
        lambda: spectrum.energy(rank),
        lambda: compress(factors, rank),
        lambda: truncated_svd(product(factors), rank),
    )
    for call in calls:
        with pytest.raises(UserError, match=f"the rank is {rank}"):
            call()


@pytest.mark.parametrize("shape", [(LARGE, LARGE), (LARGE, 900), (900, LARGE)])
def test_a_known_low_rank_matrix_is_recovered(shape: tuple[int, int]) -> None:
    matrix = product(random_factors(*shape, 12))
    found = truncated_svd(matrix.float(), 16)
    assert found.up_OK.dtype == torch.float32
    assert relative(product(found.factors(12)), matrix) < 1e-6
    assert found.rank_for(1) == 12
    assert 1 - found.energy(12) < 1e-12
    assert relative(product(truncated_svd(matrix, 12).factors(12)), matrix) < 1e-12


def test_a_decaying_matrix_is_cut_almost_as_well_as_can_be() -> None:
    matrix = decaying(LARGE, LARGE + 50)
    found = truncated_svd(matrix, 24)
    loss = float((product(found.factors(24)) - matrix).norm())
    least = float((best(matrix, 24) - matrix).norm())
    assert least <= loss * (1 + 1e-12) < 1.0001 * least
    assert found.energy(24) == pytest.approx(1 - (loss / float(matrix.norm())) ** 2, abs=1e-12)


def test_values_that_are_all_alike_cost_less_than_one_percent() -> None:
    matrix = numbers(LARGE, LARGE)
    found = product(truncated_svd(matrix, 24).factors(24))
    assert (found - matrix).norm() < 1.01 * (best(matrix, 24) - matrix).norm()


def test_a_rank_near_the_full_one_is_found_exactly() -> None:
    matrix = numbers(LARGE, LARGE)
    rank = LARGE // 2
    same(product(truncated_svd(matrix, rank).factors(rank)), best(matrix, rank))
    beyond = truncated_svd(matrix, 2 * LARGE)
    same(product(beyond.factors(2 * LARGE)), matrix)


def same_bytes(one: Spectrum, other: Spectrum) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def test_random_directions_come_from_the_generator_alone() -> None:
    matrix = numbers(LARGE, LARGE, dtype=torch.float32)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = truncated_svd(matrix, 8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_bytes(truncated_svd(matrix, 8), first)
    seeded = [truncated_svd(matrix, 8, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert same_bytes(seeded[0], seeded[1])
    assert not same_bytes(seeded[0], seeded[2])
    assert same_bytes(truncated_svd(matrix, 8, torch.Generator().manual_seed(0)), first)


@pytest.mark.parametrize("flip", [1, -1])
def test_the_largest_entry_of_each_column_of_up_is_positive(flip: int) -> None:
    factors = random_factors(40, 30, 5)
    for spectrum in (
        compress(Factors(flip * factors.down_RI, flip * factors.up_OR)),
        compress(Factors(flip * factors.down_RI, factors.up_OR)),
        truncated_svd(flip * numbers(LARGE, LARGE), 5),
    ):
        up = spectrum.factors(5).up_OR
        assert (up.gather(0, up.abs().argmax(0, keepdim=True)) > 0).all()


def test_how_the_input_lies_in_memory_changes_no_byte() -> None:
    factors = random_factors(40, 30, 5, dtype=torch.float32)
    turned = Factors(*(tensor.T.contiguous().T for tensor in factors))
    assert same_bytes(compress(turned), compress(factors))
    matrix = numbers(LARGE, LARGE, dtype=torch.float32)
    assert same_bytes(truncated_svd(matrix.T.contiguous().T, 8), truncated_svd(matrix, 8))


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (LARGE, LARGE)])
def test_factors_lie_in_memory_as_files_need_them(shape: tuple[int, int]) -> None:
    factors = random_factors(*shape, 5)
    for spectrum in (compress(factors), compress(factors, 4), truncated_svd(product(factors), 4)):
        assert all(side.is_contiguous() for side in spectrum.factors(3))
        assert all(side.is_contiguous() for side in spectrum.factors(1))


@pytest.mark.parametrize("size", [12, LARGE])
def test_a_matrix_of_zeros_gives_zeros(size: int) -> None:
    zero = Factors(torch.zeros(3, size), torch.zeros(size, 3))
    assert product_norm(zero) == 0
    for spectrum in (compress(zero), truncated_svd(torch.zeros(size, size), 3)):
        assert spectrum.energy(1) == 1
        assert spectrum.rank_for(0.5) == spectrum.rank_for(1) == 1
        assert all(torch.count_nonzero(side) == 0 for side in spectrum.factors(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_float_type_gives_what_its_values_say(dtype: torch.dtype) -> None:
    factors = random_factors(40, 30, 5, dtype=dtype)
    matrix = decaying(LARGE, LARGE).to(dtype)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    found = compress(factors).factors(5)
    assert found.up_OR.dtype == found.down_RI.dtype == wanted
    assert relative(product(found), product(factors)) < 1e-6
    large = truncated_svd(matrix, 5).factors(5)
    assert large.up_OR.dtype == large.down_RI.dtype == wanted
    assert relative(product(large), best(matrix, 5)) < 1e-3


def test_gradients_are_not_tracked() -> None:
    factors = Factors(*(t.requires_grad_() for t in random_factors(8, 8, 2)))
    assert not compress(factors).factors(2).up_OR.requires_grad
    assert not stack([(1.0, factors)]).up_OR.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused(bad: float) -> None:
    factors = random_factors(8, 8, 2)
    factors.up_OR[3, 1] = bad
    matrix = numbers(8, 8)
    matrix[0, 5] = bad
    for call in (
        lambda: compress(factors),
        lambda: product_norm(factors),
        lambda: stack([(1.0, factors)]),
        lambda: truncated_svd(matrix, 2),
    ):
        with pytest.raises(UserError, match="NaN"):
            call()


@pytest.mark.parametrize("shapes", [((2, 8), (8, 3)), ((2, 8, 1), (8, 2)), ((0, 8), (8, 0))])
def test_factors_that_do_not_fit_are_refused(shapes) -> None:
    factors = Factors(*(torch.ones(shape) for shape in shapes))
    for call in (compress, product_norm, lambda factors: stack([(1.0, factors)])):
        with pytest.raises(UserError, match=r"shape|rank"):
            call(factors)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_same() -> None:
    matrix = decaying(LARGE, LARGE).float()
    found = truncated_svd(matrix.cuda(), 16)
    assert found.up_OK.is_cuda
    torch.testing.assert_close(found.values_K.cpu(), truncated_svd(matrix, 16).values_K)
    factors = random_factors(40, 30, 5, dtype=torch.float32)
    there = compress(Factors(*(tensor.cuda() for tensor in factors))).factors(3)
    assert relative(product(there).cpu(), best(product(factors), 3)) < 1e-6
