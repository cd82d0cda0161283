"""The model card: a README.md whose header tells every program which base the adapter needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from scumble.formats.files import WEIGHT_NAME

CARD_NAME = "README.md"

TAGS = (
    "text-to-image",
    "diffusers",
    "stable-diffusion",
    "stable-diffusion-diffusers",
)

TYPE_NAMES = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}
"""Adapter type -> its name in a sentence."""

READ_BY_DIFFUSERS = ("lora", "dora")
"""Adapter types that diffusers loads; for others scumble puts the file on its pipeline."""

LORA_TAGS = ("lora", "template:sd-lora")
OTHER_TAGS = ("lycoris",)
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
        licence: what the base's own card says of its licence, by header key; nothing is asserted
            where it says nothing.
        dataset: Hub id of the data set, if it was one.
        scores: what was measured, in words -> how much.
        adapter_type: of the adapter.
        example: a prompt, where no sample picture has one.
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
    licence: Mapping[str, str] = field(default_factory=dict)
    dataset: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    adapter_type: str = "lora"
    example: str = "a picture"

    @property
    def is_lora(self) -> bool:
        """Whether there is an adapter that diffusers loads."""
        return self.adapter is not None and self.adapter_type in READ_BY_DIFFUSERS

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.model:
            return "A fine-tuned model, made from"
        adapter = TYPE_NAMES.get(self.adapter_type, self.adapter_type)
        if self.words and self.adapter:
            return f"A learned word and a {adapter} adapter for"
        return "A learned word for" if self.words else f"A {adapter} adapter for"


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
        "tags": [*TAGS, *_tags(facts)],
        **facts.licence,
    }
    if facts.dataset:
        header["datasets"] = [facts.dataset]
    if facts.instance_prompt:
        header["instance_prompt"] = facts.instance_prompt
    shown = list(zip(facts.prompts, facts.images, strict=False))
    if shown:
        header["widget"] = [{"text": text, "output": {"url": url}} for text, url in shown]
    template = (files("scumble.hub") / "model_card.md").read_text("utf-8")
    base, on_hub = facts.base_model, "/" in facts.base_model
    data = f"[{facts.dataset}](https://huggingface.co/datasets/{facts.dataset})"
    settings = [f"| `{flag}` | `{_cell(value)}` |" for flag, value in facts.settings.items()]
    scores = "; ".join(f"{what}: {value:.5g}" for what, value in facts.scores.items())
    body = template.format(
        name=facts.name,
        kind=facts.kind,
        base_link=f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{base}`",
        base_path=facts.model or (base if on_hub else f"path/to/{base}"),
        flag="--pretrained_model_name_or_path model" if facts.model else "--adapter .",
        load=_load_lines(facts),
        imports="" if facts.is_lora or not facts.adapter else "import scumble\n",
        images="\n".join(f"![{_cell(text)}](./{url})" for text, url in shown),
        settings="\n".join(settings),
        parameters=f"{facts.parameters:,}",
        steps=facts.steps,
        pictures=f"{facts.pictures} pictures" + (f" of {data}" if facts.dataset else ""),
        elsewhere=_elsewhere(facts),
        scores=f"{scores[0].upper()}{scores[1:]}.\n\n" if scores else "",
        prompt=facts.prompts[0] if facts.prompts else _cell(facts.example),
        versions=", ".join(f"{name} {number}" for name, number in facts.versions.items()),
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _tags(facts: CardFacts) -> list[str]:
    adapter = LORA_TAGS if facts.is_lora else OTHER_TAGS
    return [*adapter * bool(facts.adapter), *WORD_TAGS * bool(facts.words)]


def _load_lines(facts: CardFacts) -> str:
    """How the files come on top of a pipeline of diffusers."""
    lines = []
    if facts.is_lora:
        lines.append(f'pipe.load_lora_weights(".", weight_name="{facts.adapter}")')
    elif facts.adapter:
        lines.append('scumble.load_adapter(pipe, ".")  # diffusers itself does not read this type')
    if facts.words:
        lines.append(f'pipe.load_textual_inversion(".", weight_name="{facts.words}")')
    return "".join(f"{line}\n" for line in lines)


def _elsewhere(facts: CardFacts) -> str:
    """How programs with a menu of adapters get at it."""
    if facts.model:
        return ""
    lines = ["With A1111, Forge or ComfyUI, on the same base:", ""]
    if facts.adapter:
        file = f"{facts.name}.safetensors"
        lines += [
            "```bash",
            f'scumble convert {facts.adapter} --format kohya --output "{file}"',
            "```",
            "",
            f"Put `{file}` into `models/Lora` (ComfyUI: `models/loras`, and a Load LoRA node), and "
            f"write `<lora:{facts.name}:1>` into the prompt.",
        ]
    if facts.words:
        lines.append(
            f"Put `{facts.words}` into `embeddings` under the name by which you call it in prompts."
        )
    return "\n".join(lines) + "\n\n"


def header_of(card: Path) -> dict[str, Any]:
    """The header of a card, which may be anybody's; empty where there is none to be read.

    Its values may be of any kind: only words and numbers should be shown, as the same list may
    stand in itself a billion times.
    """
    import yaml

    try:
        parts = card.read_text("utf-8", errors="replace").split("---", 2)
        header = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return header if isinstance(header, dict) else {}


def card_for_hub(text: str, repo_id: str) -> str:
    """A run's card with snippets that take the files from the Hub instead of from its folder."""
    places = {
        "generate --adapter . ": f"generate --adapter {repo_id} ",
        '("."': f'("{repo_id}"',
        '(pipe, ".")': f'(pipe, "{repo_id}")',
        "generate --pretrained_model_name_or_path model ": "generate "
        f"--pretrained_model_name_or_path {repo_id} ",
        'from_pretrained("model"': f'from_pretrained("{repo_id}"',
        f"scumble convert {WEIGHT_NAME} ": f"scumble convert {repo_id}:{WEIGHT_NAME} ",
    }
    for here, there in places.items():
        text = text.replace(here, there)
    return text


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return " ".join(str(value).split()).replace("|", "\\|")
