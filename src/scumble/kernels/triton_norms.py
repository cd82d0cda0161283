"""Frozen norms in Triton, forward and backward to the input, computed in float32.

A group that fits one program's block is normed by one kernel; LayerNorm is this case: each row is a
picture of one position and one group. Larger groups are cut into chunks of positions: one kernel
writes down what each chunk has to say, the next joins that, in a fixed order, so that results never
vary, and norms. Block sizes follow from shapes alone, so that a CUDA graph can record it all.

Shape suffixes: B batch, C channels, H height, W width, G groups.
In the kernels: blocks of P positions x U neighbouring groups x SIZE channels (S with its padding),
K chunks of a group, rounded up.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_HELD = 16384
"""Largest block that one program norms alone: 32 values for each of 512 threads."""

BLOCK, MOST_CHUNKS = 4096, 64
"""Size of the blocks of larger groups, and the most chunks: all are read again by each program."""

SIDE_BY_SIDE, PROGRAMS = 64, 512
"""Fewest channels read together: a cache line of float16; programs enough: 4 x 132 processors."""


@triton.jit
def _groups(groups, SIZE: tl.constexpr, U: tl.constexpr, S: tl.constexpr):
    """The program's groups: their numbers in the batch, channels, and which of both exist."""
    group = tl.program_id(1) * U + tl.arange(0, U)
    slot = tl.arange(0, S)[None, None, :]
    exists = group < groups
    channel = group[None, :, None] * SIZE + slot
    return tl.program_id(0) * groups + group, exists, channel, exists[None, :, None] & (slot < SIZE)


@triton.jit
def _block(step, steps, groups, positions, channel, known, SIZE: tl.constexpr, P: tl.constexpr):
    """A block of the program's chunk: where it lies, what exists, and how much of each group."""
    first = (tl.program_id(2) * steps + step) * P
    position = first + tl.arange(0, P)[:, None, None]
    row = tl.program_id(0).to(tl.int64) * positions + position
    count = tl.minimum(tl.maximum(positions - first, 0), P) * SIZE
    return row * (groups * SIZE) + channel, known & (position < positions), count.to(tl.float32)


@triton.jit
def _group_sums(x):
    return tl.sum(tl.sum(x, 2), 0)


@triton.jit
def _load_moments(x_ptr, place, exists, count):
    """Mean, and sum of the squared distances from it, of each group in a block."""
    x = tl.load(x_ptr + place, mask=exists, other=0.0).to(tl.float32)
    mean = _group_sums(x) / tl.maximum(count, 1.0)
    centred = tl.where(exists, x - mean[None, :, None], 0.0)
    return mean, _group_sums(centred * centred)


@triton.jit
def _load_gradient(
    grad_ptr, x_ptr, place, exists, mean, rstd, weight_ptr, bias_ptr, channel, known,
    SILU: tl.constexpr,
):  # fmt: skip
    """A block's normed values again, and the gradient of them."""
    x = tl.load(x_ptr + place, mask=exists, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + place, mask=exists, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)
    normed = (x - mean[None, :, None]) * rstd[None, :, None]
    if SILU:
        bias = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)
        z = normed * weight + bias
        gate = 1.0 / (1.0 + tl.exp(-z))
        grad *= gate * (1.0 + z * (1.0 - gate))
    return normed, grad * weight


@triton.jit
def _chunk_forward(
    x_ptr, means_ptr, spreads_ptr, groups, positions, steps, chunks,
    SIZE: tl.constexpr, U: tl.constexpr, S: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """The moments of each chunk, joined block by block: sums of squares would cancel out."""
    unit, is_group, channel, known = _groups(groups, SIZE, U, S)
    total = 0.0
    mean = tl.full([U], 0.0, tl.float32)
    spread = tl.full([U], 0.0, tl.float32)
    for step in range(steps):
        place, exists, count = _block(step, steps, groups, positions, channel, known, SIZE, P)
        own_mean, own_spread = _load_moments(x_ptr, place, exists, count)
        share = count / tl.maximum(total + count, 1.0)
        away = own_mean - mean
        mean += away * share
        spread += own_spread + away * away * total * share
        total += count
    said = unit * chunks + tl.program_id(2)
    tl.store(means_ptr + said, mean, mask=is_group)
    tl.store(spreads_ptr + said, spread, mask=is_group)


@triton.jit
def _norm_forward(
    x_ptr, y_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, means_ptr, spreads_ptr,
    groups, positions, steps, chunks, eps,
    SIZE: tl.constexpr, U: tl.constexpr, S: tl.constexpr, P: tl.constexpr,
    K: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    unit, is_group, channel, known = _groups(groups, SIZE, U, S)
    if K == 0:  # One block: the compiler makes one of this load and the one below.
        place, exists, count = _block(0, 1, groups, positions, channel, known, SIZE, P)
        mean, spread = _load_moments(x_ptr, place, exists, count)
    else:
        chunk = tl.arange(0, K)[None, :]
        said = unit[:, None] * chunks + chunk
        spoke = is_group[:, None] & (chunk < chunks)
        means = tl.load(means_ptr + said, mask=spoke, other=0.0)
        spreads = tl.load(spreads_ptr + said, mask=spoke, other=0.0)
        rows = tl.minimum(tl.maximum(positions - chunk * (steps * P), 0), steps * P)
        counts = (rows * SIZE).to(tl.float32)
        mean = tl.sum(means * counts, 1) / (positions * SIZE)
        away = means - mean[:, None]
        spread = tl.sum(spreads + away * away * counts, 1)
    rstd = tl.rsqrt(spread / (positions * SIZE) + eps)
    for step in range(steps):
        place, exists, count = _block(step, steps, groups, positions, channel, known, SIZE, P)
        x = tl.load(x_ptr + place, mask=exists, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + channel, mask=known, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + channel, mask=known, other=0.0).to(tl.float32)
        y = (x - mean[None, :, None]) * rstd[None, :, None] * weight + bias
        if SILU:
            y = y / (1.0 + tl.exp(-y))
        tl.store(y_ptr + place, y, mask=exists)
    # All programs of a group know its statistics; the one of its first chunk writes them down.
    if tl.program_id(2) == 0:
        tl.store(mean_ptr + unit, mean, mask=is_group)
        tl.store(rstd_ptr + unit, rstd, mask=is_group)


@triton.jit
def _chunk_backward(
    grad_ptr, x_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, levels_ptr, slopes_ptr,
    groups, positions, steps, chunks,
    SIZE: tl.constexpr, U: tl.constexpr, S: tl.constexpr, P: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    unit, is_group, channel, known = _groups(groups, SIZE, U, S)
    mean = tl.load(mean_ptr + unit, mask=is_group, other=0.0)
    rstd = tl.load(rstd_ptr + unit, mask=is_group, other=0.0)
    level = tl.full([U], 0.0, tl.float32)
    slope = tl.full([U], 0.0, tl.float32)
    for step in range(steps):
        place, exists, _ = _block(step, steps, groups, positions, channel, known, SIZE, P)
        normed, grad = _load_gradient(
            grad_ptr, x_ptr, place, exists, mean, rstd, weight_ptr, bias_ptr, channel, known, SILU
        )
        level += _group_sums(grad)
        slope += _group_sums(grad * normed)
    said = unit * chunks + tl.program_id(2)
    tl.store(levels_ptr + said, level, mask=is_group)
    tl.store(slopes_ptr + said, slope, mask=is_group)


@triton.jit
def _norm_backward(
    grad_ptr, x_ptr, out_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, levels_ptr, slopes_ptr,
    groups, positions, steps, chunks,
    SIZE: tl.constexpr, U: tl.constexpr, S: tl.constexpr, P: tl.constexpr,
    K: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """What the gradient has in common with a constant and with the normed values has no effect."""
    unit, is_group, channel, known = _groups(groups, SIZE, U, S)
    mean = tl.load(mean_ptr + unit, mask=is_group, other=0.0)
    rstd = tl.load(rstd_ptr + unit, mask=is_group, other=0.0)
    if K == 0:
        place, exists, _ = _block(0, 1, groups, positions, channel, known, SIZE, P)
        normed, grad = _load_gradient(
            grad_ptr, x_ptr, place, exists, mean, rstd, weight_ptr, bias_ptr, channel, known, SILU
        )
        level = _group_sums(grad) / (positions * SIZE)
        slope = _group_sums(grad * normed) / (positions * SIZE)
    else:
        chunk = tl.arange(0, K)[None, :]
        said = unit[:, None] * chunks + chunk
        spoke = is_group[:, None] & (chunk < chunks)
        level = tl.sum(tl.load(levels_ptr + said, mask=spoke, other=0.0), 1) / (positions * SIZE)
        slope = tl.sum(tl.load(slopes_ptr + said, mask=spoke, other=0.0), 1) / (positions * SIZE)
    for step in range(steps):
        place, exists, _ = _block(step, steps, groups, positions, channel, known, SIZE, P)
        normed, grad = _load_gradient(
            grad_ptr, x_ptr, place, exists, mean, rstd, weight_ptr, bias_ptr, channel, known, SILU
        )
        out = (grad - level[None, :, None] - normed * slope[None, :, None]) * rstd[None, :, None]
        tl.store(out_ptr + place, out, mask=exists)


class _Plan(NamedTuple):
    """Programs (pictures, blocks of groups, chunks), K or 0, and the other numbers of kernels."""

    grid: tuple[int, int, int]
    joined: int
    numbers: dict[str, int]

    def run(self, kernel, *tensors: Tensor, **more: float) -> None:
        with torch.cuda.device_of(tensors[0]):
            kernel[self.grid](*tensors, **self.numbers, **more)

    def room(self, mean: Tensor, rstd: Tensor) -> tuple[Tensor, ...]:
        """For two numbers of each chunk; any tensors stand in where none are written."""
        if not self.joined:
            return mean, rstd
        return mean.new_empty(2, mean.numel() * self.grid[2]).unbind()


def _plan(batch: int, groups: int, positions: int, size: int) -> _Plan:
    slots, rows = triton.next_power_of_2(size), triton.next_power_of_2(positions)
    units, steps, chunks = 1, 1, 0
    if positions > 1 and rows * slots > MOST_HELD:
        units = triton.next_power_of_2(min(groups, triton.cdiv(SIDE_BY_SIDE, size)))
        rows = max(1, BLOCK // (units * slots))
        blocks = triton.cdiv(positions, rows)
        wanted = PROGRAMS // (batch * triton.cdiv(groups, units))
        steps = triton.cdiv(blocks, max(1, min(wanted, MOST_CHUNKS)))
        chunks = triton.cdiv(blocks, steps)
    numbers = {"groups": groups, "positions": positions, "steps": steps, "chunks": chunks}
    numbers |= {"SIZE": size, "U": units, "S": slots, "P": rows}
    # Sixteen values for each thread: two loads of 16 bytes under way where the layout allows it.
    numbers["num_warps"] = min(16, max(1, units * rows * slots // 512))
    grid = (batch, triton.cdiv(groups, units), max(1, chunks))
    return _Plan(grid, triton.next_power_of_2(chunks), numbers)


def _forward(plan: _Plan, x: Tensor, weight, bias, mean, rstd, eps: float, silu: bool) -> Tensor:
    y, said = torch.empty_like(x), plan.room(mean, rstd)
    if plan.joined:
        plan.run(_chunk_forward, x, *said)
    tensors = (x, y, weight, bias, mean, rstd, *said)
    plan.run(_norm_forward, *tensors, eps=eps, K=plan.joined, SILU=silu)
    return y


def _backward(plan: _Plan, grad, x: Tensor, weight, bias, mean, rstd, silu: bool) -> Tensor:
    out, said = torch.empty_like(x), plan.room(mean, rstd)
    frozen = (weight, bias, mean, rstd, *said)
    if plan.joined:
        plan.run(_chunk_backward, grad, x, *frozen, SILU=silu)
    plan.run(_norm_backward, grad, x, out, *frozen, K=plan.joined, SILU=silu)
    return out


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm over the last dimension; returns (result, mean, reciprocal deviation)."""
    mean, rstd = x.new_empty(2, *x.shape[:-1], 1, dtype=torch.float32)
    plan = _plan(mean.numel(), 1, 1, x.shape[-1])
    return _forward(plan, x.contiguous(), weight, bias, mean, rstd, eps, False), mean, rstd


def layer_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> Tensor:
    """The gradient of the input of `layer_norm`."""
    plan, bias = _plan(mean.numel(), 1, 1, x.shape[-1]), weight  # The bias is read for SiLU alone.
    return _backward(plan, grad.contiguous(), x.contiguous(), weight, bias, mean, rstd, False)


def group_norm(
    x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """GroupNorm of channels_last maps, and SiLU behind it if wanted.

    Returns (result, mean, reciprocal deviation); the statistics have the shape (B, G).
    """
    batch, channels = x_BCHW.shape[:2]
    mean_BG, rstd_BG = x_BCHW.new_empty(2, batch, groups, dtype=torch.float32)
    plan = _plan(batch, groups, x_BCHW.shape[2:].numel(), channels // groups)
    y_BCHW = _forward(plan, x_BCHW, weight_C, bias_C, mean_BG, rstd_BG, eps, silu)
    return y_BCHW, mean_BG, rstd_BG


def group_norm_backward(
    grad_BCHW: Tensor,
    x_BCHW: Tensor,
    mean_BG: Tensor,
    rstd_BG: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    groups: int,
    silu: bool,
) -> Tensor:
    """The gradient of the input of `group_norm`; what was before SiLU is computed again."""
    batch, channels = x_BCHW.shape[:2]
    grad_BCHW = grad_BCHW.contiguous(memory_format=torch.channels_last)
    plan = _plan(batch, groups, x_BCHW.shape[2:].numel(), channels // groups)
    return _backward(plan, grad_BCHW, x_BCHW, weight_C, bias_C, mean_BG, rstd_BG, silu)
