"""What a merge says of itself, and the learned words that it brings along."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from scumble.errors import UserError
from scumble.families import BaseModel
from scumble.families.fingerprint import FINGERPRINT
from scumble.formats import LearnedToken
from scumble.hub.licence import licence_of
from scumble.tools.combine import Recipe
from scumble.tools.notes import PHRASES
from scumble.tools.sources import Loaded

AGREED = (
    *("base_model", FINGERPRINT, "ss_base_model_version", "ss_v2", "ss_sd_model_name"),
    *("modelspec.architecture", "modelspec.prediction_type", "modelspec.resolution"),
)
"""What a merge says of its base, where all sources say the same."""


def tokens_of(sources: Sequence[Loaded]) -> dict[str, LearnedToken]:
    """The learned words of all sources.

    Raises:
        UserError: two sources taught one word.
    """
    tokens: dict[str, LearnedToken] = {}
    owners: dict[str, str] = {}
    for source in sources:
        for token, learned in source.weights.tokens.items():
            if token in tokens:
                raise UserError(
                    f"both {owners[token]} and {source.name} bring the learned word '{token}'",
                    "One file can hold it once: give it another name in one of them.",
                )
            tokens[token], owners[token] = learned, source.name
    return tokens


def merged_from(sources: Sequence[Loaded], recipe: Recipe) -> str:
    """What a merge was made of, as JSON for its metadata: names of files, never their folders."""
    how = {} if recipe.method == "sum" else asdict(recipe)
    return json.dumps([_described(source) | how for source in sources])


def merged_card(name: str, base: BaseModel, sources: Sequence[Loaded]) -> str:
    """The card of a base that adapters were merged into: it is no longer what the base's card says.

    Args:
        name: of the new base.
        base: that it was.
        sources: what was merged into it.
    """
    import yaml

    header = {
        "base_model": base.public_name,
        "base_model_relation": "merge",
        "library_name": "diffusers",
        "tags": ["text-to-image", "diffusers", "merge"],
        **licence_of(base),
    }
    rows = [f"| `{source.name}` | {source.strength:g} | {_phrase(source)} |" for source in sources]
    lines = [
        f"# {name}",
        "",
        f"{base.public_name} with adapters merged into its weights:",
        "",
        "| adapter | strength | trigger words |",
        "|---|---|---|",
        *rows,
    ]
    front = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n".join(lines) + "\n"


def merged_metadata(
    sources: Sequence[Loaded], recipe: Recipe, *, allow_other_base: bool = False
) -> dict[str, str]:
    """What a merge may say of itself: what it was made of, and what its sources agree on.

    Args:
        sources: all of them.
        recipe: how they are combined.
        allow_other_base: they may be made for different bases.

    Raises:
        UserError: they are made for different bases, naming both.
    """
    metadata = {"merged_from": merged_from(sources, recipe)}
    for source in sources[1:] if not allow_other_base else ():
        _require_one_base(sources[0], source)
    for key in AGREED:
        values = [source.weights.metadata.get(key) for source in sources]
        if (first := values[0]) and set(values) == {first}:
            metadata[key] = first
    phrases = [_phrase(source) for source in sources]
    if joined := ", ".join(dict.fromkeys(phrase for phrase in phrases if phrase)):
        metadata["trigger_phrase"] = joined
    words = {s.weights.metadata.get("initializer_token", "") for s in sources if s.weights.tokens}
    if len(words) == 1 and "" not in words:
        metadata["initializer_token"] = words.pop()
    return metadata


def _phrase(source: Loaded) -> str:
    return next((p for key in PHRASES if (p := source.weights.metadata.get(key))), "")


def _described(source: Loaded) -> dict[str, object]:
    described: dict[str, object] = {"name": source.name, "strength": source.strength}
    factors = [dict(group) for group in source.factors if group]
    return described | ({"factors": factors} if factors else {})


def _require_one_base(first: Loaded, other: Loaded) -> None:
    for key in (FINGERPRINT, "base_model"):
        one, two = first.weights.metadata.get(key), other.weights.metadata.get(key)
        if one and one == two:
            return
        if one and two:
            named = [s.weights.metadata.get("base_model", "another") for s in (first, other)]
            raise UserError(
                f"{first.name} was trained on {named[0]}, {other.name} on {named[1]}"
                + (", whose weights differ" if key == FINGERPRINT else ""),
                "Their sum may draw badly on either. To merge them all the same: "
                "--allow_other_base.",
            )
