"""What formats without alphas and without other types can hold."""

from scumble.errors import UserError
from scumble.formats.weights import AdapterWeights

HINT = "The format 'peft' holds it."


def require_plain_lora(weights: AdapterWeights, format: str) -> None:
    """Refuse weights that would lose something in a format of plain LoRA whose scale is 1.

    Args:
        weights: what is to be written.
        format: name of the format.

    Raises:
        UserError: naming the layer and what would be lost.
    """
    for modules in weights.components.values():
        for module, entry in modules.items():
            if entry.type != "lora" or entry.tensors.keys() != {"down", "up"}:
                kind = "a LoRA in Tucker form" if entry.type == "lora" else f"a {entry.type}"
                reason = f"'{module}' is {kind}"
            elif entry.alpha != entry.rank:
                reason = f"the alpha of '{module}' is {entry.alpha:g}, not its rank {entry.rank}"
            else:
                continue
            raise UserError(
                f"the format '{format}' holds plain LoRA without alphas, and {reason}", HINT
            )
