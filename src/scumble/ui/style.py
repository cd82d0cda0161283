"""How the page looks: quiet colours, the system's own fonts, room for a thumb on a phone."""

from typing import Any

TITLE = """
<header id="title">
  <svg viewBox="0 0 48 48" width="40" height="40" aria-hidden="true">
    <rect width="48" height="48" rx="11" fill="#f97316"/>
    <path d="M9 31c7-13 13-13 16-6s8 6 14-8" fill="none" stroke="#fff" stroke-width="6"
      stroke-linecap="round"/>
    <path d="M9 38c8-8 14-7 18-3s8 3 12-4" fill="none" stroke="#fff" stroke-opacity=".55"
      stroke-width="4" stroke-linecap="round"/>
  </svg>
  <div><h1>scumble</h1><p>Teach Stable Diffusion from your own pictures.</p></div>
</header>
"""

CSS = """
.gradio-container { width: 100% !important; max-width: 1240px !important;
  margin: 0 auto !important; }
#title { display: flex; align-items: center; gap: .8rem; padding: .3rem 0 .1rem; }
#title h1 { font-size: 1.5rem; font-weight: 680; letter-spacing: -.02em; margin: 0;
  line-height: 1.15; }
#title p { color: var(--body-text-color-subdued); margin: 0; }
.step { display: flex; align-items: center; gap: .55rem; font-size: 1.05rem; font-weight: 620;
  margin: .7rem 0 .1rem; }
.step i { font-style: normal; font-size: .85rem; width: 1.55rem; height: 1.55rem;
  border-radius: 50%; display: grid; place-items: center; color: #fff;
  background: #c2410c; }

/* Forms: two columns where there is room; what a field is for stands below its name. */
.fields .form { display: grid !important;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 255px), 1fr));
  background: var(--block-background-fill) !important; }
#field-pretrained_model_name_or_path { grid-column: 1 / -1; }
.gradio-container .html-container { padding: 0; }
#samples .grid-wrap, #drawn .grid-wrap { height: auto; min-height: 0; max-height: none; }
#drawn .grid-container {
  grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important; }
#samples .grid-container { grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)) !important; }
.wrong { outline: 2px solid #dc2626; outline-offset: -2px; }
#answer:not(:empty) { padding: .2rem .1rem; }
.check { border: 1px solid var(--border-color-primary); border-left: 5px solid #16a34a;
  border-radius: 8px; padding: .6rem .8rem; font-size: .9rem; }
.check.note { border-left-color: #d97706; }
.check.danger { border-left-color: #dc2626; }
.check table { border-collapse: collapse; margin-top: .3rem; width: 100%; }
.check th, .check td { text-align: left; vertical-align: top; padding: .12rem .7rem .12rem 0; }
.check tr.ok th { color: #15803d; }
.check tr.note th { color: #b45309; }
.check tr.danger { color: #b91c1c; font-weight: 600; }
.dark .check tr.ok th { color: #4ade80; }
.dark .check tr.note th { color: #fbbf24; }
.dark .check tr.danger { color: #fca5a5; }

/* Pictures and captions. */
#upload { border: 2px dashed var(--border-color-primary) !important; }
.thumb { width: 84px; height: 84px; object-fit: cover; border-radius: 8px; display: block; }
.thumb.broken { font-size: .7rem; overflow: hidden; border: 1px dashed currentColor;
  padding: .3rem; }
.picture-row { flex-wrap: nowrap !important; align-items: center !important; gap: .7rem; }
.picture-row .picture { flex: 0 0 84px; min-width: 84px !important; }
.findings { margin: 0; padding: .5rem .9rem .5rem 1.7rem; border-radius: 8px; list-style: disc;
  background: var(--background-fill-secondary); font-size: .9rem; }
.findings.alert { color: #b91c1c; background: #fef2f2; }
.dark .findings.alert { color: #fecaca; background: #450a0a; }
#pager { align-items: center; }
#place { text-align: center; }

/* The run. */
@media (min-width: 900px) { #run-column { position: sticky; top: .8rem; align-self: flex-start; } }
.run { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: .9rem 1rem;
  background: var(--background-fill-primary); }
.run.empty, .curve.empty { color: var(--body-text-color-subdued); text-align: center;
  padding: 1.6rem 1rem; }
.run-head { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; }
.run-head strong { font-size: 1.05rem; }
.run-head span:last-child { color: var(--body-text-color-subdued); }
.badge { border-radius: 99px; padding: .1rem .65rem; font-size: .82rem; font-weight: 600;
  background: #e7e5e4; color: #44403c; }
.badge.running, .badge.starting, .badge.stopping { background: #ffedd5; color: #9a3412; }
.badge.finished { background: #dcfce7; color: #166534; }
.badge.failed, .badge.interrupted { background: #fee2e2; color: #991b1b; }
.bar { height: 8px; border-radius: 99px; background: var(--background-fill-secondary);
  overflow: hidden; margin: .75rem 0 .7rem; }
.bar i { display: block; height: 100%; border-radius: 99px; transition: width .8s linear;
  background: linear-gradient(90deg, #fb923c, #ea580c); }
.run dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(92px, 1fr)); gap: .5rem;
  margin: 0; }
.run dt { font-size: .75rem; color: var(--body-text-color-subdued); }
.run dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
pre.alert, pre.output { white-space: pre-wrap; overflow-wrap: anywhere; margin: .7rem 0 0;
  font-size: .82rem; }
pre.alert { color: #b91c1c; }
.dark pre.alert { color: #fca5a5; }
pre.output { max-height: 320px; overflow: auto; margin: 0; }
svg.curve { width: 100%; height: auto; display: block; border-radius: 10px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary); }
.curve.empty { border: 1px dashed var(--border-color-primary); border-radius: 10px; }
svg.curve line { stroke: var(--border-color-primary); stroke-width: 1; }
svg.curve text { font-size: 11px; fill: var(--body-text-color-subdued); }
svg.curve polyline { fill: none; stroke: #f97316; stroke-linejoin: round; }
svg.curve .raw { stroke-opacity: .3; stroke-width: 1.2; }
svg.curve .mean { stroke-width: 2.4; }
"""


def heading(number: int, text: str) -> str:
    """The heading of a step of the work."""
    return f'<h2 class="step"><i>{number}</i>{text}</h2>'


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
