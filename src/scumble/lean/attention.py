"""The attention processor of lean models: diffusers' general way into attention.

It reads the projections, adapted or not, stacks those of one input and picks the implementation.
Another processor may be set in its place at any time; the blocks then hand everything to that one.

Shape suffixes: B batch, T tokens, C channels.
"""

from typing import Any, cast

from torch import Tensor, nn

from scumble.kernels.attention import ATTENTION, Attend, Source, recomputed_attention, split_heads
from scumble.kernels.projection import Norm, projection
from scumble.lean.factors import read
from scumble.lean.forwards import is_autocast, may_pass_over
from scumble.lean.levels import Level

FUSED = "AttnProcessor2_0"
"""diffusers' processor of fused kernels: fp32 inside, so that it looks at no flag to upcast."""
PLAIN_PROCESSORS = ("AttnProcessor", FUSED)
"""diffusers' processors that compute attention as it is written in books."""


class LeanAttention:
    """Attention of a frozen model with thin changes, as a diffusers attention processor.

    Args:
        level: what is kept for the way back.
        attention: name of the implementation, a key of `ATTENTION`.
        before: the processor that it stands in for; asked where something unusual is wanted.
    """

    def __init__(self, level: Level, attention: str, before: Any) -> None:
        self.level = level
        self.attend_with: Attend = ATTENTION[attention]
        self.before = before

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """What diffusers' Attention calls, with the normed input."""
        if attention_mask is None and not more and hidden_states.ndim == 3 and not is_autocast():
            result = self.attend(attn, hidden_states, encoder_hidden_states, Norm())
            if result is not None:
                return result
        states = encoder_hidden_states, attention_mask, temb
        return cast(Tensor, self.before(attn, hidden_states, *states, **more))

    def attend(self, attn: Any, h_BTC: Tensor, context: Tensor | None, norm: Norm) -> Tensor | None:
        """Norm, projections, attention and output projection.

        Args:
            attn: diffusers' Attention.
            h_BTC: what asks.
            context: what is asked; None for `h_BTC` itself.
            norm: applied to `h_BTC` first.

        Returns:
            None where a layer is not such as this processor computes at present.
        """
        groups: list[list[nn.Module]] = [[attn.to_q, attn.to_k, attn.to_v]]
        if context is not None:
            groups = [[attn.to_q], [attn.to_k, attn.to_v]]
        found = [read(layers, h_BTC.dtype) for layers in [*groups, [attn.to_out[0]]]]
        sources = [Source(*source) for source in found if source is not None]
        if len(sources) < len(found) or not may_pass_over(attn.to_out[1]):
            return None
        out = sources.pop()
        if self.level.recompute_attention:
            mixed_BTC = recomputed_attention(
                h_BTC, context, norm, attn.heads, self.attend_with, sources
            )
        else:
            mixed_BTC = self._attend(attn.heads, h_BTC, context, norm, sources)
        return projection(mixed_BTC, Norm(), *out)

    def _attend(
        self, heads: int, h_BTC: Tensor, context: Tensor | None, norm: Norm, sources: list[Source]
    ) -> Tensor:
        projected = projection(h_BTC, norm, *sources[0])
        if context is None:
            q, k, v = projected.chunk(3, -1)
        else:
            q = projected
            k, v = projection(context, Norm(), *sources[1]).chunk(2, -1)
        parts = (split_heads(q, heads), split_heads(k, heads), split_heads(v, heads))
        return self.attend_with(*parts).transpose(1, 2).flatten(2)


def _upcasts(attn: Any) -> bool:
    return bool(attn.upcast_attention or attn.upcast_softmax)


def fits_attention(attn: Any) -> bool:
    """An Attention without norms of its own, residual or rescaling, in diffusers' plain form."""
    return (
        type(attn.processor).__name__ in PLAIN_PROCESSORS
        and attn.spatial_norm is attn.group_norm is attn.norm_q is attn.norm_k is None
        and not attn.norm_cross
        and attn.added_kv_proj_dim is None
        and attn.to_out is not None
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
        and (attn.processor.__class__.__name__ == FUSED or not _upcasts(attn))
        and attn.scale == (attn.inner_dim // attn.heads) ** -0.5
        and attn.inner_dim == attn.inner_kv_dim
        and attn.to_out[1].p == 0
    )
