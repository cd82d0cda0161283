"""One short run of every method that goes through every phase it has."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fork_server import ForkServer, Job, Outcome
from PIL import Image, ImageDraw

from scumble.cli.main import run

COLOURS = ("red", "green", "blue", "yellow")

_EVERY = """
    --pretrained_model_name_or_path scumble-tiny --resolution 64 --train_batch_size 2 --rank 2
    --target_modules to_q
    --max_train_steps 4 --checkpointing_steps 2 --learning_rate 1e-3 --random_flip
    --lr_scheduler cosine --validation_share 0.25 --num_validation_images 1
    --num_inference_steps 1 --report_to none --memory balanced
"""
_WORD = (
    "--placeholder_token <pip> --initializer_token circle --learnable_property object "
    "--validation_steps 3 --validation_prompt <pip>"
)

RECIPES = {
    "text_to_image": (
        "--train_data_dir pictures --checkpoints_total_limit 1 --caption_dropout 0.3 "
        "--rank_dropout 0.2 --ema_decay 0.9 --validation_steps 2 --validation_prompt circle"
    ),
    "dreambooth": (
        "--instance_data_dir pictures --instance_prompt pip --with_prior_preservation "
        "--class_data_dir class --class_prompt circle --num_class_images 2 --sample_batch_size 1 "
        "--train_text_encoder --validation_steps 3 --validation_prompt pip"
    ),
    "textual_inversion": f"--train_data_dir pictures {_WORD}",
    "pivotal_tuning": f"--train_data_dir pictures {_WORD}",
    "full": "--train_data_dir pictures --validation_steps 2 --validation_prompt circle",
}
"""Method -> what it is told beyond what all are told, in a workplace."""

NOT_FOR = {
    "textual_inversion": ("--rank", "--target_modules"),
    "full": ("--rank", "--target_modules", "--memory"),
}


@dataclass(frozen=True)
class Workplace:
    """A folder in which one run is started, cut off and resumed; it becomes the working directory.

    Args:
        folder: with the pictures, the output, the cache and what runs say.
        method: that trains.
        extra: further flags.
    """

    folder: Path
    method: str
    extra: Sequence[str] = ()

    @property
    def out(self) -> Path:
        """The run's output folder."""
        return self.folder / "out"

    @property
    def cache(self) -> Path:
        """What runs remember between them."""
        return self.folder / "cache"

    def prepare(self) -> None:
        """Draw the pictures."""
        pictures = self.folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        for number, colour in enumerate(COLOURS):
            image = Image.new("RGB", (96, 64), "black")
            ImageDraw.Draw(image).ellipse((8 + number, 12, 48, 52), colour)
            image.save(pictures / f"{number}.png")
            (pictures / f"{number}.txt").write_text(f"a {colour} circle at night")

    def arguments(self, resume: bool = False) -> list[str]:
        """The command line of the run."""
        words = _EVERY.split()
        for flag in NOT_FOR.get(self.method, ()):
            place = words.index(flag)
            del words[place : place + 2]
        words += [*RECIPES[self.method].split(), *self.extra, "--output_dir", "out"]
        words += ["--resume_from_checkpoint", "latest"] if resume else []
        return ["train", self.method, *words]

    def job(self, resume: bool = False, **options: object) -> Job:
        """The run as a job of the server."""
        number = len(list(self.folder.parent.glob(f"{self.folder.name}-said-*.txt")))
        return Job(
            self.arguments(resume),
            f"{self.folder}-said-{number}.txt",  # not in it: its disk may be full
            {"XDG_CACHE_HOME": str(self.cache), "LOCALAPPDATA": str(self.cache)},
            str(self.folder),
            **options,  # type: ignore[arg-type]
        )

    def run(self, server: ForkServer, resume: bool = False, **options: object) -> Outcome:
        """Run to the end, or to the moment that the options name."""
        return server.run(self.job(resume, **options))

    def run_here(self, resume: bool = False) -> int:
        """Run in this process; the exit code."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            return run(self.arguments(resume))
        finally:
            os.chdir(before)
