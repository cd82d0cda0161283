"""Train again as something was trained, and say whether the same came of it."""

from pathlib import Path

from scumble import console
from scumble.config import TrainConfig
from scumble.errors import UserError
from scumble.tools.diff import Difference, diff_adapters
from scumble.tools.model_diff import models_apart
from scumble.training.differences import Differences, find_differences
from scumble.training.original import Original
from scumble.training.record import MODEL_NAME
from scumble.training.run import train


def reproduce(
    original: Original, config: TrainConfig, *, check: bool = False, tolerance: float = 1e-3
) -> bool:
    """Train again, naming first what is not as it was.

    Args:
        original: what is to be reproduced.
        config: of the new run.
        check: train nothing.
        tolerance: largest relative difference of a layer's change that counts as none.

    Returns:
        Whether the results are the same; with `check`, whether that is to be expected.

    Raises:
        UserError: it cannot be trained here.
    """
    differences = find_differences(original, config)
    for line in differences.of_training:
        console.say(f"not as it was: {line}")
    for line in differences.of_rounding:
        console.say(f"the last digits may become others: {line}")
    if check:
        console.say(_expectation(differences))
        return not differences.of_training
    result = train(config)
    if not console.is_main_process():
        return True  # the main one compares, with what it alone has written
    if original.result is None:
        console.say("the original run came to no result: there is nothing to compare with")
        return True
    place = original.place
    if place is None:
        is_final = original.steps in (None, result.steps)
        place = "" if is_final else f"checkpoint-{original.steps}"
    made = result.output_dir / place / original.result.name if place else result.adapter
    return _compare(original.result, made, tolerance)


def _expectation(differences: Differences) -> str:
    if differences.of_training:
        return "it would not be reproduced: what it was made of is not what is here"
    if differences.of_rounding:
        return "it would be reproduced but for the last digits"
    return "it would be reproduced bit for bit"


def _compare(original: Path, made: Path, tolerance: float) -> bool:
    if not made.exists():
        raise UserError(f"the new run has no {made}", "Leave --checkpointing_steps away.")
    console.say(f"\ncomparing {made} with {original}")
    if original.name == MODEL_NAME:
        name, apart = models_apart(original, made)
        text = f"different: most in {name}, by {apart:.2g}" if name else EQUAL
        console.say(text)
        return not name
    found = diff_adapters(original, made, tolerance=tolerance)
    console.say(_verdict(found))
    return found.is_equal


EQUAL = "equal: every number is the same"


def _verdict(found: Difference) -> str:
    if found.same_bytes:
        return "identical: the files are the same, byte for byte"
    alone = [m for m in found.modules if m.only_in is not None and not m.is_equal]
    if alone:
        return f"different: only one of them has {alone[0].component}.{alone[0].module}"
    apart = {f"{m.component}.{m.module}": m.distance or 0.0 for m in found.modules}
    apart |= {f"the word {t.token} in {t.encoder}": t.distance or 0.0 for t in found.tokens}
    most = max(apart, key=lambda name: apart[name])
    if found.is_equal and apart[most] == 0:
        return f"{EQUAL}; the files differ in {', '.join(found.metadata) or 'their layout'}"
    how = f"most in {most}, by {apart[most]:.2g} of what was learnt there"
    return f"the same but for rounding: {how}" if found.is_equal else f"different: {how}"
