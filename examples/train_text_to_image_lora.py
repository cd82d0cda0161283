"""Text-to-image LoRA with the command line of the 2023 article.

accelerate launch --mixed_precision="fp16" train_text_to_image_lora.py \
      --pretrained_model_name_or_path=$MODEL_NAME --dataset_name=$DATASET_NAME ...
"""

import sys

from scumble.cli.main import main

main(["train", "text_to_image", *sys.argv[1:]])
