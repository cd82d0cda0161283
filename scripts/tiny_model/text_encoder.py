"""The text encoder, taught as CLIP was: captions and pictures that belong together must agree.

Stable Diffusion starts from such an encoder. The image half is thrown away afterwards.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions_tokenizer import MAX_TOKENS, PLACEHOLDERS, STYLE_WORDS, build_tokenizer
from .doodles import to_pixels
from .scenes import Scene, caption, render, sample_scene
from .training_state import Progress, load_if_any, save_atomically, warm_then_cosine

WIDTH = 128
SIGHT_PX = 32


@dataclass(frozen=True)
class ContrastRecipe:
    """How long and how hard the text encoder is pretrained."""

    steps: int = 900
    batch: int = 128
    learning_rate: float = 1e-3
    drop: float = 0.1
    checkpoint_steps: int = 100
    seed: int = 2


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained tiny text encoder of the real class."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = "eager"
    return CLIPTextModel(config)


class ImageEncoder(nn.Sequential):
    """A few strided convolutions: enough to see shape, colour, size and place at 32 x 32."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GroupNorm(8, 64),
            nn.SiLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.GroupNorm(8, 128),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(128 * (SIGHT_PX // 8) ** 2, WIDTH),
        )


def spoken(scene: Scene, rng: random.Random, drop: float, stray: float = 0.1) -> str:
    """A training caption: attributes dropped at random, now and then a word without meaning here.

    Stray words teach the model to draw the rest of the prompt when it meets a placeholder or a
    style it does not know, which is where fine-tuning begins.
    """
    words = caption(scene, rng, drop)
    if rng.random() < stray / 2:
        words = words.replace(scene.shape, f"{rng.choice(PLACEHOLDERS)} {scene.shape}")
    if rng.random() < stray / 2:
        words = f"{words}, {rng.choice([*STYLE_WORDS.split(), *PLACEHOLDERS])} style"
    return words


def pair_batch(rng: random.Random, recipe: ContrastRecipe) -> tuple[Tensor, list[str]]:
    """Pictures at 32 x 32 and their captions."""
    scenes = [sample_scene(rng) for _ in range(recipe.batch)]
    pictures = [
        render(scene).resize((SIGHT_PX, SIGHT_PX), Image.Resampling.BOX) for scene in scenes
    ]
    return to_pixels(pictures), [spoken(scene, rng, recipe.drop) for scene in scenes]


class ContrastivePair(nn.Module):
    """Both encoders, a projection and the learnt temperature."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.image_encoder = ImageEncoder()
        self.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Similarity of every caption to every picture, shape (captions, pictures)."""
        texts = self.text_projection(self.text_encoder(input_ids=tokens).pooler_output)
        images = self.image_encoder(pixels)
        texts = functional.normalize(texts.float(), dim=-1)
        images = functional.normalize(images.float(), dim=-1)
        return self.log_scale.clamp(max=4.6).exp() * texts @ images.T


def contrastive_loss(similarity: Tensor) -> tuple[Tensor, float]:
    """CLIP's symmetric loss, and how often a caption finds its own picture first."""
    own = torch.arange(len(similarity), device=similarity.device)
    loss = functional.cross_entropy(similarity, own) + functional.cross_entropy(similarity.T, own)
    return loss / 2, float((similarity.argmax(1) == own).float().mean())


def train_text_encoder(folder: Path, recipe: ContrastRecipe, device: torch.device) -> CLIPTextModel:
    """Train, or go on from the last checkpoint in `folder`."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    pair = ContrastivePair(build_text_encoder(tokenizer)).to(device)
    optimizer = torch.optim.AdamW(pair.parameters(), recipe.learning_rate, fused=True)
    path, first = folder / "text_encoder.pt", 0
    if (state := load_if_any(path)) is not None:
        pair.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    progress = Progress("text", recipe.steps, first)
    for step in range(first, recipe.steps):
        factor = warm_then_cosine(step, recipe.steps, 50)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor
        rng = random.Random(f"text/{recipe.seed}/{step}")
        pixels, captions = pair_batch(rng, recipe)
        # The causal encoder's end token does not see the padding: short batches lose nothing.
        tokens = tokenizer(captions, padding=True, return_tensors="pt").input_ids
        with torch.autocast(device.type, torch.bfloat16):
            similarity = pair(tokens.to(device), pixels.to(device))
        loss, hits = contrastive_loss(similarity)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.update(step + 1, float(loss.detach()), f"top-1 {hits:.2f}")
        if (step + 1) % recipe.checkpoint_steps == 0 or step + 1 == recipe.steps:
            weights = {"weights": pair.state_dict(), "optimizer": optimizer.state_dict()}
            save_atomically({**weights, "step": step + 1}, path)
    return pair.text_encoder.eval()
