"""The model card: a README.md whose header tells every program which base the adapter needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

TAGS = (
    "text-to-image",
    "diffusers",
    "stable-diffusion",
    "stable-diffusion-diffusers",
    "lora",
    "template:sd-lora",
)


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Args:
        name: title of the card.
        base_model: the base, by a name that may be shared.
        prompts: of the sample pictures.
        images: file names of the sample pictures, in the order of the prompts.
        settings: the settings worth knowing, by flag.
        parameters: how many numbers were trained.
        steps: optimizer steps taken.
        pictures: how many pictures were taught.
        versions: of the software.
        instance_prompt: the words that call the subject, if there are such.
    """

    name: str
    base_model: str
    prompts: Sequence[str]
    images: Sequence[str]
    settings: Mapping[str, Any]
    parameters: int
    steps: int
    pictures: int
    versions: Mapping[str, str]
    instance_prompt: str | None = None


def render_card(facts: CardFacts) -> str:
    """Fill the card's template.

    Returns:
        Markdown with a YAML header that huggingface_hub's ModelCard reads.
    """
    import yaml

    header: dict[str, Any] = {
        "base_model": facts.base_model,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "tags": list(TAGS),
    }
    if facts.instance_prompt:
        header["instance_prompt"] = facts.instance_prompt
    shown = list(zip(facts.prompts, facts.images, strict=False))
    if shown:
        header["widget"] = [{"text": text, "output": {"url": url}} for text, url in shown]
    template = (files("scumble.hub") / "model_card.md").read_text("utf-8")
    base, on_hub = facts.base_model, "/" in facts.base_model
    settings = [f"| `{flag}` | {_cell(value)} |" for flag, value in facts.settings.items()]
    body = template.format(
        name=facts.name,
        base_link=f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{base}`",
        base_path=base if on_hub else f"path/to/{base}",
        images="\n".join(f"![{_cell(text)}](./{url})" for text, url in shown),
        settings="\n".join(settings),
        parameters=f"{facts.parameters:,}",
        steps=facts.steps,
        pictures=facts.pictures,
        prompt=facts.prompts[0] if facts.prompts else "a picture",
        versions=", ".join(f"{name} {number}" for name, number in facts.versions.items()),
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
