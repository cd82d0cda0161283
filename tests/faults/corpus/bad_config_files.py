"""Files of settings that cannot be read, or say what cannot be."""

import os
from collections.abc import Callable
from pathlib import Path

from corpus import WEB_PAGE, Case, Place, picture


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


CASES = [
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
    file(
        "bomb.yaml",
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{b}: &{b} [*{a}{f',*{a}' * 8}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "'a'",
    ),
    file("cycle.yaml", "&a rank: *a", "'rank'"),
    file("cycle_of_tables.yaml", "data: &a\n  more: *a\n", "malformed"),
    file("deep.yaml", "[" * 999, "malformed"),
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
    at("absent.toml", lambda _: None, "configuration file"),
    at("folder.toml", Path.mkdir, "is a folder"),
    at("loop.toml", lambda path: path.symlink_to(path), "configuration file"),
    at("pipe.toml", os.mkfifo, "configuration file"),
    at("device.toml", lambda path: path.symlink_to("/dev/zero"), "configuration file"),
]
