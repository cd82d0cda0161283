"""The command lines of diffusers' other scripts, from the examples folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "train_dreambooth_lora": """
accelerate launch train_dreambooth_lora.py \
  --pretrained_model_name_or_path=$MODEL_NAME  \
  --instance_data_dir=data/creature_pip \
  --class_data_dir=$OUTPUT_DIR/../class \
  --with_prior_preservation --prior_loss_weight=1.0 \
  --instance_prompt="a photo of sks dog" --class_prompt="a photo of dog" \
  --output_dir=$OUTPUT_DIR \
  --resolution=64 \
  --train_text_encoder \
  --train_batch_size=1 --sample_batch_size=2 \
  --gradient_accumulation_steps=1 \
  --checkpointing_steps=2 \
  --learning_rate=1e-4 \
  --report_to="tensorboard" \
  --lr_scheduler="constant" \
  --lr_warmup_steps=0 \
  --max_train_steps=3 --num_class_images=2 \
  --prior_generation_precision=fp32 \
  --validation_prompt="A photo of sks dog in a bucket" \
  --validation_epochs=25 --num_inference_steps=2 --num_validation_images=1 \
  --seed="0"
""",
    "textual_inversion": """
accelerate launch textual_inversion.py \
  --pretrained_model_name_or_path=$MODEL_NAME \
  --train_data_dir=data/creature_pip \
  --learnable_property="object" \
  --placeholder_token="<cat-toy>" \
  --initializer_token="creature" \
  --resolution=64 \
  --train_batch_size=1 \
  --gradient_accumulation_steps=4 \
  --max_train_steps=3 --save_steps=2 --repeats=100 \
  --learning_rate=5.0e-04 \
  --scale_lr \
  --lr_scheduler="constant" \
  --lr_warmup_steps=0 --no_before_after \
  --output_dir=$OUTPUT_DIR
""",
}
LEFT = {
    "train_dreambooth_lora": {"pytorch_lora_weights.safetensors", "checkpoint-2", "sample_0.png"},
    "textual_inversion": {"learned_embeds.safetensors", "checkpoint-3"},
}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("script", COMMANDS)
def test_the_scripts_own_command(script: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    environment = os.environ | {
        "MODEL_NAME": "scumble-tiny",
        "OUTPUT_DIR": str(output),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", COMMANDS[script]],
        cwd=ROOT / "examples",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert LEFT[script] <= {path.name for path in output.iterdir()}
