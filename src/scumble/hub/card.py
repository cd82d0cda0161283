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
)

LORA_TAGS = ("lora", "template:sd-lora")
WORD_TAGS = ("textual_inversion",)


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
        adapter: file name of the adapter, if there is one.
        words: file name of a learned word's vectors, if there is one.
        model: folder of a whole model, if one was taught.
        instance_prompt: the words that call what was learnt, if there are such.
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
    adapter: str | None = None
    words: str | None = None
    model: str | None = None
    instance_prompt: str | None = None

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.model:
            return "A fine-tuned model, made from"
        if self.words and self.adapter:
            return "A learned word and a LoRA adapter for"
        return "A learned word for" if self.words else "A LoRA adapter for"


def render_card(facts: CardFacts) -> str:
    """Fill the card's template.

    Returns:
        Markdown with a YAML header that huggingface_hub's ModelCard reads.
    """
    import yaml

    header: dict[str, Any] = {
        "base_model": facts.base_model,
        "base_model_relation": "finetune" if facts.model else "adapter",
        "library_name": "diffusers",
        "tags": [*TAGS, *LORA_TAGS * bool(facts.adapter), *WORD_TAGS * bool(facts.words)],
    }
    if facts.instance_prompt:
        header["instance_prompt"] = facts.instance_prompt
    shown = list(zip(facts.prompts, facts.images, strict=False))
    if shown:
        header["widget"] = [{"text": text, "output": {"url": url}} for text, url in shown]
    template = (files("scumble.hub") / "model_card.md").read_text("utf-8")
    base, on_hub = facts.base_model, "/" in facts.base_model
    settings = [f"| `{flag}` | `{_cell(value)}` |" for flag, value in facts.settings.items()]
    body = template.format(
        name=facts.name,
        kind=facts.kind,
        base_link=f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{base}`",
        base_path=facts.model or (base if on_hub else f"path/to/{base}"),
        flag="--pretrained_model_name_or_path model" if facts.model else "--adapter .",
        load=_load_lines(facts),
        images="\n".join(f"![{_cell(text)}](./{url})" for text, url in shown),
        settings="\n".join(settings),
        parameters=f"{facts.parameters:,}",
        steps=facts.steps,
        pictures=facts.pictures,
        prompt=facts.prompts[0] if facts.prompts else "a picture",
        versions=", ".join(f"{name} {number}" for name, number in facts.versions.items()),
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _load_lines(facts: CardFacts) -> str:
    """How diffusers puts the files on top of the pipeline."""
    lines = []
    if facts.adapter:
        lines.append(f'pipe.load_lora_weights(".", weight_name="{facts.adapter}")')
    if facts.words:
        lines.append(f'pipe.load_textual_inversion("{facts.words}")')
    return "".join(f"{line}\n" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return " ".join(str(value).split()).replace("|", "\\|")
