"""An inspection as a page for the terminal."""

import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from scumble.tools.table import counted, number, page, pairs, section, size, spread, table

if TYPE_CHECKING:
    from scumble.tools.inspect import InspectedModule, Inspection

STRONGEST = 10
BLOCK = re.compile(r"(.*?\.\d+)(?:\.|$)")
"""A module path up to its first number, such as "down_blocks.0"."""


def render(found: "Inspection", *, every_module: bool) -> str:
    """Lay out the page.

    Args:
        found: to be shown.
        every_module: list every layer.
    """
    notes = found.notes
    folders = notes.folders | (
        {"tags": ", ".join(f"{tag} {count}" for tag, count in notes.tags.items())}
        if notes.tags
        else {}
    )
    return page(
        str(found.file),
        pairs(_head(found)),
        _groups(found.modules),
        _tokens(found),
        section("training", pairs(notes.training)),
        section("pictures", pairs(folders)),
        _norms(found.modules) if found.measured else "",
        _every(found.modules, found.measured) if every_module else "",
        _left_out(found),
    )


def _head(found: "Inspection") -> dict[str, str]:
    notes = found.notes
    version = found.version or found.family
    words = notes.trigger_words or tuple(dict.fromkeys(t.token for t in found.tokens))
    width = f" (text width {found.text_width})" if found.text_width else ""
    return {
        "format": f"{found.format}, {size(found.bytes)}, {counted(found.tensors, 'tensor')}",
        "for": version + width,
        "base model": notes.base_model or "the file does not say",
        "trigger words": " | ".join(words) or "the file does not say",
        **found.hashes,
    }


def _groups(modules: "list[InspectedModule]") -> str:
    """One row for each component and kind of adapter in it."""
    kinds = _grouped(modules, lambda m: (m.component, m.type, m.dtype))
    rows = [
        (
            *kind,
            str(len(group)),
            spread([m.rank for m in group]),
            spread([m.alpha for m in group]),
            f"{sum(m.parameters for m in group):,}",
            size(sum(m.bytes for m in group)),
        )
        for kind, group in kinds.items()
    ]
    head = ("component", "type", "dtype", "layers ", "rank ", "alpha ", "parameters ", "size ")
    return table(head, rows) if rows else ""


def _tokens(found: "Inspection") -> str:
    rows = [(t.token, t.encoder, t.dtype, str(t.vectors), str(t.width)) for t in found.tokens]
    return table(("token", "text encoder", "dtype", "vectors ", "width "), rows) if rows else ""


def _norms(modules: "list[InspectedModule]") -> str:
    """How much each block is changed, and which layers most."""
    measured = [m for m in modules if m.norm is not None]
    total = _length(measured) or 1.0
    blocks = _grouped(measured, lambda m: (m.component, _block(m.module)))
    rows = [
        (
            *place,
            str(len(group)),
            number(length := _length(group)),
            f"{(length / total) ** 2:.1%}",
        )
        for place, group in blocks.items()
    ]
    by_block = table(("component", "block", "layers ", "norm ", "share "), rows) if rows else ""
    strongest = sorted(measured, key=lambda m: -(m.norm or 0))[:STRONGEST]
    top = [(number(m.norm or 0), f"{m.component}.{m.module}") for m in strongest]
    missing = len(modules) - len(measured)
    return page(
        section("changes by block (Frobenius norm)", by_block),
        section("strongest layers", table(("norm ", "layer"), top) if top else ""),
        f"{counted(missing, 'layer')} without a norm: the change depends on the base model."
        if missing
        else "",
    )


def _every(modules: "list[InspectedModule]", measured: bool) -> str:
    rows = [
        (
            f"{m.component}.{m.module}",
            m.type,
            m.dtype,
            spread([m.rank]),
            spread([m.alpha]),
            *(("-" if m.norm is None else number(m.norm),) if measured else ()),
        )
        for m in modules
    ]
    head = ("layer", "type", "dtype", "rank ", "alpha ", *(("norm ",) if measured else ()))
    return table(head, rows) if rows else ""


def _left_out(found: "Inspection") -> str:
    count = len(found.left_out)
    title = f"{count} {'key fits' if count == 1 else 'keys fit'} nothing"
    return section(title, pairs(found.left_out))


def _grouped(
    modules: "Iterable[InspectedModule]", kind: "Callable[[InspectedModule], tuple[str, ...]]"
) -> "dict[tuple[str, ...], list[InspectedModule]]":
    groups: dict[tuple[str, ...], list[InspectedModule]] = {}
    for module in modules:
        groups.setdefault(kind(module), []).append(module)
    return groups


def _block(module: str) -> str:
    found = BLOCK.match(module)
    return found[1] if found else module


def _length(modules: "Iterable[InspectedModule]") -> float:
    return math.hypot(*(m.norm or 0.0 for m in modules))
