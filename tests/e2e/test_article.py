"""The 2023 article's command line, from the examples folder, through accelerate's launcher."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dataset(tmp_path):
    """The demo's pictures as a data set with a metadata file, as the article's has captions."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = []
    for picture in sorted((ROOT / "examples" / "data" / "style_neon").glob("*.png"))[:8]:
        shutil.copy(picture, folder)
        caption = picture.with_suffix(".txt").read_text().strip()
        rows.append(json.dumps({"file_name": picture.name, "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.mark.slow
def test_the_articles_command(dataset, tmp_path):
    command = """
accelerate launch --mixed_precision="fp16"  train_text_to_image_lora.py \
  --pretrained_model_name_or_path=$MODEL_NAME \
  --dataset_name=$DATASET_NAME \
  --dataloader_num_workers=8 \
  --resolution=64 --center_crop --random_flip \
  --train_batch_size=1 \
  --gradient_accumulation_steps=4 \
  --max_train_steps=3 \
  --learning_rate=1e-04 \
  --max_grad_norm=1 \
  --lr_scheduler="cosine" --lr_warmup_steps=0 \
  --output_dir=${OUTPUT_DIR} \
  --report_to=tensorboard \
  --checkpointing_steps=2 \
  --validation_prompt="Totoro" --num_validation_images=1 --num_inference_steps=2 \
  --seed=1337
"""
    output = tmp_path / "pokemon"
    environment = os.environ | {
        "MODEL_NAME": "scumble-tiny",
        "DATASET_NAME": str(dataset),
        "OUTPUT_DIR": str(output),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT / "examples",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (output / "checkpoint-2").is_dir()
    with safe_open(output / "pytorch_lora_weights.safetensors", framework="pt") as file:
        assert file.metadata()["base_model"] == "scumble-tiny"
    entries = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    log = [entry for entry in entries if "loss" in entry]
    assert len(log) == 3
    # The article's --max_grad_norm=1 and cosine schedule are at work.
    assert log[0]["lr"] == 1e-4
    assert log[-1]["lr"] < 1e-4
