"""Learned tokens by themselves: diffusers' `learned_embeds.safetensors`, and that of A1111.

diffusers: `<token>` -> (vectors, width) or (width,). A1111: the single key `emb_params`; the file's
name is the token. Vectors belong to the family's first text encoder.
"""

from scumble.errors import UserError
from scumble.formats.container import Content
from scumble.formats.key_names import KeyNames
from scumble.formats.weights import AdapterWeights, LearnedToken

NAMELESS = "emb_params"
"""A1111's key, which does not name the token."""

ENCODERS = {"clip_l", "clip_g"}
"""Keys of diffusers' advanced scripts, which name text encoders and no tokens."""

PARAMETERS = (".weight", ".bias", ".alpha", ".diff", ".dora_scale")
"""Ends of keys that belong to layers; no token is called so."""


def recognises(content: Content, key_names: KeyNames) -> bool:
    """Whether a file holds tokens: rows of one width, no names of layers."""
    shapes = {key: tuple(tensor.shape) for key, tensor in content.tensors.items()}
    are_rows = all(
        len(shape) in (1, 2) and not key.endswith(PARAMETERS) for key, shape in shapes.items()
    )
    widths = {shape[-1] for shape in shapes.values() if shape}
    return bool(key_names.tokens) and are_rows and len(widths) == 1


def read(content: Content, key_names: KeyNames) -> AdapterWeights:
    """Read the tokens of a file.

    Raises:
        UserError: the file does not name its tokens.
    """
    tensors = content.tensors
    encoder = next(iter(key_names.tokens))
    if tensors.keys() <= ENCODERS:
        raise UserError(
            "it does not say what its tokens are called, only for which text encoders "
            f"they are: {', '.join(sorted(tensors))}",
            "The model card beside it names them; files of that kind are not read yet.",
        )
    if tensors.keys() == {NAMELESS}:
        tensors = {content.name: tensors[NAMELESS]}
    tokens = {
        token: LearnedToken({encoder: vectors[None] if vectors.ndim == 1 else vectors})
        for token, vectors in tensors.items()
    }
    return AdapterWeights({}, dict(content.metadata), tokens)


def write(weights: AdapterWeights, key_names: KeyNames) -> Content:
    """Lay out a file that diffusers' `load_textual_inversion` reads if it holds one token.

    Raises:
        UserError: the weights hold more than tokens of one text encoder, which would be lost.
    """
    if any(weights.components.values()):
        raise UserError(
            "the format 'embedding' holds learned tokens alone, and this is an adapter of layers",
            "The format 'peft' keeps both in one file.",
        )
    encoder = next(iter(key_names.tokens), None)
    if encoder is None or any(set(t.vectors) != {encoder} for t in weights.tokens.values()):
        raise UserError(
            "the format 'embedding' holds the vectors of one text encoder alone",
            "The format 'peft' keeps those of several in one file.",
        )
    if NAMELESS in weights.tokens:
        raise UserError(f"a token cannot be called '{NAMELESS}'", "Files without a name say so.")
    tensors = {token: entry.vectors[encoder] for token, entry in weights.tokens.items()}
    return Content(tensors, weights.metadata)
