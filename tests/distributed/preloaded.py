"""What a process of a run imports, so that those that are forked from here have it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TQDM_DISABLE"] = "1"

import accelerate  # noqa: F401
import transformers.models.clip.modeling_clip
import transformers.models.clip.tokenization_clip  # noqa: F401

import scumble.cli.train
import scumble.training.run  # noqa: F401
