"""Which parameters learn how fast: by component, by layer, by kind. All rates are decided here."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from scumble.adapters.inject import AdapterSet, matches
from scumble.config import TrainConfig, given
from scumble.errors import UserError


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn alike.

    Args:
        name: for the log, such as "unet" or "rows".
        parameters: fp32 masters, by the names that `Taught` gives them.
        learning_rate: before the schedule.
        weight_decay: of AdamW.
        row_norm: length that each row is drawn to, in place of weight decay; None does not.
        row_pull: by this times the learning rate in each step.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    weight_decay: float
    row_norm: float | None = None
    row_pull: float = 0.0


def adapter_groups(
    sets: Mapping[str, AdapterSet], config: TrainConfig, denoiser: str
) -> list[ParameterGroup]:
    """Group the parameters of adapters by their rates.

    Args:
        sets: component name -> the adapters on it.
        config: learning rates, and LoRA+'s ratio.
        denoiser: the component that --learning_rate is for; others take --text_encoder_lr.

    Raises:
        UserError: a rate for layers that do not learn, or a malformed one.
    """
    rates = [_parse_rate(text) for text in config.layer_learning_rates]
    _require_matches(rates, (path for adapters in sets.values() for path in adapters.layers))
    main = given(config.learning_rate)
    grouped: dict[tuple[str, float, float], dict[str, nn.Parameter]] = defaultdict(dict)
    for component, adapters in sets.items():
        usual = main if component == denoiser else config.text_encoder_lr or main / 2
        for path, adapter in adapters.adapters.items():
            rate = usual
            for pattern, value in rates:
                rate = value if matches(path, pattern) else rate
            for name, parameter in adapter.named_parameters():
                ratio = config.lora_plus_ratio if name in adapter.from_zero else 1.0
                decay = 0.0 if name in adapter.from_weight else config.adam_weight_decay
                grouped[component, rate * ratio, decay][f"{component}.{path}.{name}"] = parameter
    return [
        ParameterGroup(_name(key, grouped), parameters, *key[1:])
        for key, parameters in grouped.items()
    ]


def _name(key: tuple[str, float, float], keys: Collection[tuple[str, float, float]]) -> str:
    """The component, and whatever its groups differ in."""
    component, rate, decay = key
    rates, decays = ({other[i] for other in keys if other[0] == component} for i in (1, 2))
    named = component if len(decays) == 1 or decay else f"{component} without decay"
    return f"{named} at {rate:g}" if len(rates) > 1 else named


def row_groups(
    rows: Mapping[str, Mapping[str, nn.Parameter]],
    rate: float,
    config: TrainConfig,
    norms: Mapping[str, float],
) -> list[ParameterGroup]:
    """The rows of new words, a group for each text encoder.

    Args:
        rows: text encoder's component name -> word -> its rows.
        rate: their learning rate.
        config: the pull to the norm, which takes the place of weight decay, or that.
        norms: component name -> mean length of the frozen table's rows.
    """
    pull = config.row_norm_pull
    return [
        ParameterGroup(
            "rows" if len(rows) == 1 else f"rows of {component}",
            {f"{component}.token {word}": parameter for word, parameter in words.items()},
            rate,
            0.0 if pull else config.adam_weight_decay,
            norms[component] if pull else None,
            pull,
        )
        for component, words in rows.items()
    ]


def model_group(name: str, model: nn.Module, config: TrainConfig) -> ParameterGroup:
    """A whole model, at one rate."""
    parameters = {f"{name}.{path}": parameter for path, parameter in model.named_parameters()}
    return ParameterGroup(name, parameters, given(config.learning_rate), config.adam_weight_decay)


def _parse_rate(text: str) -> tuple[str, float]:
    pattern, _, number = text.rpartition(":")
    try:
        rate = float(number)
    except ValueError:
        rate = -1.0
    if not pattern or not 0 <= rate < float("inf"):
        raise UserError(
            f"--layer_learning_rates: '{text}' is not a pattern and a rate",
            "For example: down_blocks.*:5e-5 mid_block.*:2e-4.",
        )
    return pattern, rate


def _require_matches(rates: Sequence[tuple[str, float]], paths: Iterable[str]) -> None:
    known = list(paths)
    for pattern, _ in rates:
        if not any(matches(path, pattern) for path in known):
            raise UserError(
                f"--layer_learning_rates: '{pattern}' matches no layer that learns",
                f"They are called, for example: {', '.join(known[:3])}.",
            )
