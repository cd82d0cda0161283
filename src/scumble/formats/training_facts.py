"""How an adapter was trained, as our files tell it and as kohya's metadata does."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from scumble.errors import UserError

TRAINING = "training"
"""Metadata key of our files whose value is one JSON object. Every field may lack:

- `name`, `description`: of the adapter, for menus.
- options of the run, named and valued as its flags are: those of `SAME` and `resolution`.
- `prediction_type`: "epsilon" or "v_prediction", of the base; `text_width`: of its text's numbers.
- `steps`, `epochs`: how many were done. `pictures`, `class_pictures`: how many there were.
- `started_at`, `finished_at`: in seconds since 1970. Our own runs leave them out: equal trainings
  give equal bytes.
- `folders`: name of a folder of pictures -> {"n_repeats": int, "img_count": int}.
- `tags`: name of a folder -> {part of a caption -> how many captions have it}.
- `buckets`: list of [width in px, height in px, how many pictures].
"""

SAME = {
    "name": "ss_output_name",
    "steps": "ss_steps",
    "epochs": "ss_epoch",
    "pictures": "ss_num_train_images",
    "class_pictures": "ss_num_reg_images",
    "started_at": "ss_training_started_at",
    "finished_at": "ss_training_finished_at",
    "clip_skip": "ss_clip_skip",
    "seed": "ss_seed",
    "learning_rate": "ss_learning_rate",
    "text_encoder_lr": "ss_text_encoder_lr",
    "lr_scheduler": "ss_lr_scheduler",
    "lr_warmup_steps": "ss_lr_warmup_steps",
    "optimizer": "ss_optimizer",
    "max_grad_norm": "ss_max_grad_norm",
    "max_train_steps": "ss_max_train_steps",
    "num_train_epochs": "ss_num_epochs",
    "train_batch_size": "ss_batch_size_per_device",
    "gradient_accumulation_steps": "ss_gradient_accumulation_steps",
    "gradient_checkpointing": "ss_gradient_checkpointing",
    "mixed_precision": "ss_mixed_precision",
    "noise_offset": "ss_noise_offset",
    "snr_gamma": "ss_min_snr_gamma",
    "prior_loss_weight": "ss_prior_loss_weight",
    "caption_dropout": "ss_caption_dropout_rate",
    "shuffle_caption": "ss_shuffle_caption",
    "keep_tokens": "ss_keep_tokens",
    "random_flip": "ss_flip_aug",
    "aspect_ratio_buckets": "ss_enable_bucket",
    "lora_dropout": "ss_network_dropout",
}
"""Field -> kohya's key for the very same thing; values as Python spells them, None included."""

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""What a base predicts, in our words -> in the ModelSpec's."""


@contextmanager
def _refusing_damage() -> Iterator[None]:
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"the metadata '{TRAINING}' is damaged ({error})") from error


def training_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The object under `TRAINING`; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    with _refusing_damage():
        facts = dict(json.loads(metadata.get(TRAINING, "{}")))
        for field in ("folders", "tags"):
            if not isinstance(facts.get(field, {}), Mapping):
                raise TypeError(f"its {field} have no names")
        return facts


def prediction_of(metadata: Mapping[str, str]) -> str:
    """What the base predicts, "epsilon" or "v_prediction"; empty where nothing says it."""
    ours = {theirs: name for name, theirs in PREDICTIONS.items()}
    told = training_facts(metadata).get("prediction_type")
    return str(told or ours.get(metadata.get("modelspec.prediction_type", ""), ""))


def kohya_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """What kohya's keys say of a training; nothing that is not known.

    Raises:
        UserError: a field has another form than `TRAINING` says.
    """
    told = {key: str(facts[field]) for field, key in SAME.items() if field in facts}
    with _refusing_damage():
        if edge := facts.get("resolution"):
            told["ss_resolution"] = f"({edge}, {edge})"
        if "folders" in facts:
            told["ss_dataset_dirs"] = json.dumps(dict(facts["folders"]))
        if "tags" in facts:
            told["ss_tag_frequency"] = json.dumps(dict(facts["tags"]))
        if "buckets" in facts:
            buckets = {
                str(number): {"resolution": [width, height], "count": count}
                for number, (width, height, count) in enumerate(facts["buckets"])
            }
            told["ss_bucket_info"] = json.dumps({"buckets": buckets})
    return told


def spec_facts(facts: Mapping[str, Any]) -> dict[str, str]:
    """What the ModelSpec's keys say of a training; nothing that is not known.

    Raises:
        UserError: a field has another form than `TRAINING` says.
    """
    with _refusing_damage():
        edge = facts.get("resolution")
        told = {
            "title": facts.get("name"),
            "description": facts.get("description"),
            "prediction_type": PREDICTIONS.get(facts.get("prediction_type", "")),
            "encoder_layer": facts.get("clip_skip"),
            "resolution": f"{edge}x{edge}" if edge else None,
            "date": _date(facts.get("finished_at") or facts.get("started_at")),
        }
    return {f"modelspec.{key}": str(value) for key, value in told.items() if value is not None}


def _date(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return moment.isoformat("T", "seconds") + "Z"
