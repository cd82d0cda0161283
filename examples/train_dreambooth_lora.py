"""DreamBooth LoRA with the command line of diffusers' script of this name.

accelerate launch train_dreambooth_lora.py --pretrained_model_name_or_path=$MODEL_NAME \
      --instance_data_dir=$INSTANCE_DIR --instance_prompt="a photo of sks dog" ...
"""

import sys

from scumble.cli.main import main

main(["train", "dreambooth", *sys.argv[1:]])
