"""Products of two thin matrices: add them, measure them, make them thinner, find them in a matrix.

Inputs are of any float type. Results come from float64, where neither half precision nor TF32 can
reach them, and are rounded at the end: to float64 where an input had it, to float32 otherwise. They
track no gradients.

Shape suffixes: O output channels, I input channels, R rank, K singular values held, S size of a
random subspace.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scumble.errors import UserError

EXACT_UP_TO = 320
"""Matrices whose smaller side is at most this wide get a full SVD: 20 ms on one core."""

POWER_ITERATIONS = 4
"""Passes that turn the random subspace towards the large singular values."""

NEGLIGIBLE = 1e-12
"""Share of the energy that is the rounding of float32 and counts as nothing."""


class Factors(NamedTuple):
    """A matrix as the product up @ down, its scale inside."""

    down_RI: Tensor
    up_OR: Tensor

    @property
    def rank(self) -> int:
        """How many rows `down` has."""
        return self.down_RI.shape[0]


class Spectrum(NamedTuple):
    """A matrix as singular vectors and values, largest first, so that a rank can be chosen late."""

    up_OK: Tensor
    values_K: Tensor
    """Always float64."""
    down_KI: Tensor
    total_energy: float
    """Squared Frobenius norm of the whole matrix, also of what the K values leave out."""

    def energy(self, rank: int) -> float:
        """The share of the squared Frobenius norm that `rank` values keep, 0 to 1."""
        if self.total_energy == 0:
            return 1.0
        kept = float(self.values_K[: _positive(rank)].square().sum())
        return min(1.0, kept / self.total_energy)

    def rank_for(self, energy: float) -> int:
        """The smallest rank that keeps a share of the energy, at least 1.

        Args:
            energy: the share, above 0 and up to 1; 1 keeps all but the rounding of float32.

        Returns:
            K where all values held keep less: `energy(K)` says how much they do.

        Raises:
            UserError: the share lies outside its range.
        """
        if not 0 < energy <= 1:
            raise UserError(
                f"the energy to keep is {energy:g}", "Give a share above 0 and up to 1, as in 0.99."
            )
        enough = min(energy, 1 - NEGLIGIBLE) * self.total_energy
        too_few = int((self.values_K.square().cumsum(0) < enough).sum())
        return min(too_few + 1, len(self.values_K))

    def factors(self, rank: int) -> Factors:
        """The best product of this rank: each value's square root goes into either side.

        The largest entry of every column of `up` is positive: equal input gives equal bytes.

        Args:
            rank: at least 1. Beyond the K values held there is nothing to add: the result has
                rank K.

        Raises:
            UserError: the rank is below 1.
        """
        up_OR, down_RI = self.up_OK[:, : _positive(rank)], self.down_KI[:rank]
        root_R = self.values_K[:rank].sqrt()
        return Factors(
            (root_R[:, None] * down_RI).to(down_RI.dtype),
            (up_OR * root_R).to(up_OR.dtype),
        )


def stack(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """Add weighted products exactly: their factors side by side, each weight in its `up`.

    Args:
        parts: (weight, factors) of each summand; weights may be negative.

    Returns:
        Factors whose rank is the sum of the ranks.

    Raises:
        UserError: there is nothing to add, or shapes differ, or a value is NaN or infinite.
    """
    shapes = [(up_OR.shape[0], down_RI.shape[-1]) for _, (down_RI, up_OR) in parts]
    if len(set(shapes)) != 1:
        listed = ", ".join(f"{out} x {into}" for out, into in shapes)
        raise UserError(f"changes of one shape can be added, not of: {listed or 'none at all'}")
    if not all(math.isfinite(weight) for weight, _ in parts):
        raise UserError(f"the weights are {[weight for weight, _ in parts]}", "Give plain numbers.")
    dtype = _result_dtype(*(tensor for _, factors in parts for tensor in factors))
    exact = [(weight, _float64(factors)) for weight, factors in parts]
    return Factors(
        torch.cat([factors.down_RI for _, factors in exact]).to(dtype),
        torch.cat([weight * factors.up_OR for weight, factors in exact], dim=1).to(dtype),
    )


def product_norm(factors: Factors) -> float:
    """The Frobenius norm of up @ down from two R x R matrices, or the product where it is smaller.

    Products that cancel leave a norm of about 1e-8 of the norms of their parts.

    Raises:
        UserError: the shapes do not fit, or a value is NaN or infinite.
    """
    down_RI, up_OR = _float64(factors)
    if factors.rank > min(up_OR.shape[0], down_RI.shape[1]):
        return float((up_OR @ down_RI).norm())
    squared = float(((up_OR.T @ up_OR) * (down_RI @ down_RI.T)).sum())
    return math.sqrt(max(squared, 0.0))


def compress(factors: Factors, rank: int | None = None) -> Spectrum:
    """Find the SVD of up @ down from two QR decompositions and the SVD of an R x R core.

    Args:
        factors: the product, such as what `stack` gives.
        rank: how many values to keep, at least 1; None keeps all min(R, O, I).

    Raises:
        UserError: the shapes do not fit, a value is NaN or infinite, or the rank is below 1.
    """
    down_RI, up_OR = _float64(factors)
    dtype = _result_dtype(*factors)
    if factors.rank >= min(up_OR.shape[0], down_RI.shape[1]):
        return _full_spectrum(up_OR @ down_RI, rank, dtype)
    basis_OR, up_RR = torch.linalg.qr(up_OR)
    basis_IR, down_RR = torch.linalg.qr(down_RI.T)
    core_up_RR, values_R, core_down_RR = torch.linalg.svd(up_RR @ down_RR.T)
    return _spectrum(basis_OR @ core_up_RR, values_R, core_down_RR @ basis_IR.T, rank, dtype)


def truncated_svd(
    matrix_OI: Tensor, rank: int, generator: torch.Generator | None = None
) -> Spectrum:
    """Find the largest singular values and vectors of a matrix: its best product of this rank.

    A full SVD where the matrix is small or much of it is asked for. Otherwise a randomised one
    (arXiv:0909.4061): power iterations find the subspace, two float64 products what is in it. A
    matrix of at most this rank is recovered to rounding. Others lose at most 1 % more (Frobenius
    norm of the rest) than the best product, were all values alike; where they decay, far less.

    Args:
        matrix_OI: the matrix; flatten a convolution's weight from its second dimension on.
        rank: how many values to find, at least 1; at most min(O, I) exist.
        generator: source of the random directions, on the CPU. None is a fresh one of seed 0; the
            global generator is never drawn from.

    Raises:
        UserError: it is no matrix, a value is NaN or infinite, or the rank is below 1.
    """
    exact_OI = _float64_matrix(matrix_OI)
    dtype = _result_dtype(matrix_OI)
    smaller = min(exact_OI.shape)
    size = _positive(rank) + rank // 2 + 8
    # Beyond a quarter of the values, finding them one subspace at a time saves little.
    if smaller <= EXACT_UP_TO or 4 * size > smaller:
        return _full_spectrum(exact_OI, rank, dtype)
    directions_IS = _leading_directions(matrix_OI.detach().to(dtype), size, generator)
    # float64 from here on: what float32 missed of a direction is not lost of the matrix.
    basis_OS, _ = torch.linalg.qr(exact_OI @ directions_IS.double())
    found = compress(Factors(basis_OS.T @ exact_OI, basis_OS), rank)
    return found._replace(
        up_OK=found.up_OK.to(dtype),
        down_KI=found.down_KI.to(dtype),
        total_energy=float(exact_OI.square().sum()),
    )


def require_finite(values: Tensor) -> None:
    """Stop where one NaN would spread over a whole result.

    Raises:
        UserError: a value is NaN or infinite. Whoever knows the layer's name adds it.
    """
    if not bool(values.isfinite().all()):
        raise UserError(
            "its weights hold NaN or infinite values",
            "The file is damaged, or its training diverged: use an earlier one.",
        )


def _leading_directions(matrix_OI: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Orthonormal directions of the inputs that the matrix stretches most, shape (I, S)."""
    draw = generator or torch.Generator().manual_seed(0)
    drawn_IS = torch.randn(matrix_OI.shape[1], size, generator=draw, dtype=torch.float32)
    directions_IS = drawn_IS.to(matrix_OI)
    for _ in range(POWER_ITERATIONS):
        # Without QR in between, every direction would turn into the largest one.
        basis_OS, _ = torch.linalg.qr(matrix_OI @ directions_IS)
        directions_IS, _ = torch.linalg.qr(matrix_OI.T @ basis_OS)
    return directions_IS


def _full_spectrum(matrix_OI: Tensor, rank: int | None, dtype: torch.dtype) -> Spectrum:
    up_OK, values_K, down_KI = torch.linalg.svd(matrix_OI, full_matrices=False)
    return _spectrum(up_OK, values_K, down_KI, rank, dtype)


def _spectrum(
    up_OK: Tensor, values_K: Tensor, down_KI: Tensor, rank: int | None, dtype: torch.dtype
) -> Spectrum:
    """Fix the signs, which an SVD leaves open, then cut and round."""
    largest_K = up_OK.gather(0, up_OK.abs().argmax(0, keepdim=True))[0]
    sign_K = torch.where(largest_K < 0, -1.0, 1.0).to(up_OK)
    kept = len(values_K) if rank is None else _positive(rank)
    return Spectrum(
        (up_OK * sign_K)[:, :kept].to(dtype).contiguous(),
        values_K[:kept],
        (sign_K[:, None] * down_KI)[:kept].to(dtype).contiguous(),
        float(values_K.square().sum()),
    )


def _positive(rank: int) -> int:
    if rank < 1:
        raise UserError(f"the rank is {rank}", "Give a rank of at least 1.")
    return rank


def _result_dtype(*tensors: Tensor) -> torch.dtype:
    doubles = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if doubles else torch.float32


def _float64(factors: Factors) -> Factors:
    down_RI, up_OR = (_float64_matrix(tensor) for tensor in factors)
    if not 0 < down_RI.shape[0] == up_OR.shape[1]:
        raise UserError(
            f"down {tuple(down_RI.shape)} and up {tuple(up_OR.shape)} are not of one rank"
        )
    return Factors(down_RI, up_OR)


def _float64_matrix(matrix: Tensor) -> Tensor:
    if matrix.ndim != 2 or not matrix.numel():
        raise UserError(f"a tensor of shape {tuple(matrix.shape)} is no matrix")
    exact = matrix.detach().to(torch.float64).contiguous()
    require_finite(exact)
    return exact
