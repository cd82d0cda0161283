"""An adapter in memory, away from any model: the hub that every file format meets at."""

from dataclasses import dataclass, field

from torch import Tensor

from scumble.adapters import ADAPTERS
from scumble.adapters.inject import AdapterSet


@dataclass(frozen=True)
class ModuleWeights:
    """The adapter of one layer.

    Args:
        type: adapter type, a name of the registry such as "lora".
        tensors: parameter name -> tensor.
        alpha: scale numerator; the change is scaled by alpha / rank.
    """

    type: str
    tensors: dict[str, Tensor]
    alpha: float

    @property
    def rank(self) -> int:
        """Width of the bottleneck, read off the tensors' shapes."""
        return ADAPTERS[self.type].rank_of(self.tensors)


@dataclass(frozen=True)
class LearnedToken:
    """A word that text encoders were taught (textual inversion).

    Args:
        vectors: text encoder ("text_encoder") -> its vectors, one row each.
    """

    vectors: dict[str, Tensor]


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter: tensors of each adapted layer, learned words, and what its file says of itself.

    Args:
        components: component name ("unet", "text_encoder") -> module path as files spell it ->
            the weights there.
        metadata: text that travels in the file; keys as in the file. `base_model` names the model
            that it was trained on, `trigger_phrase` what to write in a prompt, and
            `initializer_token` the known word that its learned tokens started from.
        tokens: learned token ("<thing>") -> its vectors.
        left_out: key of the file that fits nothing -> why; empty unless a part was asked for.
    """

    components: dict[str, dict[str, ModuleWeights]]
    metadata: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, LearnedToken] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether there is neither an adapted layer nor a learned token."""
        return not any(self.components.values()) and not self.tokens

    @property
    def num_parameters(self) -> int:
        """How many numbers the adapter consists of."""
        modules = (module for paths in self.components.values() for module in paths.values())
        groups = [module.tensors for module in modules]
        groups += [token.vectors for token in self.tokens.values()]
        return sum(tensor.numel() for group in groups for tensor in group.values())


def module_weights(adapters: AdapterSet, type_name: str) -> dict[str, ModuleWeights]:
    """Copy the adapters of one model off it: live module path -> weights, on the CPU."""
    return {
        path: ModuleWeights(type_name, adapter.tensors(), adapter.file_alpha)
        for path, adapter in adapters.adapters.items()
    }
