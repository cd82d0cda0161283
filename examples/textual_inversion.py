"""Textual inversion with the command line of diffusers' script of this name.

accelerate launch textual_inversion.py --pretrained_model_name_or_path=$MODEL_NAME \
      --train_data_dir=$DATA_DIR --placeholder_token="<cat-toy>" --initializer_token="toy" ...
"""

import sys

from scumble.cli.main import main

# The script captions every picture by itself, as an object unless told otherwise.
words = sys.argv[1:]
if not any(word.startswith("--learnable_property") for word in words):
    words += ["--learnable_property", "object"]
main(["train", "textual_inversion", *words])
