"""The options of a training run, in the groups that help, forms and reference show.

The docstring under a field is its help text everywhere. Spellings are those of diffusers' scripts.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class ModelFields:
    """Base model"""

    pretrained_model_name_or_path: str
    """The base to teach: a folder in diffusers' layout, a .safetensors or .ckpt checkpoint, a Hub
    id such as stable-diffusion-v1-5/stable-diffusion-v1-5, or the built-in scumble-tiny."""
    revision: str | None = None
    """Branch, tag or commit of the base on the Hub."""
    variant: str | None = None
    """Weight variant of the base, such as fp16: a smaller download where the base offers it."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the base predicts. Set it only where the base's own scheduler setting is wrong or, with
    a Stable Diffusion 2 checkpoint in one file, missing."""
    cache_dir: str | None = None
    """Where downloaded models and data sets are kept."""


@dataclass(kw_only=True)
class DataFields:
    """Pictures and captions"""

    train_data_dir: str | None = None
    """Folder of pictures. Captions come from a .txt or .caption file beside each picture, or from a
    metadata.jsonl or metadata.csv with the columns file_name and text."""
    dataset_name: str | None = None
    """Data set instead of a folder: a Hub id, or a local folder that the datasets library reads."""
    dataset_config_name: str | None = None
    """Configuration of the data set, where it has several."""
    image_column: str = "image"
    """Column of the data set that holds the pictures."""
    caption_column: str = "text"
    """Column of the data set or metadata file that holds a caption or a list of captions."""
    instance_prompt: str | None = None
    """One caption for every picture that has none of its own."""
    on_missing_caption: Literal["error", "empty"] = "error"
    """What to do when some pictures lack a caption: stop and name them, or train them with an empty
    one."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with unreadable pictures: stop and name them all, or leave them out and say so."""
    max_train_samples: int | None = None
    """Use only so many pictures, chosen by the seed: for a quick trial."""
    streaming: bool = False
    """Read the data set once, as it arrives, without storing its pictures."""
    resolution: int | None = None
    """Edge in pixels that pictures are trained at; the base's own size if not given. Halve it when
    memory runs out."""
    center_crop: bool = False
    """Cut the middle out of pictures that are not of the training shape, instead of varying the
    place."""
    random_flip: bool = False
    """Show each picture mirrored half of the time. Not for faces, text or anything with a side."""
    aspect_ratio_buckets: bool = False
    """Train each picture close to its own shape instead of cutting it square. For pictures of mixed
    shapes whose edges matter."""
    image_interpolation_mode: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "lanczos"
    """How pictures are resized."""
    caption_dropout: float = 0.0
    """Share of the samples that see an empty caption; about 0.1 keeps guidance strong in long
    runs."""
    shuffle_caption: bool = False
    """Shuffle the comma-separated parts of a caption anew each time it is shown. For tag lists,
    whose order means nothing; captions are then encoded in every step."""
    keep_tokens: int = 0
    """Leave so many parts at the front of a shuffled caption where they are, such as a trigger."""
    masked_loss: bool = False
    """Learn only what the white of a mask shows: fox.mask.png beside fox.png, of the same size. For
    subjects that are always seen on the same ground."""
    unmasked_weight: float = 0.0
    """How much the black of a mask still counts, from 0 to below 1; about 0.1 keeps the
    surroundings from drifting."""
    dataloader_num_workers: int = 0
    """Threads that decode pictures while they are checked and encoded; training itself needs
    none."""
    cache_latents: bool = True
    """Keep encoded pictures and captions on disk, so that the next run starts at once. Without it
    they stay in memory."""
    latent_cache_dir: str | None = None
    """Where encoded pictures and captions are kept; the user's cache folder if not given."""


@dataclass(kw_only=True)
class AdapterFields:
    """Adapter"""

    adapter_type: str = "lora"
    """Kind of adapter. lora: the fastest and leanest, read by every program; start here. dora: LoRA
    with a length for each output, often better at small ranks. loha: rank squared in a file twice
    as large, for broad styles. lokr: the smallest files, well behaved at high learning rates."""
    rank: int | None = None
    """Width of the low-rank matrices: 4, or 16 for pivotal tuning. 4 to 8 for a style, 16 to 32
    for fine detail; the file grows with it."""
    alpha: float | None = None
    """The change is scaled by alpha / rank; equal to the rank if not given, so that the scale is
    1."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA, arXiv:2312.03732), so that a high rank learns as
    fast as a low one. Give an --alpha then: the rank itself would make it very fast."""
    adapter_init: Literal["gaussian", "kaiming", "pissa"] = "gaussian"
    """Start values: gaussian as in diffusers; kaiming as in PEFT and kohya, which moves several
    times slower at the same learning rate; pissa from the largest parts of the frozen weights
    (arXiv:2404.02948), which learns faster and doubles the rank in the file. For lora and dora;
    pissa for lora alone."""
    decompose_factor: int = -1
    """Of lokr: the longest edge of its small factor, such as 8; a larger one makes smaller files.
    -1 divides as evenly as possible."""
    lora_dropout: float = 0.0
    """Share of an adapter's inputs that are switched off in each step; up to 0.1 helps against
    overfitting."""
    rank_dropout: float = 0.0
    """Share of the ranks that are switched off in each step; up to 0.1 helps against
    overfitting."""
    target_modules: tuple[str, ...] = ()
    """Layers to adapt, as ends of module names: to_q attn2.to_k down_blocks.*.ff.net.0.proj, each
    with :rank or :rank:alpha behind it if it should differ. The attention layers to_q to_k to_v
    to_out.0 if not given."""
    layer_learning_rates: tuple[str, ...] = ()
    """Other rates for some layers, as ends of module names with a rate behind each:
    down_blocks.*:5e-5 mid_block.*:2e-4. The last that matches decides."""
    lora_plus_ratio: float = 1.0
    """The matrices that start from zero learn so many times faster (LoRA+, arXiv:2402.12354); 8 to
    16 often learns faster, with a lower learning rate."""


@dataclass(kw_only=True)
class OptimizerFields:
    """Optimizer and loss"""

    learning_rate: float | None = None
    """Step size: 1e-4 for adapters, 5e-4 for the rows of textual inversion, 1e-5 for full
    fine-tuning. Lower it when the samples turn garish, raise it when nothing changes."""
    scale_lr: bool = False
    """Multiply the learning rate by batch size, accumulation and number of processes."""
    lr_scheduler: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
    ] = "constant"
    """How the learning rate runs over the steps."""
    lr_warmup_steps: int = 0
    """Steps over which the learning rate rises from 0, in each phase; constant has no warm-up."""
    lr_num_cycles: int = 1
    """Restarts of cosine_with_restarts."""
    lr_power: float = 1.0
    """Exponent of polynomial."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this norm; 0 turns clipping off."""
    use_8bit_adam: bool = False
    """Adam with 8-bit state from bitsandbytes. Saves little here: LoRA's state is small."""
    adam_beta1: float = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: float = 0.999
    """Decay of AdamW's second moment."""
    adam_weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    adam_epsilon: float = 1e-8
    """AdamW's guard against division by zero."""
    ema_decay: float | None = None
    """Save and draw with a running average of what is learnt, such as 0.99: each step keeps so much
    of it. Smooths out small batches; try it in runs of some hundred steps or more."""
    snr_gamma: float | None = None
    """Min-SNR weighting of the loss (arXiv:2303.09556); 5.0 often learns faster."""
    noise_offset: float = 0.0
    """Add a random level per channel to the noise; about 0.1 teaches very dark and very bright
    pictures."""
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    """Which noise levels are trained: all alike, or the middle ones more often."""


@dataclass(kw_only=True)
class RunFields:
    """Run"""

    output_dir: str = "sd-model-finetuned-lora"
    """Folder for everything that the run writes. It must not hold another run."""
    seed: int = 0
    """Fixes every random draw: the same seed and settings give the same adapter."""
    train_batch_size: int | None = None
    """Pictures per step and process: 16 for many captioned pictures, 1 for a subject's few. Set it
    to 1 first when memory runs out."""
    gradient_accumulation_steps: int = 1
    """Batches that are added up for one step: a larger batch in the memory of a small one."""
    num_train_epochs: int | None = None
    """Passes over the pictures, where max_train_steps is not given: 100 to 300, by method."""
    max_train_steps: int | None = None
    """Steps of the optimizer in all; overrides num_train_epochs."""
    gradient_checkpointing: bool = False
    """Compute activations twice to save memory: about a third slower. --memory lowest saves as
    much for a tenth."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Number format of the frozen base. fp16 or bf16 halves its memory; the adapter stays fp32.
    What accelerate launch says if not given."""
    allow_tf32: bool = False
    """Allow the faster TF32 arithmetic on NVIDIA cards from Ampere on."""
    enable_xformers_memory_efficient_attention: bool = False
    """The same as --attention xformers."""
    checkpointing_steps: int = 500
    """Save a checkpoint to resume from every so many steps."""
    checkpoints_total_limit: int | None = None
    """Keep only so many checkpoints, the newest."""
    resume_from_checkpoint: str | None = None
    """Go on from a checkpoint: latest, or the path of one."""
    deterministic: bool = False
    """Compute with kernels that give the same bits each time, and stop where there is none. Free on
    a processor; on a GPU some attention kernels are slower, and --attention xformers and --compile
    are refused."""
    debug_batches: int = 0
    """Before training, write what the model really sees in the next so many steps into the folder
    debug: the latents drawn back into pictures, with their captions, bucket, crop and noise."""
    local_rank: int = -1
    """Set by launchers; the environment decides."""


@dataclass(kw_only=True)
class ValidationFields:
    """Sample pictures"""

    validation_prompt: str | None = None
    """Draw this prompt while training, with the same code as scumble generate."""
    num_validation_images: int = 4
    """How many pictures to draw of it."""
    validation_epochs: int | None = None
    """Draw, and measure the loss on held-out pictures, every so many epochs: 1, or 50 where an
    epoch is a handful of pictures."""
    validation_steps: int | None = None
    """Do so every so many steps instead."""
    validation_share: float = 0.0
    """Hold back so large a share of the pictures, and measure the loss on them, always
    at the same noise. The checkpoint that did best is kept in the folder best, and becomes the
    result."""
    validation_data_dir: str | None = None
    """Measure on the pictures of this folder instead, captioned like the training folder."""
    early_stop: int | None = None
    """End the training when so many measurements in a row bring nothing better."""
    before_after: bool = True
    """At the end, draw the same prompts with and without the adapter side by side: the validation
    prompt, or captions of the pictures."""
    num_inference_steps: int = 25
    """Denoising steps of a sample picture."""
    guidance_scale: float = 7.5
    """How closely sample pictures follow the prompt."""


@dataclass(kw_only=True)
class ReportFields:
    """Trackers and the Hub"""

    report_to: tuple[str, ...] = ()
    """Trackers to log to: tensorboard, wandb, trackio, ..., several of them, all that are
    installed, or none; tensorboard where it is installed if not given. Losses are always in
    log.jsonl in the output folder."""
    logging_dir: str = "logs"
    """Folder of the trackers' files, inside the output folder."""
    push_to_hub: bool = False
    """Upload the result to the Hub. Whether that may be done is asked before the training; scumble
    push does it later."""
    hub_model_id: str | None = None
    """Repository to upload to, as user/name or a name below your own; the name of the output
    folder if not given."""
    hub_private: bool = False
    """Make the repository visible to you alone."""
    hub_token: str | None = field(default=None, repr=False)
    """Token for the upload. Better: log in once with hf auth login, or put it into HF_TOKEN, where
    no list of processes shows it."""
