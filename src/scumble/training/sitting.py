"""One sitting of a run: the loop, with saving, drawing and stopping between its steps."""

from collections.abc import Sequence
from pathlib import Path

from scumble import console
from scumble.errors import Stopped
from scumble.training import results
from scumble.training.checkpoints import Checkpoint, CheckpointWriter
from scumble.training.interrupts import StopRequest
from scumble.training.journal import Journal, NotFiniteError
from scumble.training.loop import StepResult, train_steps
from scumble.training.optimizers import Update
from scumble.training.phase import Phase
from scumble.training.record import Record
from scumble.training.trackers import log_images
from scumble.training.validation import draw_samples, sample_prompts
from scumble.training.workshop import Workshop


class Sitting:
    """Trains the phases from where the checkpoint left off.

    Args:
        workshop: model, data and settings.
        phases: of the method.
        record: of the run; told where the sitting stopped.
        checkpoint: to go on from, or None to begin; its weights are already in the model.
    """

    def __init__(
        self,
        workshop: Workshop,
        phases: Sequence[Phase],
        record: Record,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.workshop = workshop
        self.phases = phases
        self.record = record
        self.checkpoint = checkpoint
        self.folder = Path(workshop.config.output_dir)
        self.done = checkpoint.step if checkpoint else 0
        self.saved = self.done
        self.total = sum(phase.max_steps for phase in phases)
        self.writer = CheckpointWriter(workshop.config, workshop.data.digest())
        if workshop.runtime.is_main:
            self.writer.make_way(self.done)
        self.journal = Journal(workshop.runtime, self.folder, self.done, self.total)

    @property
    def losses(self) -> list[float]:
        """The loss of every step of the run so far."""
        return self.journal.losses

    def train(self) -> None:
        """Train to the end of the last phase.

        Raises:
            Stopped: the user asked for it; a checkpoint is written.
            NotFiniteError: a loss was NaN; a checkpoint of the last good step is written.
        """
        first = 0
        with StopRequest() as stop:
            try:
                for phase in self.phases:
                    if self.done < first + phase.max_steps:
                        self._train_phase(phase, self.done - first, stop)
                    first += phase.max_steps
            finally:
                self.journal.close()

    def _train_phase(self, phase: Phase, start: int, stop: StopRequest) -> None:
        config, runtime = self.workshop.config, self.workshop.runtime
        batch = config.train_batch_size * config.gradient_accumulation_steps * runtime.num_processes
        update = Update(
            phase.parameters(), config, phase.max_steps, batch, runtime.dtype, runtime.device
        )
        if start and self.checkpoint is not None:
            update.load_state(self.checkpoint.optimizer_state())
        for result in train_steps(phase, update, runtime, start):
            self.done += 1
            try:
                self.journal.add(self.done, phase, result)
                self._between_steps(result, update, stop)
            except NotFiniteError as error:
                # Nothing has moved since the bad step.
                self.done = error.step - 1
                self._save(update)
                raise
        self.journal.flush()

    def _between_steps(self, result: StepResult, update: Update, stop: StopRequest) -> None:
        config = self.workshop.config
        if self.done % config.checkpointing_steps == 0 or self.done == self.total:
            self.journal.flush()
            self._save(update)
        if stop.requested and self.done < self.total:
            self.journal.flush()
            self._save(update)
            raise Stopped(
                f"stopped after step {self.done} of {self.total}; everything so far is in "
                f"{self.folder / f'checkpoint-{self.done}'}\n"
                "  Go on with the same command and --resume_from_checkpoint latest."
            )
        epoch = result.plan.epoch + 1
        wanted = config.validation_prompt is not None and epoch % config.validation_epochs == 0
        if wanted and result.ends_epoch and self.done < self.total:
            self.journal.flush()
            self._draw()

    def _save(self, update: Update) -> None:
        if self.saved == self.done or not self.workshop.runtime.is_main:
            return
        self.writer.write(
            self.done,
            lambda path: results.save_adapter(self.workshop, self.phases, path),
            update.state(),
        )
        self.saved = self.done
        self.record.facts["steps"] = self.done

    def _draw(self) -> None:
        """Draw the validation prompt; a failure is said and costs nothing but the pictures."""
        runtime = self.workshop.runtime
        if not runtime.is_main:
            return
        try:
            for phase in self.phases:
                phase.at_rest()
            prompts, seeds = sample_prompts(self.workshop)
            images = draw_samples(self.workshop, prompts, seeds)
            results.save_samples(images, self.folder / "samples", self.done)
            log_images(runtime.accelerator, images, prompts * len(seeds), self.done)
        except Exception as error:
            console.say(f"the sample pictures failed, training goes on: {error}")
