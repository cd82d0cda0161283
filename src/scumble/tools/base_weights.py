"""The tensors of a base model, one at a time, under the names that adapter files give them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from scumble.errors import UserError
from scumble.families import BaseModel, Family, family_of
from scumble.families.original_names import POSITIONS, from_original
from scumble.formats.streaming import Entry, StreamedWeights, open_streamed


class Location(NamedTuple):
    """Where a tensor of diffusers lies in the base's files.

    Args:
        key: its name there.
        entry: what it is like in diffusers.
        block: None, or which third it is of the rows that lie there.
    """

    key: str
    entry: Entry
    block: int | None = None


class OutputFile(NamedTuple):
    """A file of weights that is to be written.

    Args:
        name: relative to the folder that is written; empty for the only file.
        entries: key -> what its tensor will be like.
        tensor_of: makes the tensor of a key.
        metadata: of the file.
    """

    name: str
    entries: Mapping[str, Entry]
    tensor_of: Callable[[str], Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class BaseWeights:
    """A base whose files are open.

    Args:
        base: that was found.
        family: that it belongs to.
        places: component -> name of a tensor, as files spell it -> where it lies.
        files: component -> the open files that hold it.
    """

    base: BaseModel
    family: Family
    places: Mapping[str, Mapping[str, Location]]
    files: Mapping[str, StreamedWeights]

    def tensor(self, component: str, name: str) -> Tensor:
        """Read one tensor, as diffusers has it: new memory."""
        place = self.places[component][name]
        tensor = self.files[component].tensor(place.key)
        if place.block is not None:
            rows = place.entry.shape[0]
            tensor = tensor[place.block * rows : (place.block + 1) * rows]
        return tensor.reshape(place.entry.shape)

    def shape(self, component: str, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, or None where the base has none of that name."""
        place = self.places.get(component, {}).get(name)
        return None if place is None else place.entry.shape


@contextmanager
def open_base(base: BaseModel) -> Iterator[BaseWeights]:
    """Open a base's files without reading them.

    Args:
        base: a folder, a single file, or one of the Hub that is on this machine.

    Raises:
        UserError: weights are missing, damaged, or not those of such a base.
    """
    family = family_of(base)
    with ExitStack() as stack:
        if base.is_checkpoint:
            weights = stack.enter_context(open_streamed([Path(base.location)]))
            files = dict.fromkeys(family.components, weights)
            yield BaseWeights(base, family, _in_checkpoint(base, family, weights), files)
            return
        files = {
            component: stack.enter_context(open_streamed(_weight_files(base, component)))
            for component in family.components
        }
        to_file = family.key_names.to_file
        places = {
            component: {
                to_file(component, key): Location(key, entry)
                for key, entry in weights.entries.items()
            }
            for component, weights in files.items()
        }
        yield BaseWeights(base, family, places, files)


def _weight_files(base: BaseModel, component: str) -> list[Path]:
    if found := base.weight_files(component):
        return found
    stems = [path.name.split(".") for path in base.files(component)]
    variants = sorted({parts[1] for parts in stems if parts[-1] == "safetensors" and parts[2:]})
    raise UserError(
        f"the weights of the {component} of {base.name} are not on this machine",
        f"There is a variant of them: --variant {variants[0]}."
        if variants
        else f"Fetch the base first: hf download {base.name}.",
    )


def _in_checkpoint(
    base: BaseModel, family: Family, weights: StreamedWeights
) -> dict[str, dict[str, Location]]:
    places: dict[str, dict[str, Location]] = {component: {} for component in family.components}
    for key, (dtype, shape) in weights.entries.items():
        found = from_original(key)
        if found is None or found.keys == (POSITIONS,):
            continue
        entry = Entry(dtype, found.shape(shape))
        for block, name in enumerate(found.keys):
            block_or_none = block if len(found.keys) > 1 else None
            places[found.component][name] = Location(key, entry, block_or_none)
    for component, tensors in places.items():
        if not tensors:
            raise UserError(
                f"{base.name} holds no {component}",
                "A base must be whole: denoiser, text encoder and VAE.",
            )
    return places
