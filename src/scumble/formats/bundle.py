"""Learned tokens inside a file of adapters, as A1111 bundles them.

`bundle_emb.<token>.string_to_param.*`: the token, which may have dots, and its encoder's spelling.
"""

from collections.abc import Mapping

from torch import Tensor

from scumble.formats.assemble import Parts
from scumble.formats.key_names import KeyNames
from scumble.formats.weights import LearnedToken

TOKEN_PREFIX = "bundle_emb."
"""What stands before the vectors of a learned token."""


def add_token(
    tokens: dict[str, LearnedToken], parts: Parts, key: str, tensor: Tensor, key_names: KeyNames
) -> None:
    """Read the vectors of a learned token that is bundled with an adapter.

    Args:
        tokens: gets the vectors.
        parts: gets the key where it is not of this family.
        key: as in the file, with `TOKEN_PREFIX`.
        tensor: the vectors.
        key_names: the family's names.
    """
    rest = key.removeprefix(TOKEN_PREFIX)
    for encoder, spelling in key_names.tokens.items():
        token = rest.removesuffix(f".{spelling}")
        if token and token != rest:
            tokens.setdefault(token, LearnedToken({})).vectors[encoder] = tensor
            return
    ends = " or ".join(key_names.tokens.values())
    parts.leave(key, f"is not a learned token of this family, which would end in {ends}")


def bundled(tokens: Mapping[str, LearnedToken], key_names: KeyNames) -> dict[str, Tensor]:
    """Key -> vectors, for a file that holds adapters too."""
    return {
        f"{TOKEN_PREFIX}{token}.{key_names.tokens[encoder]}": vectors
        for token, entry in tokens.items()
        for encoder, vectors in entry.vectors.items()
    }
