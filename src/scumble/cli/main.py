"""The `scumble` command: finds the verb, runs it, and turns user errors into one clear line."""

import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from scumble import console
from scumble.config.sharing import SECRETS
from scumble.errors import Stopped, UserError
from scumble.redaction import keep_secrets_of

VERBS = {
    "train": "teach a base model from your own pictures",
    "doctor": "check a training run before it begins: its data, settings, memory, time",
    "reproduce": "train again as an adapter or a run was trained, and compare",
    "generate": "draw pictures, with adapters on top of a base model",
    "ui": "train, draw and look after adapters in a web page",
    "runs": "list the runs on disk, and how far each of them is",
    "push": "put the result of a training run on the Hub",
    "space": "make a folder that is a demo page of an adapter, for the Hub",
    "demo": "teach the built-in base a style and show before and after",
    "inspect": "show what an adapter file is and what is in it",
    "diff": "say whether two adapter files do the same, and where they differ",
    "convert": "write an adapter file in the format of another program",
    "merge": "make one adapter of several, or put them into a base model",
    "extract": "make a LoRA of what fine-tuning changed of a whole model",
    "resize": "give an adapter another rank",
}
"""Verb -> what it does. Each lives in the module of its name: `main` runs it and may return an
exit code, and `EXIT_TROUBLE` is its code for a user's error, where that is not 1."""

EXIT_USER_ERROR, EXIT_USAGE, EXIT_STOPPED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit: 0 done, 1 a user's error, 2 bad usage, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    keep_secrets_of(words, SECRETS)  # before anybody can print them
    console.guard_output()
    try:
        sys.exit(run(words))
    except BrokenPipeError:
        # Whoever read the output has read enough, as in `scumble train full --help | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def run(arguments: Sequence[str]) -> int:
    """Run a command line.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _write(_help())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] in ("-V", "--version", "version"):
        from scumble import __version__

        _write(f"scumble {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else "scumble --help lists the verbs."
        return _fail(f"there is no verb '{verb}'\n  {hint}", EXIT_USAGE)
    _quiet_libraries()
    module = import_module(f"scumble.cli.{verb}")
    command: Callable[[Sequence[str]], int | None] = module.main
    try:
        return command(arguments[1:]) or 0
    except UserError as error:
        if error.everywhere and not console.is_main_process():
            return EXIT_USER_ERROR
        return _fail(str(error), getattr(module, "EXIT_TROUBLE", EXIT_USER_ERROR))
    except Stopped as stopped:
        if console.is_main_process():
            _write(str(stopped))
        return EXIT_STOPPED
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_STOPPED) if console.is_main_process() else EXIT_STOPPED


def _help() -> str:
    verbs = "\n".join(f"  {verb:10} {purpose}" for verb, purpose in VERBS.items())
    return (
        "scumble teaches Stable Diffusion from your own pictures, and draws with the result.\n\n"
        f"usage: scumble VERB ...\n\n{verbs}\n\n"
        "First steps:\n"
        "  scumble demo\n"
        "  scumble train text_to_image --pretrained_model_name_or_path BASE "
        "--train_data_dir FOLDER --output_dir OUT\n"
        '  scumble generate --adapter OUT --prompt "..."\n\n'
        "scumble VERB --help explains every option."
    )


def _quiet_libraries() -> None:
    """Keep the libraries' own chatter below ours, unless the user asked for it."""
    for library in ("TRANSFORMERS", "DIFFUSERS", "DATASETS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "critical")  # they say errors twice
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # It warns of a kernel that its own build lacks, whether or not anybody asked for it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def _fail(text: str, code: int) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"scumble: {console.plain(text)}\n")
    return code
