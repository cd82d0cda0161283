"""Learned tokens (textual inversion, arXiv:2208.01618): new rows behind a frozen table of words.

Shape suffixes: B batch, L tokens, D width, N new ids, V vectors of one token.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from scumble.adapters.layer import expect_wrapper, hide_wrapper
from scumble.errors import UserError


@dataclass(frozen=True)
class _Entry:
    """Whose token it is, how it is called, and the ids that stand for its vectors."""

    name: str
    token: str
    ids: tuple[int, ...]


class TokenRows(nn.Module):
    """A frozen table of input embeddings with named groups of new rows.

    The table is the very object that was in the encoder: taking the wrapper off puts it back. The
    rows are fp32 masters, and stay that in whatever dtype the encoder is put: casting a model
    casts the table, and the forward pass casts the rows to it.

    Args:
        base: the table to wrap.
    """

    ids: Tensor

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self.base = base
        # Behind the table: transformers takes an encoder's first parameter for its dtype.
        self.rows = nn.ParameterList()
        self.entries: list[_Entry] = []
        self.register_buffer("ids", self._all_ids(), persistent=False)
        self.tokenizer: Any = None
        """Kept for whoever attached the first tokens to a copy: what to put back after the last."""
        self.register_state_dict_post_hook(hide_wrapper)
        self.register_load_state_dict_pre_hook(expect_wrapper)

    @property
    def weight(self) -> Tensor:
        """The wrapped table, for code that inspects it."""
        return self.base.weight

    @property
    def names(self) -> list[str]:
        """Names of the groups, in the order they were added."""
        return list(dict.fromkeys(entry.name for entry in self.entries))

    def group(self, name: str) -> dict[str, nn.Parameter]:
        """Token -> its rows (V, D), of one group."""
        return {
            entry.token: cast(nn.Parameter, rows)
            for entry, rows in zip(self.entries, self.rows, strict=True)
            if entry.name == name
        }

    def add(self, name: str, token: str, ids: Sequence[int], vectors_VD: Tensor) -> nn.Parameter:
        """Give new ids their rows.

        Args:
            name: the group's name.
            token: that stands for all of the vectors.
            ids: one for each vector.
            vectors_VD: start values; copied.
        """
        device = self.base.weight.device
        rows = nn.Parameter(vectors_VD.detach().to(device, torch.float32, copy=True))
        self.entries.append(_Entry(name, token, tuple(ids)))
        self.rows.append(rows)
        self.ids = self._all_ids()
        return rows

    def remove(self, name: str) -> None:
        """Take one group off again; the others keep their ids."""
        pairs = zip(self.entries, self.rows, strict=True)
        kept = [(entry, rows) for entry, rows in pairs if entry.name != name]
        self.entries = [entry for entry, _ in kept]
        self.rows = nn.ParameterList(rows for _, rows in kept)
        self.ids = self._all_ids()

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Look ids up: the known ones in the frozen table, the new ones in the rows."""
        matches_BLN = ids_BL[..., None] == self.ids
        is_new_BL = matches_BLN.any(-1)
        known_BLD: Tensor = self.base(ids_BL.masked_fill(is_new_BL, 0))
        rows_ND = torch.cat(list(self.rows)).to(known_BLD.dtype)
        new_BLD = nn.functional.embedding(matches_BLN.byte().argmax(-1), rows_ND)
        return torch.where(is_new_BL[..., None], new_BLD, known_BLD)

    def _all_ids(self) -> Tensor:
        ids = [number for entry in self.entries for number in entry.ids]
        return torch.tensor(ids, dtype=torch.long, device=self.base.weight.device)

    def _apply(self, fn: Any, recurse: bool = True) -> "TokenRows":
        """Move with the table, but never change the rows' dtype: half precision would round them.

        `fn` is what torch does to every tensor of a model that is moved or cast.
        """
        self.base._apply(fn, recurse)
        device = self.base.weight.device
        for rows in self.rows:
            rows.data = rows.data.to(device)
            if rows.grad is not None:
                rows.grad.data = rows.grad.data.to(device)
        self.ids = self.ids.to(device)
        return self


def token_strings(token: str, count: int) -> list[str]:
    """What the vectors of a token are called in a tokenizer, as diffusers calls them.

    Args:
        token: such as "<thing>".
        count: of vectors.

    Returns:
        "<thing>", "<thing>_1", "<thing>_2" ...
    """
    return [token, *(f"{token}_{number}" for number in range(1, count))]


def expand(prompt: str, tokens: Mapping[str, int]) -> str:
    """Put all strings of a token where a prompt has the token, exactly as diffusers' pipelines do.

    Once, on the prompt as the user wrote it: like theirs, it is not idempotent. What a pipeline
    gets must not be expanded before, because the pipeline does it.

    Args:
        prompt: that may contain tokens.
        tokens: token -> how many vectors it has.
    """
    all_strings = [s for token, count in tokens.items() for s in token_strings(token, count)]
    longest_first = sorted(all_strings, key=len, reverse=True)
    found = set(re.findall("|".join(map(re.escape, longest_first)), prompt)) if tokens else set()
    for token in sorted(found & tokens.keys(), key=len, reverse=True):
        prompt = prompt.replace(token, " ".join(token_strings(token, tokens[token])))
    return prompt


def attach_tokens(
    encoder: Any, tokenizer: Any, name: str, tokens: Mapping[str, Tensor]
) -> dict[str, nn.Parameter]:
    """Teach a tokenizer new tokens and give its encoder their rows; all of them or none.

    Args:
        encoder: a text encoder of transformers.
        tokenizer: its tokenizer; it is changed.
        name: the group's name, free on this encoder.
        tokens: token -> start values (V, D).

    Returns:
        Token -> its rows, which are trainable.

    Raises:
        UserError: the name is taken, the tokenizer has such a token already, or the vectors are
            for another encoder.
    """
    table = encoder.get_input_embeddings()
    wrapped = table if isinstance(table, TokenRows) else TokenRows(table)
    if name in wrapped.names:
        raise UserError(f"tokens named '{name}' are already loaded", "Give them another name.")
    width = wrapped.weight.shape[-1]
    for token, vectors in tokens.items():
        if vectors.ndim != 2 or not len(vectors) or vectors.shape[-1] != width:
            raise UserError(
                f"'{token}' has vectors of shape {tuple(vectors.shape)}, the text encoder of this "
                f"base needs (any, {width})",
                "It was learned on another base model. Nothing was loaded.",
            )
    counts = {token: len(vectors) for token, vectors in tokens.items()}
    check_free(tokenizer, name, counts, wrapped)
    strings = {token: token_strings(token, count) for token, count in counts.items()}
    tokenizer.add_tokens([string for group in strings.values() for string in group])
    if wrapped is not table:
        wrapped.train(table.training)
        encoder.set_input_embeddings(wrapped)
    return {
        token: wrapped.add(name, token, tokenizer.convert_tokens_to_ids(group), tokens[token])
        for token, group in strings.items()
    }


def detach_tokens(encoder: Any, name: str) -> None:
    """Take a group of rows off; after the last, the encoder has its own table again.

    The tokenizer cannot forget: work on a copy of it where it should.

    Args:
        encoder: that may carry the group.
        name: the group's name.
    """
    table = encoder.get_input_embeddings()
    if isinstance(table, TokenRows):
        table.remove(name)
        if not table.entries:
            encoder.set_input_embeddings(table.base)


def check_free(
    tokenizer: Any, name: str, counts: Mapping[str, int], rows: TokenRows | None = None
) -> None:
    """Refuse tokens that a prompt could not tell from what the tokenizer knows already.

    Args:
        tokenizer: that is to learn them.
        name: of the group.
        counts: token -> how many vectors it has.
        rows: learned before.

    Raises:
        UserError: naming the token, and what it would be taken for.
    """
    vocabulary = set(tokenizer.get_vocab())
    entries = [] if rows is None else rows.entries
    owners = {entry.token: entry.name for entry in entries}
    strings = [string for token, n in counts.items() for string in token_strings(token, n)]
    for token, count in counts.items():
        if not token.strip() or token != token.strip():
            raise UserError(f"'{token}' is no token", "It is empty, or has blanks at an end.")
        if token in owners:
            raise UserError(
                f"'{token}' comes with both '{owners[token]}' and '{name}'",
                "Use one of them at a time.",
            )
        for string in token_strings(token, count):
            if strings.count(string) > 1 or _is_known(tokenizer, string, vocabulary):
                raise UserError(
                    f"the tokenizer knows '{string}' already",
                    "A learned token needs a string of its own, such as <my-thing>.",
                )
        pieces = tokenizer.tokenize(token)
        if count > 1 and token != token.lower() and pieces == tokenizer.tokenize(token.lower()):
            raise UserError(
                f"'{token}' has several vectors and capital letters",
                "The tokenizer makes them small, and a prompt would get the first vector alone. "
                "Rename it in small letters.",
            )
    known = {entry.token: len(entry.ids) for entry in entries}
    _check_numbering({**known, **counts}, vocabulary | set(strings))


def _is_known(tokenizer: Any, string: str, vocabulary: Collection[str]) -> bool:
    """Whether a tokenizer has a string as one whole token, in small letters if it makes them so."""
    pieces = tokenizer.tokenize(string)
    whole = len(pieces) == 1 and pieces[0].removesuffix("</w>").lower() == string.lower()
    return whole or string in vocabulary


def _check_numbering(counts: Mapping[str, int], strings: Collection[str]) -> None:
    """Refuse what a prompt would take for one more vector of another token."""
    for token, count in counts.items():
        if f"{token}_{count}" in strings:
            raise UserError(
                f"'{token}_{count}' would count as a vector of '{token}'",
                "The two cannot be used together.",
            )
