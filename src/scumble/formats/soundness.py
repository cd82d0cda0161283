"""What adapters must be before they are used or put in place of a file."""

import torch
from torch import Tensor

from scumble.adapters import ADAPTERS
from scumble.errors import UserError
from scumble.formats.container import DTYPES, UNSPEAKABLE
from scumble.formats.key_names import KeyNames
from scumble.formats.layer_shapes import check_shapes
from scumble.formats.weights import AdapterWeights, LearnedToken, ModuleWeights

LEAST_SCALE, MOST_SCALE = 1e-6, 1e6
"""Limits of alpha / rank. The largest there are: LyCORIS with a rank of 100000, to have all whole.
"""


def check_encoders(weights: AdapterWeights, key_names: KeyNames) -> None:
    """Refuse learned tokens of text encoders that the family lacks.

    Raises:
        UserError: naming token and encoder.
    """
    for token, entry in weights.tokens.items():
        for encoder in entry.vectors.keys() - key_names.tokens.keys():
            raise UserError(f"'{token}' has vectors for '{encoder}', which the family lacks")


def check_sound(weights: AdapterWeights) -> None:
    """Refuse tensors that are empty, not finite, or of shapes that make no layer; absurd alphas.

    Of an outline, whose numbers are unread, the shapes alone are checked.

    Raises:
        UserError: naming the layer or token.
    """
    for component, modules in weights.components.items():
        for module, entry in modules.items():
            name = f"{component}.{module}"
            if entry.rank < 1 or not all(tensor.numel() for tensor in entry.tensors.values()):
                raise UserError(f"{name} has no rank: its tensors are empty")
            _check_alpha(entry, name)
            try:
                check_shapes(entry)
            except UserError as error:
                raise UserError(f"{name}: {error.message}", error.hint) from error
            for tensor in entry.tensors.values():
                if not _is_finite(tensor):
                    raise UserError(f"{name} holds NaN or infinite values")
    for token, learned in weights.tokens.items():
        _check_token(token, learned)


def _check_alpha(entry: ModuleWeights, name: str) -> None:
    """Refuse a scale that is nothing, or larger than any.

    Programs do not agree what an alpha of 0 means: no change to some, the rank to others.
    """
    scale = abs(entry.alpha) / entry.rank
    if ADAPTERS[entry.type].has_rank and not LEAST_SCALE <= scale <= MOST_SCALE:
        effect = "nothing" if scale < LEAST_SCALE else "everything"
        raise UserError(
            f"the alpha of {name} is {entry.alpha:g} at rank {entry.rank}: it would change {effect}"
        )


def _check_token(token: str, learned: LearnedToken) -> None:
    if not token or not learned.vectors:
        raise UserError(f"the token '{token}' has no {'vectors' if token else 'name'}")
    if UNSPEAKABLE.search(token):
        raise UserError(
            f"a token's name is none that can be written: {token[:60]!a}",
            "The file is damaged, or made to do harm.",
        )
    for vectors in learned.vectors.values():
        _check_vectors(vectors, f"the token '{token}'")


def _check_vectors(vectors: Tensor, name: str) -> None:
    if vectors.ndim != 2 or not vectors.numel():
        raise UserError(f"{name} has shape {tuple(vectors.shape)}, not that of vectors")
    if vectors.dtype not in DTYPES:
        raise UserError(f"{name} holds {vectors.dtype}, which is not supported")
    if not _is_finite(vectors):
        raise UserError(f"{name} holds NaN or infinite values")


def check_equal(wanted: AdapterWeights, got: AdapterWeights) -> None:
    """Make sure that a file says what was to be written.

    Raises:
        UserError: naming the layer or token that came back otherwise.
    """
    for component, modules in wanted.components.items():
        for module, entry in modules.items():
            back = got.components.get(component, {}).get(module)
            same = (
                back is not None
                and back.alpha == entry.alpha
                and back.tensors.keys() == entry.tensors.keys()
                and all(torch.equal(back.tensors[k], t) for k, t in entry.tensors.items())
            )
            if not same:
                raise UserError(f"{component}.{module} did not come back from the file as written")
    for token, learned in wanted.tokens.items():
        vectors = got.tokens[token].vectors if token in got.tokens else {}
        if vectors.keys() != learned.vectors.keys() or not all(
            torch.equal(vectors[encoder], tensor) for encoder, tensor in learned.vectors.items()
        ):
            raise UserError(f"the token '{token}' did not come back from the file as written")


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_meta or bool(torch.isfinite(tensor).all())
