"""The layers of Stable Diffusion 1.x and 2.x in the order in which files count that name none.

That order is the one in which diffusers 0.11 built its UNet and walked through it: down, up, and
the middle last; in each block attention before the convolutions.
"""

from collections.abc import Iterator, Mapping

TEXT_LAYERS = 23
"""Of the longest text encoder, that of 2.x. A shorter one has the first of them."""


def _unet() -> Iterator[str]:
    for block in range(4):
        yield from _block(f"down_blocks.{block}", 2 if block < 3 else 0, 2, block in (1, 2))
    for block in range(4):
        # An up block takes in what the way down left, so that every sum needs a shortcut.
        yield from _block(f"up_blocks.{block}", 3 if block > 0 else 0, 3, True)
    yield from _block("mid_block", 1, 2, False)


def _block(name: str, attentions: int, resnets: int, widens: bool) -> Iterator[str]:
    for number in range(attentions):
        inner = f"{name}.attentions.{number}.transformer_blocks.0"
        yield from (f"{inner}.attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0"))
        yield f"{inner}.ff.net.0.proj"
        yield from (f"{inner}.attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0"))
    for number in range(resnets):
        has_shortcut = widens and (number == 0 or name.startswith("up"))
        parts = ("conv1", "time_emb_proj", "conv2") + ("conv_shortcut",) * has_shortcut
        yield from (f"{name}.resnets.{number}.{part}" for part in parts)


def _text_encoder() -> Iterator[str]:
    for layer in range(TEXT_LAYERS):
        stem = f"text_model.encoder.layers.{layer}.self_attn"
        yield from (f"{stem}.{part}_proj" for part in ("k", "v", "q", "out"))


NUMBERED_LAYERS: Mapping[str, tuple[str, ...]] = {
    "unet": tuple(_unet()),
    "text_encoder": tuple(_text_encoder()),
}
"""Component -> its layers, in order."""
