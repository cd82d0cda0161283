"""The left side of the Generate tab: what a visitor wants to be drawn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scumble.config import GenerateConfig
from scumble.errors import UserError
from scumble.ui.adapter_chooser import AdapterChooser
from scumble.ui.folders import Folders
from scumble.ui.shelf import Shelf
from scumble.ui.studio import MODES, PICTURES

FROM_ADAPTER = "the one that the adapter was trained on"
WHOLE = ("seed", "num_images", "num_inference_steps", "width", "height")
"""Settings that are whole numbers, which the browser may send as 3.0."""


@dataclass(frozen=True)
class Demo:
    """What a page shows that is the demo of one adapter.

    Args:
        base: the base model; visitors choose no other.
        prompts: that they may begin with.
        guidance_scale: to begin with.
    """

    base: str
    prompts: tuple[str, ...] = ()
    guidance_scale: float = 7.5


@dataclass(frozen=True)
class Wishes:
    """The widgets that say what to draw.

    Args:
        chooser: of adapters.
        mode: one of `MODES`.
        columns: strengths of the grid.
        prompt: one a line.
        base: its name, or `FROM_ADAPTER`; None where visitors cannot choose.
        others: field of `GenerateConfig` -> its widget.
    """

    chooser: AdapterChooser
    mode: Any
    columns: Any
    prompt: Any
    base: Any
    others: dict[str, Any]

    @property
    def widgets(self) -> set[Any]:
        """All inputs."""
        singles = [self.mode, self.columns, self.prompt, self.base]
        every = [*singles, *self.chooser.widgets, *self.others.values()]
        return {widget for widget in every if widget is not None}

    def config(
        self, values: Mapping[Any, Any], folders: Folders, demo: Demo | None
    ) -> GenerateConfig:
        """What a visitor wants.

        Args:
            values: widget -> its value.
            folders: of the page.
            demo: names the base, in a demo.

        Raises:
            UserError: a value that cannot be meant, or a place outside of the page's folders.
        """
        from scumble.inference.base_of import base_of

        adapters = self.chooser.read(*(values[widget] for widget in self.chooser.widgets))
        base = demo.base if demo else str(values[self.base] or FROM_ADAPTER).strip()
        if not demo and base != FROM_ADAPTER:
            base = folders.model(base)
        if base == FROM_ADAPTER and not adapters:
            raise UserError("there is neither an adapter nor a base", "Choose one of them.")
        if base == FROM_ADAPTER and (named := base_of(adapters[0][0])):
            folders.model(named)  # an adapter may name any place
        prompts = [line.strip() for line in str(values[self.prompt] or "").splitlines()]
        if not any(prompts):
            raise UserError("there is no prompt", "Say what to draw.")
        given = {name: values[widget] for name, widget in self.others.items()}
        own = {"width", "height"}  # 0 there means the base's own
        given = {n: v for n, v in given.items() if v is not None and (v or n not in own)}
        given |= {name: int(given[name]) for name in WHOLE if name in given}
        return GenerateConfig(
            prompt=tuple(prompt for prompt in prompts if prompt),
            adapter=tuple(f"{source}:{strength:g}" for source, strength in adapters),
            pretrained_model_name_or_path=None if base == FROM_ADAPTER else base,
            **given,
        )


def build_wishes(shelf: Shelf, demo: Demo | None) -> tuple[Wishes, Any, Any]:
    """Put the widgets on the page.

    Args:
        shelf: that has the adapters.
        demo: for a page that shows one adapter to visitors.

    Returns:
        The widgets, and the buttons to draw and to stop.
    """
    import gradio

    prompts = demo.prompts if demo else ()
    prompt = gradio.Textbox(
        prompts[0] if prompts else "",
        label="Prompt",
        info="Each line is a prompt of its own.",
        placeholder="a red circle, neon style",
        lines=2,
        max_lines=8,
        elem_id="prompt",
    )
    if len(prompts) > 1:
        gradio.Examples([[text] for text in prompts], prompt, label="Or one of these")
    chooser = AdapterChooser.build(shelf, "Adapters", typed=demo is None)
    mode = gradio.Radio(list(MODES), value=PICTURES, label="Draw", elem_id="mode")
    columns = gradio.Textbox(
        "0, 0.5, 1",
        label="Columns of the grid",
        info="What the strengths are multiplied by; rows are prompts and seeds.",
        visible=False,
        elem_id="columns",
    )
    with gradio.Row():
        draw = gradio.Button("Draw", variant="primary", elem_id="draw", scale=3)
        stop = gradio.Button("Stop", elem_id="stop_drawing", scale=1, min_width=80)
    with gradio.Row():
        seed = gradio.Number(0, label="Seed", precision=0, minimum=0, min_width=120, elem_id="seed")
        count = gradio.Slider(1, 8, 1, step=1, label="Pictures each", min_width=160)
    with gradio.Accordion("Base model, steps, size and more", open=False, elem_id="more"):
        base = None if demo else _base()
        others = _others(demo)
    others |= {"seed": seed, "num_images": count}
    return Wishes(chooser, mode, columns, prompt, base, others), draw, stop


def _base() -> Any:
    import gradio

    from scumble.families.locate import BUILT_IN

    return gradio.Dropdown(
        [FROM_ADAPTER, *BUILT_IN],
        value=FROM_ADAPTER,
        allow_custom_value=True,
        label="Base model",
        info="A place in the page's folders, or a Hub id, may be typed.",
        elem_id="base",
    )


def _others(demo: Demo | None) -> dict[str, Any]:
    """Widgets of settings that are seldom changed."""
    import gradio

    negative = gradio.Textbox(label="Negative prompt", placeholder="what to steer away from")
    guided = demo.guidance_scale if demo else 7.5
    steps = gradio.Slider(1, 60, 25, step=1, label="Steps", elem_id="steps")
    guidance = gradio.Slider(1, 20, guided, step=0.5, label="Guidance", elem_id="guidance")
    with gradio.Row():
        size = {
            name: gradio.Number(
                0,
                label=f"{name.capitalize()} in pixels",
                info="0 is the base's own",
                precision=0,
                min_width=120,
            )
            for name in ("width", "height")
        }
    return {
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        **size,
    }
