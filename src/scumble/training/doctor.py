"""Examine a run before it begins: check everything that is known, and rehearse a few steps.

Nothing is written but the cache of encoded pictures, and nothing is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scumble import console
from scumble.config import TrainConfig, given
from scumble.errors import UserError
from scumble.families import Components, text_encoders
from scumble.training.ceiling import measure_ceiling
from scumble.training.checkpoints import Checkpoint, find_checkpoint
from scumble.training.checkup import check_warmup, findings
from scumble.training.checkup.facts import Facts
from scumble.training.checkup.finding import Finding, Level, worst
from scumble.training.checkup.pace import (
    Pace,
    between_checkpoints,
    duration,
    mostly_drawing,
    speed,
)
from scumble.training.checkup.survey import survey
from scumble.training.estimate import class_s, drawing_s, encoding_s
from scumble.training.few_pictures import STREAMED, FewPictures
from scumble.training.fit import fit, memory_explained
from scumble.training.lock import require_free
from scumble.training.methods import METHODS
from scumble.training.opening import open_workshop
from scumble.training.record import claim_output, is_finished
from scumble.training.rehearsal import Timed, time_question, time_steps
from scumble.training.resume import require_fit
from scumble.training.runtime import prepare_runtime
from scumble.training.speedometer import speed_of
from scumble.training.texts import tokens_beyond
from scumble.training.words import new_words
from scumble.training.workshop import Workshop


@dataclass(frozen=True)
class Diagnosis:
    """What an examination brought up.

    Args:
        findings: topic by topic.
        numbers: that were counted and measured.
        said: what the parts of the training said on the way.
    """

    findings: Sequence[Finding]
    numbers: Mapping[str, float] = field(default_factory=dict)
    said: Sequence[str] = ()

    @property
    def verdict(self) -> Level:
        """The level of the worst finding."""
        return worst(self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"verdict": self.verdict, **asdict(self)}


def examine(config: TrainConfig) -> Diagnosis:
    """Look at everything that a run of these settings will meet."""
    with console.unsaid() as said:
        checkpoint, found = _of_output(config)
        numbers: dict[str, float] = {}
        try:
            with memory_explained(config):
                more, numbers = _examine(config, checkpoint)
            found += more
        except UserError as error:
            found.append(Finding("danger", "start", error.message, error.hint))
    return Diagnosis(found, numbers, said)


def _of_output(config: TrainConfig) -> tuple[Checkpoint | None, list[Finding]]:
    """What the run goes on from, and what it would say of the folder that it is to write."""
    try:
        require_free(Path(config.output_dir))
        checkpoint, notes = find_checkpoint(config)
        claim_output(config, checkpoint)
    except UserError as error:
        return None, [Finding("danger", "output", error.message, error.hint)]
    found = [Finding("note", "output", note) for note in notes]
    if checkpoint is not None and is_finished(config):
        done = f"the run is finished after {checkpoint.step} steps: it will not begin again"
        found.append(Finding("note", "output", done, "Raise --max_train_steps to go on with it."))
    elif checkpoint is not None:
        found.append(Finding("ok", "output", f"the run goes on from step {checkpoint.step}"))
        found += [
            Finding("note", "output", line, "The run will go on differently from here.")
            for line in checkpoint.differences(config)
        ]
    return checkpoint, found


def _examine(
    config: TrainConfig, checkpoint: Checkpoint | None
) -> tuple[list[Finding], dict[str, float]]:
    runtime = prepare_runtime(config)
    ceiling = measure_ceiling(runtime.device, runtime.dtype)
    few = FewPictures(config, runtime.num_processes)
    workshop = open_workshop(config, runtime, few)
    per_epoch = few.steps_per_epoch()
    epochs = given(config.num_train_epochs) * config.repeats
    steps = config.max_train_steps or epochs * per_epoch
    workshop = replace(workshop, config=replace(config, max_train_steps=steps))
    phases = METHODS[config.method](workshop)
    check_warmup(config, phases)
    if checkpoint is not None:
        require_fit(checkpoint, checkpoint.training_state(), phases)
    beyond = _beyond(workshop, few)
    level, forecast = fit(workshop, phases)
    facts = survey(workshop, phases, level, forecast, few.shown(), per_epoch, beyond)
    facts = replace(facts, config=config)  # the user gave no number of steps
    timed = time_steps(workshop, phases)
    question_s = time_question(workshop, phases[0])
    encode_s, view_s = encoding_s(workshop, few)
    left = 1.0 if checkpoint is None else 1 - checkpoint.step / facts.steps
    draw_s = drawing_s(facts, question_s, view_s, few.held_out) * left
    mean_s = sum(one.steps * one.step_s for one in timed) * _fullness(facts) / facts.steps
    parts = [
        ("training", facts.steps * mean_s * left),
        ("encoding", encode_s),
        ("drawing the class", class_s(facts, question_s, view_s)),
        ("pictures and measurements", draw_s),
    ]
    full = phases[0].plan.nominal * _area(facts)
    pace = Pace(
        parts,
        max(one.step_s for one in timed),
        mean_s,
        draw_s,
        speed_of(workshop, phases[0], forecast, ceiling, timed[0].step_s, full),
    )
    return _findings(facts, pace, few), _numbers(facts, pace, timed)


def _findings(facts: Facts, pace: Pace, few: FewPictures) -> list[Finding]:
    found = findings(facts)
    if few.is_part:
        text = f"a stream: looked at the first {STREAMED} pictures; epochs are of those alone"
        hint = "" if facts.config.max_train_steps else "Give --max_train_steps."
        found.insert(0, Finding("note", "pictures", text, hint))
    found += [*duration(pace), *mostly_drawing(facts, pace), *between_checkpoints(facts, pace)]
    return [*found, *speed(pace)]


def _numbers(facts: Facts, pace: Pace, timed: Sequence[Timed]) -> dict[str, float]:
    names = {name: name.replace(" ", "_") for name, _ in pace.parts}
    return {
        "steps": facts.steps,
        "pictures": len(facts.pictures),
        "foretold_peak_mib": round(facts.room.peak_bytes / 2**20, 1),
        "total_s": sum(seconds for _, seconds in pace.parts),
        **{f"{names[name]}_s": seconds for name, seconds in pace.parts},
        **{f"step_s {one.name}": one.step_s for one in timed},
        "flops_per_step": pace.speed.flops,
        "flops_per_s": pace.speed.flops / pace.speed.step_s,
        "ceiling_flops_per_s": pace.speed.flops_per_s,
        "ceiling_bytes_per_s": pace.speed.bytes_per_s,
        "share_of_ceiling": pace.speed.share,
    }


def _fullness(facts: Facts) -> float:
    """Pictures of a step on average, as a share of a full one."""
    full = min(facts.batch, max(facts.buckets.values()))
    return len(facts.pictures) / (facts.steps_per_epoch * full)


def _area(facts: Facts) -> float:
    """Area of the commonest size, which is timed, over that of the largest, which is counted."""
    (height, width), _ = facts.buckets.most_common(1)[0]
    return height * width / max(h * w for h, w in facts.buckets)


def _beyond(workshop: Workshop, few: FewPictures) -> dict[str, int]:
    """Caption -> tokens of it that some text encoder does not read."""
    captions = {caption for picture in few.all for caption in picture.captions}
    components, family = workshop.components, workshop.family
    names = text_encoders(family)
    if not all(tokenizer in components for tokenizer in names.values()):
        components = Components(components.base)
        family.load(components, list(names), workshop.runtime.dtype)
    words = {} if workshop.texts.ready else new_words(workshop.config)
    return {
        caption: max(tokens_beyond(caption, components[name], words) for name in names.values())
        for caption in captions
    }
