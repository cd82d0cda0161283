"""How the page looks: quiet colours, the system's own fonts, room for a thumb on a phone."""

from typing import Any

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#title h1 { font-weight: 650; letter-spacing: -0.02em; margin: 0; }
#title p { opacity: 0.7; margin: 0.15rem 0 0; }
"""


def options() -> dict[str, Any]:
    """Theme and style sheet, as arguments of `gradio.Blocks.launch`."""
    import gradio

    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    theme = gradio.themes.Default(
        primary_hue="orange",
        neutral_hue="stone",
        font=fonts,
        font_mono=mono,
        radius_size="md",
    )
    return {"theme": theme, "css": CSS}
