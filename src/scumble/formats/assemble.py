"""From the tensors that a file has for each layer to adapters of known types."""

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from scumble.adapters import ADAPTERS
from scumble.errors import UserError
from scumble.formats.container import DTYPES
from scumble.formats.weights import ModuleWeights

ALPHA = "alpha"
"""Name of the tensor that holds a layer's alpha, in every format that has one."""


class Parts:
    """Tensors of layers, gathered key by key; what fits nothing is kept with the reason.

    Tensors have the names that the adapter types give them in `file_names`.
    """

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}
        self._tensors: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._keys: dict[tuple[str, str], list[str]] = {}

    def leave(self, key: str, reason: str) -> None:
        """Note that a key of the file fits nothing.

        Args:
            key: as in the file.
            reason: what it looks like and what would read it, as the end of "the key 'x' ...".
        """
        self.left_out[key] = reason

    def add(self, component: str, module: str, name: str, key: str, tensor: Tensor) -> None:
        """Put a tensor to its layer.

        Args:
            component: of the model.
            module: path as files spell it.
            name: of the tensor, or `ALPHA`.
            key: as in the file.
            tensor: its numbers.

        Raises:
            UserError: it is there already, or holds something else than real numbers.
        """
        parts = self._tensors.setdefault(component, {}).setdefault(module, {})
        if name in parts:
            raise UserError(f"'{module}' has its {name} twice, in two spellings")
        is_whole = not (tensor.is_floating_point() or tensor.is_complex())
        # One whole number is a setting, such as which side an IA3 is on.
        is_setting = name == ALPHA or (is_whole and tensor.ndim == 0)
        if tensor.dtype not in DTYPES and not is_setting:
            raise UserError(f"'{key}' holds {tensor.dtype}, which is not supported")
        parts[name] = tensor
        self._keys.setdefault((component, module), []).append(key)

    def modules(
        self, alpha_of: Callable[[str, str, int], float] = lambda _component, _module, rank: rank
    ) -> dict[str, dict[str, ModuleWeights]]:
        """Component -> module path -> its adapter; layers of no known type are left out.

        Args:
            alpha_of: (component, module, rank) -> alpha, for layers that have no tensor of it.

        Raises:
            UserError: an alpha that is no finite number.
        """
        found: dict[str, dict[str, ModuleWeights]] = {}
        for component, modules in self._tensors.items():
            for module, parts in modules.items():
                typed = _type_of(parts)
                if typed is None:
                    reason = _lacking(module, parts)
                    for key in self._keys[component, module]:
                        self.leave(key, reason)
                    continue
                type_name, tensors = typed
                rank = ADAPTERS[type_name].rank_of(tensors)
                alpha = number_of(parts[ALPHA], ALPHA, module) if ALPHA in parts else None
                alpha = alpha_of(component, module, rank) if alpha is None else alpha
                if not math.isfinite(alpha):
                    raise UserError(f"the alpha of '{module}' is {alpha}")
                found.setdefault(component, {})[module] = ModuleWeights(type_name, tensors, alpha)
        return found


def tensor_names() -> dict[str, str]:
    """Every tensor name of the known adapter types, as a spelling of itself."""
    names = {name: name for kind in ADAPTERS.values() for name in kind.file_names.values()}
    return names | {ALPHA: ALPHA}


def _type_of(parts: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]] | None:
    names = parts.keys() - {ALPHA}
    for type_name, adapter in ADAPTERS.items():
        tensors = {p: parts[name] for p, name in adapter.file_names.items() if name in parts}
        if len(tensors) == len(names) and adapter.is_complete(tensors.keys()):
            return type_name, tensors
    return None


def _lacking(module: str, parts: Mapping[str, Tensor]) -> str:
    """Why a layer's tensors make no adapter: what the type that comes closest still needs."""
    names = parts.keys() - {ALPHA}
    if not names:
        return f"belongs to '{module}', which lacks its tensors"
    if names == {"weight"}:
        return f"is a whole weight of '{module}', or an IA3 that lacks its on_input"
    kinds = [kind.file_names for kind in ADAPTERS.values()]
    closest = max(kinds, key=lambda kind: len(names & set(kind.values())) / len(kind))
    lacking = [name for name in closest.values() if name not in names]
    extra = sorted(names - set(closest.values()))
    if extra:
        return f"belongs to '{module}', whose {' and '.join(extra)} do not go with the rest"
    return f"belongs to '{module}', which lacks its {' or '.join(lacking)}"


def number_of(tensor: Tensor, name: str, module: str) -> float:
    """Take the one number out of a tensor.

    Args:
        tensor: of a file.
        name: of the tensor, for messages.
        module: that it belongs to.

    Raises:
        UserError: it holds several, none, or a complex one.
    """
    if tensor.numel() != 1 or tensor.is_complex():
        raise UserError(f"the {name} of '{module}' is not one number")
    return float(tensor)
