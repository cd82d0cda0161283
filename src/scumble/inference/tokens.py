"""Learned tokens on a diffusers pipeline: on, off, and out of its prompts again.

The pipeline gets a copy of its tokenizer, so that taking the tokens off leaves no trace.
"""

import copy
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from scumble.adapters.tokens import TokenRows, attach_tokens, detach_tokens
from scumble.errors import UserError
from scumble.families import Family, text_encoders
from scumble.formats import AdapterWeights, LearnedToken


def loaded_tokens(pipeline: Any, family: Family) -> list[str]:
    """Names of the adapters that brought the pipeline tokens, in the order they came."""
    tables = (_rows(getattr(pipeline, component, None)) for component in text_encoders(family))
    return list(dict.fromkeys(name for rows in tables if rows for name in rows.names))


def load_tokens(
    pipeline: Any, family: Family, name: str, tokens: Mapping[str, LearnedToken]
) -> None:
    """Teach a pipeline learned tokens; all of them or none.

    Args:
        pipeline: a diffusers pipeline of the family.
        family: its family.
        name: the adapter's name.
        tokens: token -> its vectors.

    Raises:
        UserError: a token is taken, was made for another base, or for an encoder that lacks.
    """
    for token, entry in tokens.items():
        for component in entry.vectors:
            if getattr(pipeline, component, None) is None:
                raise UserError(
                    f"'{token}' has vectors for the {component}, which this pipeline lacks"
                )
    try:
        for component, tokenizer in text_encoders(family).items():
            added = {t: e.vectors[component] for t, e in tokens.items() if component in e.vectors}
            if added:
                _attach(pipeline, component, tokenizer, name, added)
    except UserError:
        unload_tokens(pipeline, family, {name})
        raise


def unload_tokens(pipeline: Any, family: Family, names: Collection[str]) -> None:
    """Take the tokens of adapters off; after the last, tokenizer and table are the very own ones.

    Args:
        pipeline: that may carry them.
        family: its family.
        names: of the adapters; those without tokens are left out.
    """
    for component, tokenizer in text_encoders(family).items():
        encoder = getattr(pipeline, component, None)
        rows = _rows(encoder)
        if rows is None or not set(names) & set(rows.names):
            continue
        kept = {name: rows.group(name) for name in rows.names if name not in names}
        for name in rows.names:
            detach_tokens(encoder, name)
        setattr(pipeline, tokenizer, rows.tokenizer)
        # Ids follow the order of loading: whoever stays moves up.
        for name, group in kept.items():
            _attach(pipeline, component, tokenizer, name, group)


def vector_counts(weights: AdapterWeights) -> dict[str, int]:
    """Token -> how many vectors it has."""
    return {
        token: max(len(vectors) for vectors in entry.vectors.values())
        for token, entry in weights.tokens.items()
    }


def describe(weights: AdapterWeights, prompts: Collection[str]) -> list[str]:
    """What somebody who draws with an adapter should know of its words, line by line.

    Args:
        weights: the adapter.
        prompts: what will be drawn, negative prompts included.
    """
    lines = [
        f'"{token}" is a learned token ({count} vector{"s" * (count > 1)})'
        for token, count in vector_counts(weights).items()
    ]
    if weights.metadata.get("initializer_token") and not weights.tokens:
        lines.append(
            "This file holds the adapter without the word that it was trained with: load the "
            "folder, or scumble_adapter.safetensors."
        )
    elif weights.metadata.get("trigger_phrase"):
        lines.append(f'trigger phrase: "{weights.metadata["trigger_phrase"]}"')
    text = "\n".join(prompts).lower()
    if weights.tokens and not any(token.lower() in text for token in weights.tokens):
        known = " or ".join(f'"{token}"' for token in weights.tokens)
        lines.append(f"No prompt contains {known}: what was learned there will not show.")
    return lines


def without_tokens(prompt: str, weights: AdapterWeights) -> str:
    """A prompt for the base, which does not know the tokens: their initializer stands for them.

    Args:
        prompt: that may contain tokens.
        weights: the adapter; where its metadata names no initializer, tokens stay plain text.
    """
    initializer = weights.metadata.get("initializer_token")
    return in_plain_words(prompt, weights.tokens, initializer) if initializer else prompt


def in_plain_words(prompt: str, tokens: Collection[str], initializer: str) -> str:
    """Put a plain word where a prompt has learned tokens."""
    if not tokens:
        return prompt
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in longest_first)
    return re.sub(pattern, lambda _: initializer, prompt, flags=re.IGNORECASE)


def _rows(encoder: Any) -> TokenRows | None:
    table = encoder.get_input_embeddings() if encoder is not None else None
    return table if isinstance(table, TokenRows) else None


def _attach(
    pipeline: Any, component: str, tokenizer: str, name: str, tokens: Mapping[str, Tensor]
) -> None:
    """Attach one group to one text encoder, on a copy of the tokenizer that is there."""
    encoder, present = getattr(pipeline, component), getattr(pipeline, tokenizer)
    fresh = copy.deepcopy(present)
    attach_tokens(encoder, fresh, name, tokens)
    rows = _rows(encoder)
    assert rows is not None
    if rows.names == [name]:
        rows.tokenizer = present
    setattr(pipeline, tokenizer, fresh)
