"""One sitting of a run: the loop, with saving, measuring and drawing between its steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from scumble import console
from scumble.config import given
from scumble.errors import Stopped, first_line
from scumble.training import results
from scumble.training.average import Average, copy_into
from scumble.training.best import remembered_choice, take_best
from scumble.training.checkpoints import BEST, Checkpoint, CheckpointWriter
from scumble.training.held_out import Choice, HeldOut
from scumble.training.interrupts import StopRequest
from scumble.training.journal import Journal, NotFiniteError
from scumble.training.loop import StepResult, train_steps
from scumble.training.not_finite import examined
from scumble.training.optimizers import Update
from scumble.training.phase import Phase, phase_name
from scumble.training.record import Record
from scumble.training.recorder import recorder_for
from scumble.training.speedometer import Speedometer
from scumble.training.taught import together
from scumble.training.validation import draw_samples, sample_prompts
from scumble.training.workshop import Workshop


class Sitting:
    """Trains the phases from where the checkpoint left off.

    Args:
        workshop: model, data and settings.
        phases: of the method.
        record: of the run; told where the sitting stopped.
        checkpoint: to go on from, or None to begin; its parameters are already in the model.
        state: what the checkpoint holds.
        speedometer: looks at the pace.
    """

    def __init__(
        self,
        workshop: Workshop,
        phases: Sequence[Phase],
        record: Record,
        checkpoint: Checkpoint | None,
        state: dict[str, Any] | None,
        speedometer: Speedometer,
    ) -> None:
        config = workshop.config
        self.workshop = workshop
        self.phases = phases
        self.taught = together(phase.taught for phase in phases)
        self.record = record
        self.speedometer = speedometer
        self.state = state or {}
        self.folder = Path(config.output_dir)
        self.done = checkpoint.step if checkpoint else 0
        self.saved = self.resumed_at = self.done
        self.total = sum(phase.max_steps for phase in phases)
        self.writer = CheckpointWriter(config, workshop.gathered.digest())
        if workshop.runtime.is_main:
            self.writer.make_way(self.done)
        self.journal = Journal(workshop.runtime, self.folder, self.done, self.total)
        data = workshop.gathered.held_out
        self.held_out = None if data is None else HeldOut(workshop.denoising, data, config.seed)
        self.choice = Choice(config.early_stop)
        if "choice" in self.state:
            self.choice.load_state(self.state["choice"])
            choice = partial(remembered_choice, self.choice, self.folder)
            self.choice = workshop.runtime.processes.from_main(choice)

    @property
    def losses(self) -> list[float]:
        """The loss of every step of the run so far."""
        return self.journal.losses

    @property
    def kept_step(self) -> int:
        """The step whose parameters are kept: the last, or the best on held-out pictures."""
        return int(self.record.facts.get("best_step", self.done))

    @property
    def _is_over(self) -> bool:
        """Whether the held-out pictures end the training; only the last phase can be cut short."""
        return self.choice.is_enough and self.done > self.phases[-1].first_step

    def train(self) -> None:
        """Train to the end of the last phase; the model then is what is to be kept.

        Raises:
            Stopped: the user asked for it; a checkpoint is written.
            NotFiniteError: a loss was NaN; a checkpoint of the last good step is written.
        """
        with StopRequest() as stop:
            try:
                for phase in self.phases:
                    if self.done < phase.first_step + phase.max_steps and not self._is_over:
                        self._train_phase(phase, self.done - phase.first_step, stop)
            finally:
                self.journal.close()
        if self.done == self.resumed_at and "average" in self.state:
            # Nothing was left to train: what is kept is still in the checkpoint.
            copy_into(self.taught.named_parameters(), self.state["average"])
        if self.held_out is not None:
            processes = self.workshop.runtime.processes
            self.record.facts |= take_best(
                self.choice, self.done, self.folder, self.taught, processes
            )
        for phase in self.phases:
            phase.at_rest()

    def _train_phase(self, phase: Phase, start: int, stop: StopRequest) -> None:
        config, runtime = self.workshop.config, self.workshop.runtime
        phase.begin(self.phases)
        update = Update(
            phase.groups,
            config,
            phase.max_steps,
            self.workshop.batch_size,
            runtime.dtype,
            runtime.device,
        )
        average = Average(phase.taught.named_parameters(), config.ema_decay)
        if start and self.state:
            update.load_state(self.state["update"])
            average.load_state(self.state["average"])
            self.state = {}
        else:
            self.choice.waited = 0
        is_last = phase is self.phases[-1]
        recorder = recorder_for(self.workshop, phase)
        self._make_up(phase, update, average)
        wish = partial(getattr, stop, "requested")
        for result in train_steps(phase, update, runtime, start, recorder, wish):
            self.done += 1
            average.update(result.plan.index - phase.first_step, update.moved)
            try:
                self.journal.add(self.done, phase, result)
                self.speedometer.look(phase, self.done, self.journal.steps_per_s)
                if self.done == phase.first_step + phase.max_steps and not is_last:
                    # The next phase builds on what will be kept of this one.
                    self.journal.flush()
                    average.settle()
                self._between_steps(result, update, average, stop)
            except NotFiniteError as error:
                # Nothing has moved since the bad step.
                self.done = error.step - 1
                self._save(update, average)
                if runtime.is_main:
                    raise examined(error, self.workshop, phase, update) from error
                raise
            if self._is_over:
                break
        self.journal.flush()
        average.settle()

    def _between_steps(
        self, result: StepResult, update: Update, average: Average, stop: StopRequest
    ) -> None:
        config = self.workshop.config
        is_time = self._is_time(result.plan.epoch, result.ends_epoch)
        if is_time:
            self.journal.flush()
            try:
                self._measure(update, average)
            except Exception:
                self._save(update, average)  # whatever is wrong, the steps are worth keeping
                raise
        at_end = self.done == self.total or self._is_over
        if self.done % config.checkpointing_steps == 0 or at_end:
            self.journal.flush()
            self._save(update, average)
        # Several processes hear of the wish to stop with a step's numbers, all after the same one.
        alone = self.workshop.runtime.num_processes == 1
        if (stop.requested if alone else self.journal.must_stop) and not at_end:
            self.journal.flush()
            self._save(update, average)
            raise Stopped(
                f"stopped after step {self.done} of {self.total}; everything so far is in "
                f"{self.folder / f'checkpoint-{self.done}'}\n"
                "  Go on with the same command and --resume_from_checkpoint latest."
            )
        if config.validation_prompt is not None and is_time and not at_end:
            self.journal.flush()
            with average.applied():
                self._draw()

    def _is_time(self, epoch: int, ends_epoch: bool) -> bool:
        """Whether to measure and to draw after the step just done, which was one of this epoch."""
        config = self.workshop.config
        if config.validation_steps is not None:
            return self.done % config.validation_steps == 0 or self.done == self.total
        is_wanted = (epoch + 1) % given(config.validation_epochs) == 0 and ends_epoch
        return is_wanted or self.done == self.total

    def _make_up(self, phase: Phase, update: Update, average: Average) -> None:
        """Measure and draw what the last sitting did not come to, ending right behind a save."""
        if self.done == 0:
            return
        epoch = phase.plan.step(self.done - 1).epoch
        if not self._is_time(epoch, self.done % phase.plan.steps_per_epoch == 0):
            return
        processes = self.workshop.runtime.processes
        if processes.from_main(lambda: not self.journal.tells(self.done, "held_out_loss")):
            self._measure(update, average)
        if self.workshop.config.validation_prompt is None:
            return
        if not self.journal.tells(self.done, "samples"):
            with average.applied():
                self._draw()

    def _measure(self, update: Update, average: Average) -> None:
        if self.held_out is None:
            return
        with average.applied(), self._at_rest():
            loss = self.held_out.loss()
        is_best = self.choice.add(self.done, loss)
        if self.workshop.runtime.is_main:
            self.journal.note({"step": self.done, "held_out_loss": loss})
        mark = ", the best so far" if is_best else ""
        console.say(f"held-out loss after step {self.done}: {loss:.5f}{mark}")
        if is_best and self.workshop.runtime.is_main:
            self._write(update, average, BEST)
        if self._is_over:
            console.say(
                f"stopping early: {self.choice.waited} measurements brought nothing better than "
                f"step {self.choice.best_step}"
            )

    def _save(self, update: Update, average: Average) -> None:
        if self.saved == self.done or not self.workshop.runtime.is_main:
            return
        self._write(update, average, None)
        self.saved = self.done
        self.record.facts["steps"] = self.done

    def _write(self, update: Update, average: Average, name: str | None) -> None:
        learnt = self.taught.named_state()
        state = {
            "parameters": {key: t.detach().cpu().clone() for key, t in learnt.items()},
            "update": update.state(),
            "average": average.state(),
            "choice": self.choice.state(),
            "phase": phase_name(self.phases, self.done),
            "changes": self.workshop.changes,
            "processes": self.workshop.runtime.num_processes,
        }
        with average.applied(), self._at_rest():
            self.writer.write(
                self.done,
                lambda folder: results.save_learnt(self.workshop, self.taught, self.done, folder),
                state,
                name,
            )
        written = name or f"checkpoint-{self.done}"
        self.workshop.runtime.events.note("checkpoint", step=self.done, name=written)

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        for phase in self.phases:
            phase.at_rest()
        yield

    def _draw(self) -> None:
        """Draw the validation prompt; a failure is said and costs nothing but the pictures."""
        runtime = self.workshop.runtime
        if not runtime.is_main:
            return
        try:
            with self._at_rest():
                prompts, seeds = sample_prompts(self.workshop)
                images = draw_samples(self.workshop, prompts, seeds)
            names = results.save_samples(images, self.folder / "samples", self.done)
            captions = [prompt for prompt in prompts for _ in seeds]
            runtime.trackers.show(images, captions, self.done)
            self.journal.note({"step": self.done, "samples": names, "prompts": captions})
        except Exception as error:
            console.say(f"the sample pictures failed, training goes on: {first_line(error)}")
