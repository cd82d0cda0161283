"""The shortest training that leaves a real adapter."""

from pathlib import Path


def training(pictures: Path, output: Path, *more: str) -> list[str]:
    """Words of a command that teaches the built-in base for two steps."""
    words = ["train", "text_to_image", "--pretrained_model_name_or_path", "scumble-tiny"]
    words += ["--train_data_dir", str(pictures), "--output_dir", str(output), "--resolution", "64"]
    words += ["--train_batch_size", "2", "--max_train_steps", "2", "--learning_rate", "1e-2"]
    return [*words, "--report_to", "none", *more]
