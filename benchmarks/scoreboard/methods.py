"""What the scoreboard compares: data sets, methods with their settings, and the jobs of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STYLE, SUBJECT = "style", "subject"


@dataclass(frozen=True)
class Lesson:
    """A data set: what it teaches, its trigger in captions, and the new word instead of it."""

    kind: str
    trigger: str
    word: str
    initializer: str

    def phrase(self, trigger: str) -> str:
        """The words of a caption that stand for what is taught."""
        return f"{trigger} style" if self.kind == STYLE else f"{trigger} creature"


LESSONS = {
    "style_neon": Lesson(STYLE, "neon", "<neon>", "neon"),
    "style_ink": Lesson(STYLE, "ink", "<ink>", "ink"),
    "creature_pip": Lesson(SUBJECT, "sks", "<pip>", "creature"),
    "creature_mo": Lesson(SUBJECT, "ohwx", "<mo>", "creature"),
}
"""Folder in examples/data -> what is in it."""

BLOCKS = "to_q to_k to_v to_out.0 ff.net.0.proj ff.net.2 proj_in proj_out"
COMMON = {
    "pretrained_model_name_or_path": "scumble-tiny",
    "max_train_steps": 150,
    "train_batch_size": 4,
    "lr_scheduler": "cosine",
    "before_after": False,
    "checkpointing_steps": 100_000,
}
LORA = {"learning_rate": 3e-3, "rank": 8, "target_modules": BLOCKS}
TEXT = {"train_text_encoder": True, "text_encoder_lr": 1e-3}
PRIOR = {"with_prior_preservation": True, "class_prompt": "a creature"}
CLASS_PICTURES = {"class_data_dir": "{work}/class/{lesson}", "num_class_images": 40}
BASE_PRIOR = PRIOR | {"prior_from": "base"}
WORD = {"placeholder_token": "{word}", "initializer_token": "{initializer}", "num_vectors": 2}

ADAPTER = "adapter"
"""Verb of a LoRA: text_to_image for a style, dreambooth for a subject."""


@dataclass(frozen=True)
class Method:
    """A row: its name in the tables, the verb of `scumble train`, what it adds to COMMON."""

    label: str
    verb: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = (STYLE, SUBJECT)

    @property
    def learns_word(self) -> bool:
        """Whether it reads the copy of the data set that has the new word."""
        return "placeholder_token" in self.settings


METHODS = {
    "base": Method("base, untaught", None),
    "full": Method("full fine-tuning", "full", {"learning_rate": 3e-4}),
    **{
        f"lora_r{rank}": Method(f"LoRA, rank {rank}", ADAPTER, LORA | {"rank": rank})
        for rank in (1, 2, 4, 8, 16)
    },
    "text": Method("rank 8 + text encoder", "dreambooth", LORA | TEXT, (SUBJECT,)),
    "prior_images": Method(
        "rank 8 + prior, class pictures", "dreambooth", LORA | PRIOR | CLASS_PICTURES, (SUBJECT,)
    ),
    "prior_base": Method(
        "rank 8 + prior from the base", "dreambooth", LORA | BASE_PRIOR, (SUBJECT,)
    ),
    "text_prior_base": Method(
        "rank 8 + text encoder + prior from the base",
        "dreambooth",
        LORA | TEXT | BASE_PRIOR,
        (SUBJECT,),
    ),
    "textual_inversion": Method(
        "textual inversion", "textual_inversion", WORD | {"learning_rate": 1e-3}
    ),
    "pivotal_tuning": Method(
        "pivotal tuning",
        "pivotal_tuning",
        WORD | LORA | {"pivot": 0.5, "row_learning_rate": 1e-3},
    ),
}
"""Name -> method, in the order of the tables."""

QUICK = {"max_train_steps": 2, "num_class_images": 2, "sample_batch_size": 2}
"""Replaces whatever of these a method has, to see that everything runs."""


@dataclass(frozen=True)
class Job:
    """One training and its scores."""

    lesson: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """What --only is matched with, and the job's folder."""
        return f"{self.lesson}/{self.method}/{self.seed}"

    @property
    def prompt_trigger(self) -> str:
        """What a prompt says for the trigger."""
        lesson = LESSONS[self.lesson]
        return lesson.word if METHODS[self.method].learns_word else lesson.trigger

    def needs(self) -> list[Job]:
        """Jobs that have to be done first: the pictures to compare with, shared class pictures."""
        if self.method == "base":
            return []
        first = [Job(self.lesson, "base", self.seed)]
        if "class_data_dir" in METHODS[self.method].settings and self.seed:
            first.append(Job(self.lesson, self.method, 0))
        return first


def job_of(name: str) -> Job:
    """The job of a name."""
    lesson, method, seed = name.split("/")
    return Job(lesson, method, int(seed))


def all_jobs(seeds: int) -> Iterator[Job]:
    """Every job, seed 0 of everything first, and the base first of each seed."""
    for seed in range(seeds):
        for name, method in METHODS.items():
            for lesson_name, lesson in LESSONS.items():
                if lesson.kind in method.kinds:
                    yield Job(lesson_name, name, seed)


def settings_of(job: Job, work: str, quick: bool) -> dict[str, Any]:
    """All settings of a job by flag name; paths begin with `work`."""
    lesson, method = LESSONS[job.lesson], METHODS[job.method]
    data = f"{work}/data/{job.lesson}" if method.learns_word else f"examples/data/{job.lesson}"
    settings = COMMON | method.settings
    if quick:
        settings |= {k: v for k, v in QUICK.items() if k in settings}
    if verb_of(job) == "dreambooth":
        settings |= {"instance_data_dir": data, "instance_prompt": "a {phrase}"}
    else:
        settings |= {"train_data_dir": data}
    settings |= {
        "latent_cache_dir": f"{work}/cache",
        "output_dir": f"{work}/{job.name}/out",
        "seed": job.seed,
    }
    words = {
        "work": work,
        "lesson": job.lesson,
        "word": lesson.word,
        "initializer": lesson.initializer,
        "phrase": lesson.phrase(job.prompt_trigger),
    }
    return {k: v.format(**words) if isinstance(v, str) else v for k, v in settings.items()}


def verb_of(job: Job) -> str | None:
    """The training method's name on the command line."""
    verb = METHODS[job.method].verb
    if verb == ADAPTER:
        return "text_to_image" if LESSONS[job.lesson].kind == STYLE else "dreambooth"
    return verb


def training_command(job: Job, work: str, quick: bool) -> list[str]:
    """The words behind `scumble`, run in the project's folder; none for the base."""
    verb = verb_of(job)
    if verb is None:
        return []
    words = ["train", verb]
    for name, value in settings_of(job, work, quick).items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no_{name}")
        elif name == "target_modules":
            words += [f"--{name}", *value.split()]
        else:
            words += [f"--{name}", str(value)]
    return words
