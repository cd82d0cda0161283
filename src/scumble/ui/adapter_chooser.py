"""Choosing adapters, with a slider for the strength of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scumble.errors import UserError
from scumble.ui.shelf import Shelf

MAX_CHOSEN = 6
LIMIT = 2.0
"""Largest strength on a slider, and with a minus the smallest."""


@dataclass(frozen=True)
class AdapterChooser:
    """A list to choose from and as many sliders as are chosen.

    Args:
        shelf: that has the adapters.
        chosen: the list; its values are names on the shelf, or paths that were typed.
        sliders: `MAX_CHOSEN` of them, those in use visible.
    """

    shelf: Shelf
    chosen: Any
    sliders: tuple[Any, ...]

    @classmethod
    def build(cls, shelf: Shelf, label: str, *, typed: bool = True) -> "AdapterChooser":
        """Put the widgets on the page.

        Args:
            shelf: that has the adapters.
            label: over the list.
            typed: let visitors type places as well.
        """
        import gradio

        chosen = gradio.Dropdown(
            [],
            multiselect=True,
            max_choices=MAX_CHOSEN,
            allow_custom_value=typed,
            label=label,
            info="Found in the page's folders. A path or Hub id may be typed." if typed else None,
        )
        sliders = tuple(
            gradio.Slider(
                -LIMIT, LIMIT, 1.0, step=0.05, label=f"Strength {number + 1}", visible=False
            )
            for number in range(MAX_CHOSEN)
        )
        chooser = cls(shelf, chosen, sliders)
        chosen.change(chooser.sliders_for, chosen, list(sliders), show_progress="hidden")
        return chooser

    @property
    def widgets(self) -> list[Any]:
        """The inputs that `read` understands."""
        return [self.chosen, *self.sliders]

    def sliders_for(self, chosen: Sequence[str]) -> list[Any]:
        """Show a slider for each chosen adapter, under its name."""
        import gradio

        # Labels are plain text; what stands below them would be taken for Markdown.
        said = {
            entry.name: f", called by: {entry.trigger}"
            for entry in self.shelf.look()[0]
            if entry.trigger
        }
        shown = [
            gradio.Slider(visible=True, label=f"Strength of {name}{said.get(name, '')}")
            for name in chosen[:MAX_CHOSEN]
        ]
        return shown + [gradio.Slider(visible=False)] * (MAX_CHOSEN - len(shown))

    def keep_fresh(self, *, choose_first: bool = False) -> None:
        """Look for adapters when the page is opened, and whenever the tab is.

        Args:
            choose_first: begin with the first one chosen.
        """
        import gradio
        from gradio.context import Context

        def look() -> Any:
            return gradio.Dropdown(choices=self.shelf.names())

        def begin() -> Any:
            names = self.shelf.names()
            return gradio.Dropdown(choices=names, value=names[:1] if choose_first else [])

        options = {"show_progress": "hidden", "api_visibility": "private"}
        gradio.on(None, begin, None, self.chosen, **options)
        if isinstance(Context.block, gradio.Tab):
            Context.block.select(look, None, self.chosen, **options)

    def read(self, chosen: Sequence[str], *strengths: float) -> list[tuple[str, float]]:
        """Where the chosen adapters are, and how strongly each is to act.

        Raises:
            UserError: too many, or one that is outside of the page's folders.
        """
        if len(chosen) > MAX_CHOSEN:
            raise UserError(f"these are {len(chosen)} adapters", f"Choose {MAX_CHOSEN} at most.")
        return [
            (self.shelf.source(name), float(strength))
            for name, strength in zip(chosen, strengths, strict=False)
        ]
