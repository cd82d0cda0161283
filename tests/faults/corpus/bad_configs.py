"""Settings that cannot be meant, on the command line and in files."""

import os
from collections.abc import Callable
from pathlib import Path

from corpus import WEB_PAGE, Case, Place, picture

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
    "rank": ("0", "-4"),
    "resolution": ("0", "-64", "65"),
    "train_batch_size": ("0",),
    "gradient_accumulation_steps": ("0",),
    "num_train_epochs": ("0",),
    "max_train_steps": ("0", "-1"),
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
    "dataloader_num_workers": ("-1",),
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


CONTRADICTIONS = [
    words("no pictures named", train_data_dir=None, says=("--train_data_dir",)),
    words("two kinds of pictures", dataset_name="d", says=("--train_data_dir", "--dataset_name")),
    words("streaming a folder", "--streaming", says=("--streaming", "--dataset_name")),
    words("warm-up longer than the run", lr_warmup_steps=5, lr_scheduler="linear", says=("--lr_warmup_steps", "1 steps")),
    words("xformers and sdpa", "--attention", "sdpa", "--enable_xformers_memory_efficient_attention", says=("--attention sdpa",)),
    words("a share of one picture", validation_share=0.3, says=("--validation_share", "1 pictures")),
    words("measuring twice", validation_share=0.3, validation_data_dir="v", says=("--validation_share", "--validation_data_dir")),
    words("kept tokens without shuffling", keep_tokens=2, says=("--keep_tokens", "--shuffle_caption")),
    words("rate of a text encoder that rests", text_encoder_lr=1e-4, says=("--text_encoder_lr", "--train_text_encoder")),
    words("stop early by nothing", early_stop=3, says=("--early_stop", "--validation_share")),
    words("validate nothing", validation_steps=1, says=("--validation_steps", "--validation_prompt")),
    words("a repository and no push", hub_model_id="a/b", says=("--hub_model_id", "--push_to_hub")),
    words("weight of masks without masks", unmasked_weight=0.5, says=("--unmasked_weight", "--masked_loss")),
    words("unknown adapter", adapter_type="lorra", says=("--adapter_type", "lorra", "lora")),
    words("adapter that is only read", adapter_type="ia3", says=("--adapter_type ia3", "lora")),
    words("pissa of lokr", adapter_type="lokr", adapter_init="pissa", says=("--adapter_init pissa", "lora")),
    words("factor of another type", decompose_factor=8, says=("--decompose_factor", "lokr")),
    words("layers that are not there", target_modules="to_z", says=("to_z",)),
    words("rank of a layer is a word", target_modules="to_q:four", says=("to_q:four",)),
    words("rank of a layer is nothing", target_modules="to_q:0", says=("to_q:0",)),
    words("rate of a layer is a word", layer_learning_rates="to_q:fast", says=("to_q:fast",)),
    words("rate without a layer", layer_learning_rates="1e-4", says=("--layer_learning_rates", "1e-4")),
    words("rate of layers that are not there", layer_learning_rates="to_z:1e-4", says=("to_z",)),
    words("unknown tracker", report_to="tensorbord", says=("tensorbord", "tensorboard")),
    words("log files outside of the output folder", logging_dir="../logs", says=("--logging_dir", "../logs")),
    words("log files at the root", logging_dir="/logs", says=("--logging_dir", "/logs")),
    words("a revision of the built-in base, twice", pretrained_model_name_or_path="a/b@x", revision="y", says=("a/b@x", "--revision y")),
]

COMMAND_LINES = [
    Case("config: no method", lambda place: ["train"], ("name a method",)),
    Case("config: unknown verb", lambda place: ["tain"], ("'tain'", "'train'"), USAGE),
    Case("config: unknown method", lambda place: place.train(method="dreamboth"), ("'dreamboth'", "'dreambooth'")),
    words("unknown flag", "--lerning_rate", "1", says=("--lerning_rate", "--learning_rate"), code=USAGE),
    words("flag of another method", "--class_prompt", "a dog", says=("--class_prompt", "dreambooth")),
    words("flag that cannot be had", "--tokenizer_name", "x", says=("--tokenizer_name",)),
    words("flag without its value", "--seed", says=("seed",), code=USAGE),
    words("word without a flag", "lost", says=("lost",), code=USAGE),
    words("no base", pretrained_model_name_or_path=None, says=("--pretrained_model_name_or_path",), code=USAGE),
    words("--config without a file", "--config", says=("--config",)),
    Case("config: word that starts from nothing", lambda p: p.train("--placeholder_token", "<a>", method="textual_inversion"), ("--initializer_token",)),
    Case("config: word that is known", lambda p: p.train("--placeholder_token", "circle", "--initializer_token", "red", method="textual_inversion"), ("circle",)),
    Case("config: word that is several", lambda p: p.train("--placeholder_token", "a b", "--initializer_token", "red", method="textual_inversion"), ("a b",)),
    Case("config: word of nothing", lambda p: p.train("--placeholder_token", "", "--initializer_token", "red", method="textual_inversion"), ("--placeholder_token",)),
    Case("config: start from an unknown word", lambda p: p.train("--placeholder_token", "<a>", "--initializer_token", "zyzzyva", method="textual_inversion"), ("zyzzyva",)),
    Case("config: captions without the word", lambda p: p.train("--placeholder_token", "<a>", "--initializer_token", "red", method="textual_inversion"), ("good.png", "<a>")),
    Case("config: prior without a class", lambda p: p.train("--with_prior_preservation", method="dreambooth"), ("--class_prompt",)),
    Case("config: half precision for everything", lambda p: p.train("--mixed_precision", "bf16", method="full"), ("fp32", "--mixed_precision no")),
    Case("config: drawing without a prompt", lambda p: ["generate", "--adapter", "a"], ("prompt",), USAGE),
    Case("config: drawing without a model", lambda p: p.generate(), ("--adapter",)),
    Case("config: no pictures wanted", lambda p: p.generate(pretrained_model_name_or_path="scumble-tiny", num_images=-1), ("--num_images",)),
    Case("config: height that is odd", lambda p: p.generate(pretrained_model_name_or_path="scumble-tiny", height=63), ("--height", "63")),
    Case("config: width of nothing", lambda p: p.generate(pretrained_model_name_or_path="scumble-tiny", width=-8), ("--width", "-8")),
]


def file(name: str, content: bytes | str, *says: str) -> Case:
    """A file of settings that is wrong; it is named by its own name."""

    def make(place: Place) -> list[str]:
        return place.train("--config", str(place.write(name, content)))

    return Case(f"config file: {name}", make, (name, *says))


def setting(name: str, text: str, *says: str) -> Case:
    """A file that is well formed and says what cannot be."""
    return Case(
        f"config file: {name}",
        lambda place: place.train("--config", str(place.write(name, text)), train_data_dir=None),
        says,
    )


def at(name: str, make_it: Callable[[Path], object], *says: str) -> Case:
    """Something else where a file of settings should be."""

    def make(place: Place) -> list[str]:
        path = place.root / name
        make_it(path)
        return place.train("--config", str(path))

    return Case(f"config file: {name}", make, (name, *says))


FILES = [
    file("misspelt.toml", "learning_rat = 1e-3", "'learning_rat'", "'learning_rate'"),
    file("unlike_any.toml", "zzz = 1", "'zzz'"),
    file("of_another_method.toml", "class_prompt = 'a'", "'class_prompt'"),
    file("twice_in_tables.toml", "rank = 4\n[adapter]\nrank = 8", "'rank'", "twice"),
    file("twice.toml", "rank = 4\nrank = 8", "malformed", "overwrite"),
    file("unclosed.toml", "[data", "malformed"),
    file("no_value.toml", "rank = ", "malformed"),
    file("no_quotes.toml", "output_dir = out", "malformed", "line 1"),
    file("int_as_text.toml", "rank = 'four'", "'rank'", "whole number"),
    file("int_as_float.toml", "rank = 4.5", "'rank'", "4.5"),
    file("int_as_bool.toml", "seed = true", "'seed'", "whole number"),
    file("int_as_list.toml", "rank = [4, 8]", "'rank'", "whole number"),
    file("bool_as_int.toml", "random_flip = 3", "'random_flip'", "true or false"),
    file("bool_as_text.toml", "random_flip = 'yes please'", "'random_flip'", "true or false"),
    file("float_as_text.toml", "learning_rate = 'fast'", "'learning_rate'", "number"),
    file("float_as_bool.toml", "learning_rate = true", "'learning_rate'", "number"),
    file("float_as_date.toml", "learning_rate = 2024-01-01", "'learning_rate'", "number"),
    file("text_as_bool.yaml", "instance_prompt: yes", "'instance_prompt'", "quotes"),
    file("text_as_list.toml", "instance_prompt = ['a', 'b']", "'instance_prompt'", "text"),
    file("choice.toml", "lr_scheduler = 'cosin'", "'lr_scheduler'", "cosine"),
    file("choice_as_int.toml", "mixed_precision = 16", "'mixed_precision'", "16"),
    file("choice_as_bool.yaml", "mixed_precision: no", "'mixed_precision'", "quotes"),
    file("list_of_numbers.toml", "target_modules = [1, 2]", "'target_modules'"),
    file("list_of_lists.toml", "target_modules = [['to_q']]", "'target_modules'"),
    file("table_as_value.toml", "rank = {a = 4}", "'a'"),
    file("list_of_tables.toml", "[[rank]]\na = 4", "'rank'"),
    file("nothing.yaml", "", "no keys"),
    file("comments_alone.yaml", "# nothing yet\n", "no keys"),
    file("list.yaml", "- rank\n- 4\n", "no keys"),
    file("text.yaml", "rank 4", "no keys"),
    file("tabs.yaml", "data:\n\trank: 4", "malformed", "line 2"),
    file("unclosed.yaml", "rank: [4", "malformed", "line 1"),
    file("twice.yaml", "rank: 4\nrank: 8\n", "'rank'", "twice"),
    file("null.yaml", "seed: null", "'seed'", "whole number"),
    file("null_for_nothing.yaml", "random_flip:\n", "'random_flip'"),
    file("exponent.yaml", "learning_rate: 1e-4x", "'learning_rate'", "1e-4x"),
    file("number_as_key.yaml", "3: 4", "'3'"),
    file("code.yaml", "rank: !!python/object/apply:os.system ['touch pwned']", "malformed"),
    file("bomb.yaml", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [*{a}{f',*{a}' * 8}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)), "'a'"),
    file("cycle.yaml", "&a rank: *a", "'rank'"),
    file("cycle_of_tables.yaml", "data: &a\n  more: *a\n", "malformed"),
    file("deep.yaml", "[" * 5000, "malformed"),
    file("deep.toml", "rank = " + "[" * 5000, "malformed"),
    file("binary.toml", picture(), "UTF-8"),
    file("binary.yaml", bytes(range(128)), "malformed"),
    file("utf16.toml", "rank = 4".encode("utf-16"), "UTF-8"),
    file("latin1.toml", "instance_prompt = 'caf\xe9'".encode("latin-1"), "UTF-8"),
    file("web_page.toml", WEB_PAGE, "malformed", "line 1"),
    file("settings.json", '{"rank": 4}', "TOML nor YAML"),
    file("settings.txt", "rank = 4", "TOML nor YAML"),
    file("settings", "rank = 4", "TOML nor YAML"),
    file("huge.toml", "#" * 20_000_000, "big"),
    file("bom.toml", b"\xef\xbb\xbfrnak = 4", "'rank'"),
    setting("nul.toml", 'train_data_dir = "a\\u0000b"', "--train_data_dir"),
    setting("half.yaml", 'train_data_dir: "a\\ud800b"', "--train_data_dir"),
    setting("nothing.toml", 'train_data_dir = ""', "--train_data_dir"),
    at("absent.toml", lambda path: None, "configuration file"),
    at("folder.toml", Path.mkdir, "is a folder"),
    at("loop.toml", lambda path: path.symlink_to(path), "configuration file"),
    at("pipe.toml", os.mkfifo, "configuration file"),
    at("device.toml", lambda path: path.symlink_to("/dev/zero"), "configuration file"),
]

CASES = [
    *(wrong_type(name, value) for name, value in WRONG_TYPES.items()),
    *(out_of_range(name, value) for name, values in OUT_OF_RANGE.items() for value in values),
    *CONTRADICTIONS,
    *COMMAND_LINES,
    *FILES,
]
