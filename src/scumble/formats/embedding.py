"""Learned tokens by themselves, as diffusers, A1111 and their kin keep them.

- diffusers' `learned_embeds.safetensors`: token -> (vectors, width) or (width,). Written.
- A1111's pickles: `string_to_param.*` with the `name` beside it.
- The single key `emb_params`; the file's name is the token.
- `clip_l` (and `clip_g`), the vectors for each text encoder. In the `<name>_emb.safetensors` of
  diffusers' advanced scripts they are one for each of the tokens <s0>, <s1>, ..., which those
  scripts always call so. Elsewhere they are all of one token, which has the file's name.

A1111 and ComfyUI read a single token of the first kind too, by the file's name.
"""

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from scumble.errors import UserError
from scumble.formats.container import Content
from scumble.formats.key_names import KeyNames
from scumble.formats.weights import AdapterWeights, LearnedToken

NAMELESS = "emb_params"
"""The key of trainers that do not name the token."""

IN_PICKLES = "string_to_param."
"""Before the one key of A1111's own vectors, which is * whatever the token."""

ENCODERS = ("clip_l", "clip_g")
"""Keys of vectors that name text encoders and no tokens, in the encoders' order."""

PIVOTAL = re.compile(r".*_emb(_checkpoint_\d+)?")
"""How diffusers' advanced scripts call their files."""

PARAMETERS = (".weight", ".bias", ".alpha", ".diff", ".dora_scale")
"""Ends of keys that belong to layers; no token is called so."""


def recognises(content: Content, key_names: KeyNames) -> bool:
    """Whether a file holds tokens: rows of one width, no names of layers."""
    shapes = {key: tuple(tensor.shape) for key, tensor in content.tensors.items()}
    are_rows = all(
        len(shape) in (1, 2) and not key.endswith(PARAMETERS) for key, shape in shapes.items()
    )
    widths = {shape[-1] for shape in shapes.values() if shape}
    is_one = len(widths) == 1 or shapes.keys() <= set(ENCODERS)
    return bool(key_names.tokens) and are_rows and is_one


def read(content: Content, key_names: KeyNames) -> AdapterWeights:
    """Read the tokens of a file.

    Raises:
        UserError: the file holds several sets of vectors for one name, or vectors for a text
            encoder that the family lacks.
    """
    metadata = dict(content.metadata)
    if content.tensors.keys() <= set(ENCODERS):
        return AdapterWeights({}, metadata, _by_encoder(content, key_names))
    tensors = {key: _rows(tensor) for key, tensor in content.tensors.items()}
    if any(key.startswith(IN_PICKLES) for key in tensors):
        name = metadata.pop("name", "") or content.name
        metadata = {k: v for k, v in metadata.items() if not k.startswith("string_to_token.")}
        tensors = {name: _only(tensors)}
    elif tensors.keys() == {NAMELESS}:
        tensors = {content.name: tensors[NAMELESS]}
    encoder = next(iter(key_names.tokens))
    tokens = {token: LearnedToken({encoder: vectors}) for token, vectors in tensors.items()}
    kept = {key: value for key, value in metadata.items() if key not in tokens}
    return AdapterWeights({}, kept, tokens)


def _by_encoder(content: Content, key_names: KeyNames) -> dict[str, LearnedToken]:
    encoders = dict(zip(ENCODERS, key_names.tokens, strict=False))
    for key in content.tensors:
        if key not in encoders:
            raise UserError(
                f"it has vectors for '{key}', a text encoder that this family of models lacks",
                "It is for another family, such as SDXL.",
            )
    vectors = {encoders[key]: _rows(tensor) for key, tensor in content.tensors.items()}
    if not PIVOTAL.fullmatch(content.name):
        return {content.name: LearnedToken(vectors)}
    if len({len(rows) for rows in vectors.values()}) > 1:
        raise UserError("it has more tokens for one text encoder than for the other")
    return dict(_numbered(vectors))


def _numbered(vectors: Mapping[str, Tensor]) -> Iterator[tuple[str, LearnedToken]]:
    for number in range(len(next(iter(vectors.values())))):
        rows = {encoder: tensor[number : number + 1] for encoder, tensor in vectors.items()}
        yield f"<s{number}>", LearnedToken(rows)


def _only(tensors: Mapping[str, Tensor]) -> Tensor:
    if len(tensors) > 1:
        raise UserError(
            f"it has {len(tensors)} sets of vectors and one name for them: {', '.join(tensors)}",
            "An embedding of A1111 has one.",
        )
    return next(iter(tensors.values()))


def _rows(tensor: Tensor) -> Tensor:
    return tensor[None] if tensor.ndim == 1 else tensor


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
    for token in weights.tokens:
        if token in (NAMELESS, *ENCODERS) or token.startswith(IN_PICKLES):
            raise UserError(f"a token cannot be called '{token}'", "Files without a name say so.")
    tensors = {token: entry.vectors[encoder] for token, entry in weights.tokens.items()}
    return Content(tensors, weights.metadata)
