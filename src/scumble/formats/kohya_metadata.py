"""What a file in kohya's format says of itself: kohya's own keys, and the ModelSpec's.

Nothing that is not known, and nothing that depends on the clock: equal adapters say the same.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping

import safetensors.torch
from torch import Tensor

from scumble.adapters import ADAPTERS
from scumble.formats.assemble import ALPHA
from scumble.formats.base_version import base_version
from scumble.formats.bundle import TOKEN_PREFIX
from scumble.formats.key_names import KeyNames
from scumble.formats.training_facts import kohya_facts, spec_facts, training_facts
from scumble.formats.weights import AdapterWeights, ModuleWeights

PLAIN = {"lora_down.weight", "lora_up.weight", ALPHA}
"""Tensors that kohya's own module knows; any other needs LyCORIS."""

ALGORITHMS = {
    "lora_down.weight": "locon",
    "hada_w1_a": "loha",
    "lokr_w1": "lokr",
    "lokr_w1_a": "lokr",
    "on_input": "ia3",
    "diff": "full",
    "w_norm": "full",
}
"""Tensor -> what LyCORIS calls the algorithm; in a mixture the first counts."""

OPTIONS = {
    "dora_scale": "dora_wd",
    "lora_mid.weight": "use_tucker",
    "hada_t1": "use_tucker",
    "lokr_t2": "use_tucker",
    "w_norm": "train_norm",
}
"""Tensor -> LyCORIS's option that it comes from."""

OWN_ARGUMENTS = {"algo", "conv_dim", "conv_alpha", *OPTIONS.values()}
"""Arguments of the network that the tensors themselves tell."""

SEVERAL = "Dynamic"
"""What kohya writes for a rank or an alpha that differs from layer to layer."""

HASHES = ("sshs_model_hash", "modelspec.hash_sha256", "sshs_legacy_hash")
"""Metadata keys of the marks by which a file is known again."""

LEGACY_START, LEGACY_SIZE = 0x100000, 0x10000
"""Part of the file that the older hash is of, in bytes."""


def kohya_metadata(
    weights: AdapterWeights, tensors: Mapping[str, Tensor], key_names: KeyNames
) -> dict[str, str]:
    """All metadata of a file in kohya's format.

    What was read from such a file stays as it was, but for what describes the tensors. What our
    own keys say comes in kohya's words beside them.

    Args:
        weights: to be written; `training_facts.TRAINING` says what is understood of its metadata.
        tensors: of the file, by key.
        key_names: the names of the family.

    Raises:
        UserError: our own metadata is damaged.
    """
    facts = training_facts(weights.metadata)
    told = kohya_facts(facts) | spec_facts(facts)
    if base := weights.metadata.get("base_model"):
        told["ss_sd_model_name"] = base
    if phrase := weights.metadata.get("trigger_phrase"):
        told["modelspec.trigger_phrase"] = phrase
    known = _version(weights, key_names) | weights.metadata | told
    known |= _network(weights, tensors, known.get("ss_network_args", ""))
    known = {key: value for key, value in known.items() if key not in HASHES}
    return known | _hashes(tensors, known)


def _version(weights: AdapterWeights, key_names: KeyNames) -> dict[str, str]:
    """The version of the base, and what the ModelSpec demands beside it."""
    version = base_version(weights, key_names)
    if version is None:
        return {}
    known = dict(version.marks)
    if version.architecture:
        kind = "lora" if any(weights.components.values()) else "textual-inversion"
        base = weights.metadata.get("base_model")
        known |= {
            "modelspec.sai_model_spec": "1.0.1",
            "modelspec.architecture": f"{version.architecture}/{kind}",
            "modelspec.implementation": "diffusers",
            "modelspec.title": f"Adapter for {base}" if base else "Adapter",
        }
    if version.native_px:
        known["modelspec.resolution"] = f"{version.native_px}x{version.native_px}"
    return known


def _network(
    weights: AdapterWeights, tensors: Mapping[str, Tensor], arguments: str
) -> dict[str, str]:
    """What kind of adapter it is; of layers alone, a word has no rank."""
    entries = [entry for modules in weights.components.values() for entry in modules.values()]
    if not entries:
        return {}
    names = {key.partition(".")[2] for key in tensors if not key.startswith(TOKEN_PREFIX)}
    own: dict[str, str] = {}
    if not names <= PLAIN:
        own["algo"] = next((what for name, what in ALGORITHMS.items() if name in names), "full")
        own |= {option: "True" for name, option in OPTIONS.items() if name in names}
    ranked = [entry for entry in entries if ADAPTERS[entry.type].has_rank]
    wide = [entry for entry in ranked if _has_kernel(entry)]
    plain = [entry for entry in ranked if not _has_kernel(entry)]
    if wide and plain:
        own |= {
            "conv_dim": _one(e.rank for e in wide),
            "conv_alpha": _one(float(e.alpha) for e in wide),
        }
    known = {
        "ss_network_module": "lycoris.kohya" if "algo" in own else "networks.lora",
        "ss_network_dim": _one(entry.rank for entry in plain or wide),
        "ss_network_alpha": _one(float(entry.alpha) for entry in plain or wide),
    }
    if own or arguments:
        known["ss_network_args"] = _arguments(arguments, own)
    return known


def _arguments(told: str, own: Mapping[str, str]) -> str:
    """Arguments of the network with our own among them; what is no object stays as it is."""
    try:
        theirs = json.loads(told or "{}")
    except (ValueError, RecursionError):
        return told
    if not isinstance(theirs, dict):
        return told
    return json.dumps({k: v for k, v in theirs.items() if k not in OWN_ARGUMENTS} | dict(own))


def _has_kernel(entry: ModuleWeights) -> bool:
    shapes = (tensor.shape for tensor in entry.tensors.values())
    return any(len(shape) == 4 and max(shape[2:]) > 1 for shape in shapes)


def _one(values: Iterable[float]) -> str:
    """The value that all share; kohya's words for several and for none."""
    different = set(values)
    if len(different) > 1:
        return SEVERAL
    return str(different.pop()) if different else "None"


def _hashes(tensors: Mapping[str, Tensor], known: Mapping[str, str]) -> dict[str, str]:
    """The marks by which programs know a file again, whatever else its metadata says."""
    lasting = {key: value for key, value in known.items() if key.startswith("ss_")}
    data = safetensors.torch.save(dict(tensors), lasting)
    start = 8 + struct.unpack("<Q", data[:8])[0]
    whole = hashlib.sha256(memoryview(data)[start:]).hexdigest()
    model, spec, legacy = HASHES
    hashes = {model: whole, spec: f"0x{whole}"}
    # A longer header reaches into the part, and the library writes it in random order.
    if start <= LEGACY_START:
        part = data[LEGACY_START : LEGACY_START + LEGACY_SIZE]
        hashes[legacy] = hashlib.sha256(part).hexdigest()[:8]
    return hashes
