"""The new word of a run: where its rows start, and what it may be called."""

from typing import Any

import torch
from torch import Tensor, nn

from scumble.adapters.tokens import attach_tokens, check_free
from scumble.config import TrainConfig, given
from scumble.data.templates import TEMPLATES
from scumble.errors import UserError
from scumble.families import Components, Family, text_encoders
from scumble.randomness import generator
from scumble.training.texts import report_long
from scumble.training.workshop import ADAPTER_NAME, Workshop


def check_words(config: TrainConfig, components: Components, family: Family) -> None:
    """Refuse a new word that is none, or a starting word that is not one word.

    Raises:
        UserError: naming the word, and what to use instead.
    """
    for name in text_encoders(family).values():
        tokenizer = components[name]
        ((word, count),) = new_words(config).items()
        if len(word.split()) != 1 or "," in word:
            raise UserError(
                f"--placeholder_token '{word}' is not one word",
                'Choose one without spaces and commas that is no word yet: "<pip>".',
            )
        check_free(tokenizer, "--placeholder_token", {word: count})
        room = tokenizer.model_max_length - 2
        if count > room // 2:
            raise UserError(
                f"--num_vectors {count} leaves no room for other words: a prompt has {room} tokens",
                "Two to four hold a lot; more than eight rarely help.",
            )
        initializer_id(config, tokenizer)


def new_words(config: TrainConfig) -> dict[str, int]:
    """The run's new word -> how many vectors it stands for; empty where none is learnt."""
    word = config.placeholder_token
    return {} if word is None else {word: given(config.num_vectors)}


def initializer_id(config: TrainConfig, tokenizer: Any) -> int:
    """The table's row that the new word starts from.

    Raises:
        UserError: the starting word is several tokens.
    """
    ids = tokenizer.encode(config.initializer_token, add_special_tokens=False)
    if len(ids) != 1:
        parts = " ".join(tokenizer.convert_ids_to_tokens(ids)) or "nothing"
        usual = ("dog", "person", "toy", "painting", "creature", "circle")
        known = [w for w in usual if len(tokenizer.encode(w, add_special_tokens=False)) == 1]
        raise UserError(
            f"--initializer_token '{config.initializer_token}' is not one token of the model, "
            f"but: {parts}",
            f"Choose one common word, such as {', '.join(known) or 'the name of its class'}.",
        )
    return int(ids[0])


def fresh_rows(workshop: Workshop) -> dict[str, dict[str, nn.Parameter]]:
    """Teach tokenizers and text encoders the new word, with rows that are still to be learnt.

    Returns:
        Text encoder's component name -> word -> its rows, shape (vectors, width).
    """
    config, components = workshop.config, workshop.components
    rows: dict[str, dict[str, nn.Parameter]] = {}
    ((word, count),) = new_words(config).items()
    for name, tokenizer_name in text_encoders(workshop.family).items():
        encoder, tokenizer = components[name], components[tokenizer_name]
        table = _table(encoder)
        start = table[initializer_id(config, tokenizer)].repeat(count, 1)
        noise = torch.randn(start.shape, generator=generator(config.seed, f"row init {name}"))
        # The first vector is the starting word itself; without noise the others would be its twins.
        noise[0] = 0
        start = start + config.row_init_noise * table.std() * noise
        rows[name] = attach_tokens(encoder, tokenizer, ADAPTER_NAME, {word: start})
    report_long(workshop.gathered.captions(), workshop.family, components, new_words(config))
    return rows


def table_norms(workshop: Workshop) -> dict[str, float]:
    """Text encoder's component name -> mean length of the rows of the model's own words."""
    return {
        name: float(_table(workshop.components[name]).norm(dim=-1).mean())
        for name in text_encoders(workshop.family)
    }


def _table(encoder: Any) -> Tensor:
    table: Tensor = encoder.get_input_embeddings().weight
    return table.detach().float().cpu()


def trigger_phrase(workshop: Workshop) -> str | None:
    """The words that call what was learnt, for the files that tell others."""
    config, prompt = workshop.config, workshop.config.instance_prompt
    # Where every picture has a caption of its own, a prompt for all was never learnt.
    learnt = workshop.gathered.train.captions()
    if config.placeholder_token is None:
        return prompt if prompt in learnt else None
    ready = TEMPLATES[config.learnable_property or "object"][0].format(config.placeholder_token)
    known = (phrase for phrase in (prompt, ready) if phrase in learnt)
    return next((phrase for phrase in known if phrase), config.placeholder_token)
