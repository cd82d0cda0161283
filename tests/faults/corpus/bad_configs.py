"""Settings that cannot be meant, on the command line."""

from corpus import Case

USAGE = 2

WRONG_TYPES = {
    "rank": "four",
    "alpha": "much",
    "resolution": "64.5",
    "max_train_steps": "1e3",
    "learning_rate": "1e-4x",
    "caption_dropout": "10%",
    "seed": "0x10",
    "lr_scheduler": "cosin",
    "mixed_precision": "fp8",
    "on_bad_image": "ignore",
    "memory": "lots",
    "base_precision": "int4",
    "random_flip": "maybe",
    "before_after": "2",
    "num_train_epochs": "",
    "guidance_scale": "high",
}
"""Flag -> a word that its kind of field does not take."""


def wrong_type(name: str, value: str) -> Case:
    return Case(
        f"config: --{name} {value!r}",
        lambda place: place.train(f"--{name}", value),
        (name.replace("before_after", "2").replace("random_flip", "maybe"),),
        USAGE,
    )


OUT_OF_RANGE: dict[str, tuple[str, ...]] = {
    "rank": ("0", "-4", "1" + "0" * 30),
    "resolution": ("0", "-64", "65", "1000000"),
    "train_batch_size": ("0", "1" + "0" * 30),
    "gradient_accumulation_steps": ("0",),
    "num_train_epochs": ("0",),
    "max_train_steps": ("0", "-1", "1" + "0" * 30),
    "max_train_samples": ("0",),
    "checkpointing_steps": ("0",),
    "checkpoints_total_limit": ("0",),
    "num_validation_images": ("0",),
    "validation_epochs": ("0",),
    "validation_steps": ("0",),
    "early_stop": ("0",),
    "num_inference_steps": ("0", "1001"),
    "lr_num_cycles": ("0",),
    "lr_warmup_steps": ("-1",),
    "max_grad_norm": ("-1", "nan"),
    "adam_weight_decay": ("-0.1",),
    "noise_offset": ("-0.1", "inf"),
    "dataloader_num_workers": ("-1", "1000000"),
    "keep_tokens": ("-1",),
    "learning_rate": ("0", "-1e-4", "nan", "inf", "1e400"),
    "alpha": ("0", "-1"),
    "snr_gamma": ("0",),
    "adam_epsilon": ("0",),
    "lora_plus_ratio": ("0",),
    "caption_dropout": ("1", "-0.1", "nan"),
    "rank_dropout": ("1",),
    "lora_dropout": ("1.5",),
    "adam_beta1": ("1",),
    "adam_beta2": ("2",),
    "ema_decay": ("1",),
    "validation_share": ("1",),
    "seed": ("-1", "9223372036854775808"),
    "guidance_scale": ("nan",),
    "lr_power": ("inf",),
    "decompose_factor": ("0",),
}
"""Flag -> numbers of the right kind that cannot be meant."""


def out_of_range(name: str, value: str) -> Case:
    return Case(
        f"config: --{name} {value}",
        lambda place: place.train(f"--{name}", value),
        (f"--{name}",),
    )


def words(name: str, *more: str, says: tuple[str, ...], code: int = 1, **changes: object) -> Case:
    return Case(f"config: {name}", lambda place: place.train(*more, **changes), says, code)


def drawn(name: str, *says: str, **changes: object) -> Case:
    settings = {"pretrained_model_name_or_path": "scumble-tiny"} | changes
    return Case(f"config: drawing, {name}", lambda place: place.generate(**settings), says)


NO_TEXT = "caf\udce9"
"""What a terminal of another encoding makes of a word."""

DRAWING = [
    drawn("prompt in another encoding", "--prompt", "UTF-8", prompt=NO_TEXT),
    drawn("prompt with NUL", "--prompt", prompt="a\0b"),
    drawn("negative prompt in another encoding", "--negative_prompt", negative_prompt=NO_TEXT),
    drawn("height without end", "--height", height=10**9),
    drawn("width without end", "--width", width=10**9),
    drawn("more pictures than can be", "--num_images", num_images=10**30),
    drawn("more steps than there are", "--num_inference_steps", num_inference_steps=1001),
    drawn("seed beyond its range", "--seed", seed=2**63),
    drawn("guidance beyond numbers", "circle", guidance_scale=1e39),
]

CONTRADICTIONS = [
    words("no pictures named", train_data_dir=None, says=("--train_data_dir",)),
    words("two kinds of pictures", dataset_name="d", says=("--train_data_dir", "--dataset_name")),
    words("streaming a folder", "--streaming", says=("--streaming", "--dataset_name")),
    words(
        "warm-up longer than the run",
        lr_warmup_steps=5,
        lr_scheduler="linear",
        says=("--lr_warmup_steps", "1 steps"),
    ),
    words(
        "xformers and sdpa",
        "--attention",
        "sdpa",
        "--enable_xformers_memory_efficient_attention",
        says=("--attention sdpa",),
    ),
    words(
        "a share of one picture", validation_share=0.3, says=("--validation_share", "1 pictures")
    ),
    words(
        "measuring twice",
        validation_share=0.3,
        validation_data_dir="v",
        says=("--validation_share", "--validation_data_dir"),
    ),
    words(
        "kept tokens without shuffling", keep_tokens=2, says=("--keep_tokens", "--shuffle_caption")
    ),
    words(
        "rate of a text encoder that rests",
        text_encoder_lr=1e-4,
        says=("--text_encoder_lr", "--train_text_encoder"),
    ),
    words("stop early by nothing", early_stop=3, says=("--early_stop", "--validation_share")),
    words(
        "validate nothing", validation_steps=1, says=("--validation_steps", "--validation_prompt")
    ),
    words("a repository and no push", hub_model_id="a/b", says=("--hub_model_id", "--push_to_hub")),
    words(
        "weight of masks without masks",
        unmasked_weight=0.5,
        says=("--unmasked_weight", "--masked_loss"),
    ),
    words("unknown adapter", adapter_type="lorra", says=("--adapter_type", "lorra", "lora")),
    words("adapter that is only read", adapter_type="ia3", says=("--adapter_type ia3", "lora")),
    words(
        "pissa of lokr",
        adapter_type="lokr",
        adapter_init="pissa",
        says=("--adapter_init pissa", "lora"),
    ),
    words("factor of another type", decompose_factor=8, says=("--decompose_factor", "lokr")),
    words("layers that are not there", target_modules="to_z", says=("to_z",)),
    words("rank of a layer is a word", target_modules="to_q:four", says=("to_q:four",)),
    words("scale of a layer is NaN", target_modules="to_q:4:nan", says=("to_q:4:nan",)),
    words("scale of a layer is infinite", target_modules="to_q:4:inf", says=("to_q:4:inf",)),
    words("caption in another encoding", instance_prompt=NO_TEXT, says=("--instance_prompt",)),
    words("rank of a layer is nothing", target_modules="to_q:0", says=("to_q:0",)),
    words("rate of a layer is a word", layer_learning_rates="to_q:fast", says=("to_q:fast",)),
    words(
        "rate without a layer", layer_learning_rates="1e-4", says=("--layer_learning_rates", "1e-4")
    ),
    words("rate of layers that are not there", layer_learning_rates="to_z:1e-4", says=("to_z",)),
    words("unknown tracker", report_to="tensorbord", says=("tensorbord", "tensorboard")),
    words(
        "log files outside of the output folder",
        logging_dir="../logs",
        says=("--logging_dir", "../logs"),
    ),
    words("log files at the root", logging_dir="/logs", says=("--logging_dir", "/logs")),
    words(
        "a revision of the built-in base, twice",
        pretrained_model_name_or_path="a/b@x",
        revision="y",
        says=("a/b@x", "--revision y"),
    ),
]

COMMAND_LINES = [
    Case("config: no method", lambda _: ["train"], ("name a method",)),
    Case("config: unknown verb", lambda _: ["tain"], ("'tain'", "'train'"), USAGE),
    Case(
        "config: unknown method",
        lambda place: place.train(method="dreamboth"),
        ("'dreamboth'", "'dreambooth'"),
    ),
    words(
        "unknown flag",
        "--lerning_rate",
        "1",
        says=("--lerning_rate", "--learning_rate"),
        code=USAGE,
    ),
    words(
        "flag of another method", "--class_prompt", "a dog", says=("--class_prompt", "dreambooth")
    ),
    words("flag that cannot be had", "--tokenizer_name", "x", says=("--tokenizer_name",)),
    words("flag without its value", "--seed", says=("seed",), code=USAGE),
    words("word without a flag", "lost", says=("lost",), code=USAGE),
    words(
        "no base",
        pretrained_model_name_or_path=None,
        says=("--pretrained_model_name_or_path",),
        code=USAGE,
    ),
    words("--config without a file", "--config", says=("--config",)),
    Case(
        "config: word that starts from nothing",
        lambda p: p.train("--placeholder_token", "<a>", method="textual_inversion"),
        ("--initializer_token",),
    ),
    Case(
        "config: word of more vectors than any prompt",
        lambda p: p.train(
            *("--placeholder_token", "<a>", "--initializer_token", "red", "--num_vectors"),
            "1000000000",
            method="textual_inversion",
        ),
        ("--num_vectors",),
    ),
    Case(
        "config: word that is known",
        lambda p: p.train(
            "--placeholder_token",
            "circle",
            "--initializer_token",
            "red",
            method="textual_inversion",
        ),
        ("circle",),
    ),
    Case(
        "config: word that is several",
        lambda p: p.train(
            "--placeholder_token", "a b", "--initializer_token", "red", method="textual_inversion"
        ),
        ("a b",),
    ),
    Case(
        "config: word of nothing",
        lambda p: p.train(
            "--placeholder_token", "", "--initializer_token", "red", method="textual_inversion"
        ),
        ("--placeholder_token",),
    ),
    Case(
        "config: start from an unknown word",
        lambda p: p.train(
            "--placeholder_token",
            "<a>",
            "--initializer_token",
            "zyzzyva",
            method="textual_inversion",
        ),
        ("zyzzyva",),
    ),
    Case(
        "config: captions without the word",
        lambda p: p.train(
            "--placeholder_token", "<a>", "--initializer_token", "red", method="textual_inversion"
        ),
        ("good.png", "<a>"),
    ),
    Case(
        "config: prior without a class",
        lambda p: p.train("--with_prior_preservation", method="dreambooth"),
        ("--class_prompt",),
    ),
    Case(
        "config: half precision for everything",
        lambda p: p.train("--mixed_precision", "bf16", method="full"),
        ("fp32", "--mixed_precision no"),
    ),
    Case(
        "config: drawing without a prompt",
        lambda _: ["generate", "--adapter", "a"],
        ("prompt",),
        USAGE,
    ),
    Case("config: drawing without a model", lambda p: p.generate(), ("--adapter",)),
    Case(
        "config: no pictures wanted",
        lambda p: p.generate(pretrained_model_name_or_path="scumble-tiny", num_images=-1),
        ("--num_images",),
    ),
    Case(
        "config: height that is odd",
        lambda p: p.generate(pretrained_model_name_or_path="scumble-tiny", height=63),
        ("--height", "63"),
    ),
    Case(
        "config: width of nothing",
        lambda p: p.generate(pretrained_model_name_or_path="scumble-tiny", width=-8),
        ("--width", "-8"),
    ),
]


CASES = [
    *(wrong_type(name, value) for name, value in WRONG_TYPES.items()),
    *(out_of_range(name, value) for name, values in OUT_OF_RANGE.items() for value in values),
    *DRAWING,
    *CONTRADICTIONS,
    *COMMAND_LINES,
]
