"""Stable Diffusion 1.x and 2.x: one UNet, one CLIP text encoder, a KL autoencoder.

Shape suffixes: B batch, C channels, H height, W width, L tokens, D text width.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from scumble import console
from scumble.diffusion.objectives import DiscreteObjective, Prediction
from scumble.diffusion.schedules import BETAS, DiscreteSchedule, schedule_from_betas
from scumble.errors import UserError, first_line
from scumble.families import single_file
from scumble.families.base import Components, Conditioning, Geometry, Posterior
from scumble.families.hub_failures import explain
from scumble.families.layer_names import KEY_NAMES
from scumble.families.locate import BaseModel
from scumble.families.streamed import load_streamed
from scumble.formats.imposters import unmasked
from scumble.formats.pickled import is_refused

SETTINGS: dict[str, dict[str, type]] = {
    "unet": {"sample_size": int, "block_out_channels": list},
    "vae": {"block_out_channels": list},
    "scheduler": {"num_train_timesteps": int},
}
"""Component -> what is taken from its configuration, and must be there."""


class StableDiffusion:
    """The family of Stable Diffusion 1.x and 2.x (arXiv:2112.10752)."""

    name = "stable_diffusion"
    pipeline_classes: tuple[str, ...] = ("StableDiffusionPipeline",)
    components: tuple[str, ...] = ("unet", "text_encoder", "vae")
    default_targets: Mapping[str, tuple[str, ...]] = {
        "unet": ("to_q", "to_k", "to_v", "to_out.0"),
        "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
    }
    key_names = KEY_NAMES

    def load(self, components: Components, names: Sequence[str], dtype: torch.dtype) -> None:
        """Load the named components, straight into `dtype`, in evaluation mode and frozen.

        Raises:
            UserError: a component is missing or its files cannot be read.
        """
        base = components.base
        for name in names:
            if name in components:
                continue
            if base.is_checkpoint:
                module = single_file.load_component(base.location, name, dtype)
            else:
                base.config(name)  # refused before anything is built of it
                # transformers calls the format of the weights dtype, diffusers torch_dtype.
                option = "dtype" if name == "text_encoder" else "torch_dtype"
                find = partial(_component_class, name)
                is_denoiser = name == self.components[0]
                layout = components.denoiser_format if is_denoiser else torch.contiguous_format
                module = load_streamed(
                    find, base.files(name), base.variant, dtype, layout
                ) or _from_pretrained(find(), base, name, **{option: dtype})
            _require_finite(module, base, name)
            components.parts[name] = module.eval().requires_grad_(False)
        if "text_encoder" in names and "tokenizer" not in components:
            components.parts["tokenizer"] = _load_tokenizer(base)

    def geometry(self, base: BaseModel) -> Geometry:
        """Native edge and size step in pixels; the step is 64 for Stable Diffusion itself.

        Raises:
            UserError: the base does not say its sizes, or wants to be shown more than noise.
        """
        unet, vae = self._config(base, "unet"), self._config(base, "vae")
        if unet.get("in_channels", 4) != vae.get("latent_channels", 4):
            raise UserError(
                f"the unet of {base.name} takes {unet['in_channels']} channels: it is made to fill "
                "in or change pictures, not to draw them",
                "Use the base that it was made from.",
            )
        vae_factor = 2 ** (len(vae["block_out_channels"]) - 1)
        unet_factor = 2 ** (len(unet["block_out_channels"]) - 1)
        native_px = int(unet["sample_size"]) * vae_factor
        # The pipeline itself insists on multiples of 8, whatever the VAE.
        return Geometry(native_px, vae_factor * unet_factor, max(vae_factor, 8))

    def objective(self, base: BaseModel) -> DiscreteObjective:
        """Build the training objective from the scheduler's own configuration.

        Raises:
            UserError: a schedule or prediction that this family does not have.
        """
        config = self._config(base, "scheduler")
        is_told = base.prediction_type is not None or not base.is_checkpoint
        if not is_told and (assumed := single_file.assumption(base.location)):
            console.say(assumed)
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in list(Prediction):
            raise UserError(
                f"the base {base.name} predicts '{prediction}', which cannot be trained",
                "Use a base with epsilon or v_prediction.",
            )
        return DiscreteObjective(_schedule(config, base.name), Prediction(prediction))

    def encode_prompts(self, components: Components, prompts: Sequence[str]) -> Conditioning:
        """Turn prompts into text states, as StableDiffusionPipeline does.

        Gradients reach what trains in the text encoder.

        Returns:
            "states" of shape (B, L, D).
        """
        tokenizer, encoder = components["tokenizer"], components["text_encoder"]
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask_BL = None
        if getattr(encoder.config, "use_attention_mask", False):
            mask_BL = tokens.attention_mask.to(encoder.device)
        ids_BL = tokens.input_ids.to(encoder.device)
        return {"states": encoder(ids_BL, attention_mask=mask_BL)[0]}

    @torch.no_grad()
    def encode_pixels(self, components: Components, pixels_BCHW: Tensor) -> Posterior:
        """Encode pictures in [-1, 1] into the scaled posterior of their latents."""
        vae = components["vae"]
        posterior = vae.encode(pixels_BCHW.to(vae.device, vae.dtype)).latent_dist
        scaling = vae.config.scaling_factor
        return Posterior(posterior.mean * scaling, posterior.std * scaling)

    @torch.no_grad()
    def decode_latents(self, components: Components, latents_BCHW: Tensor) -> Tensor:
        """Decode scaled latents into pictures in about [-1, 1]."""
        vae = components["vae"]
        latents_BCHW = latents_BCHW.to(vae.device, vae.dtype) / vae.config.scaling_factor
        return cast(Tensor, vae.decode(latents_BCHW).sample)

    def predict(
        self,
        components: Components,
        noisy_latents_BCHW: Tensor,
        timesteps_B: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """Run the UNet, shape (B, C, H, W)."""
        unet = components["unet"]
        states = conditioning["states"]
        return cast(Tensor, unet(noisy_latents_BCHW, timesteps_B, states).sample)

    def pipeline(self, components: Components) -> Any:
        """Assemble a StableDiffusionPipeline of the loaded components."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=components["vae"],
            text_encoder=components["text_encoder"],
            tokenizer=components["tokenizer"],
            unet=components["unet"],
            scheduler=DDIMScheduler.from_config(self._config(components.base, "scheduler")),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def _config(self, base: BaseModel, component: str) -> dict[str, Any]:
        is_scheduler = component == "scheduler"
        if base.is_checkpoint:
            config = single_file.config(base.location, component)
        else:
            config = base.config(component, f"{'scheduler_' * is_scheduler}config.json")
        for key, kind in SETTINGS[component].items():
            value = config.get(key)
            if not isinstance(value, kind) or not value:
                raise UserError(
                    f"the configuration of the {component} of {base.name} has no '{key}' that can "
                    f"be meant: {value!r}",
                    "It is damaged, or of another kind of model: fetch the model again.",
                )
        if is_scheduler and base.prediction_type is not None:
            config["prediction_type"] = base.prediction_type
        return config


def _component_class(name: str) -> Any:
    if name == "text_encoder":
        from huggingface_hub.utils.tqdm import enable_progress_bars
        from transformers import CLIPTextModel
        from transformers.utils import logging

        # Loading weights takes a moment and needs no bar; a download does.
        logging.disable_progress_bar()
        enable_progress_bars()
        return CLIPTextModel
    from diffusers import AutoencoderKL, UNet2DConditionModel

    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[name]


def _load_tokenizer(base: BaseModel) -> Any:
    from transformers import CLIPTokenizer

    if base.is_checkpoint:
        return single_file.load_tokenizer(base.location)
    return _from_pretrained(CLIPTokenizer, base, "tokenizer")


def _from_pretrained(cls: Any, base: BaseModel, name: str, **options: Any) -> Any:
    is_module = name != "tokenizer"
    if is_module:
        options |= {"output_loading_info": True}
        options |= {"variant": base.variant} if base.variant is not None else {}
    try:
        loaded = cls.from_pretrained(
            base.location,
            subfolder=name,
            revision=base.revision,
            cache_dir=base.cache_dir,
            **options,
        )
    except Exception as error:
        if not Path(base.location).exists():
            raise explain(error, base.location, f"the {name}") from error
        reason = first_line(error)
        if is_refused(error):  # torch's own text advises to switch the protection off
            reason = "its pickle is damaged or holds more than tensors; nothing of it was run"
        elif "ignore_mismatched_sizes" in reason:  # points at a report that is not shown
            reason = "its weights have other shapes than its configuration says"
        advice = filter(None, map(unmasked, base.files(name)))
        raise UserError(
            f"cannot load the {name} of {base.name}: {reason}",
            next(advice, "The model may be incomplete or damaged: fetch it again."),
        ) from error
    # The libraries only warn: of weights that they made up, and not at all of an empty vocabulary.
    if is_module:
        loaded, info = loaded
        lacking = [f"'{key}'" for key in sorted(info["missing_keys"])]
    else:
        lacking = [] if single_file.has_vocabulary(loaded) else ["its vocabulary"]
    if lacking:
        raise UserError(
            f"the {name} of {base.name} is incomplete: it lacks {lacking[0]}",
            "Fetch the model again.",
        )
    return loaded


def _require_finite(module: torch.nn.Module, base: BaseModel, name: str) -> None:
    """Refuse weights that would turn everything into NaN, as a broken merge or rounding leaves.

    Raises:
        UserError: naming the first of them.
    """
    for key, tensor in module.state_dict().items():
        # The sum is finite where all are, or else it overflowed; it costs next to nothing.
        if not (tensor.sum().isfinite() or tensor.isfinite().all()):
            raise UserError(
                f"the {name} of {base.name} holds NaN or infinite values in '{key}'",
                "It is damaged: fetch the model again, or use another one.",
            )


def _schedule(config: dict[str, Any], name: str) -> DiscreteSchedule:
    try:
        return _schedule_of(config, name)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(
            f"the configuration of the scheduler of {name} makes no noise schedule: "
            f"{first_line(error)[:100]}",
            "It is damaged: fetch the model again.",
        ) from error


def _schedule_of(config: dict[str, Any], name: str) -> DiscreteSchedule:
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    elif config.get("beta_schedule", "linear") in BETAS:
        betas = BETAS[config.get("beta_schedule", "linear")](
            config.get("beta_start", 0.0001),
            config.get("beta_end", 0.02),
            config.get("num_train_timesteps", 1000),
        )
    else:
        raise UserError(
            f"{name}: its noise schedule '{config['beta_schedule']}' is not known",
            f"Known: {', '.join(BETAS)}.",
        )
    zero_terminal_snr = bool(config.get("rescale_betas_zero_snr", False))
    return schedule_from_betas(betas, zero_terminal_snr=zero_terminal_snr)
