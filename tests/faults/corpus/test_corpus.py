"""Bad input of every kind: one clear line that names the culprit, and nothing left behind."""

from importlib import import_module

from corpus import Case

KINDS = ["images"]
CASES: list[Case] = [case for kind in KINDS for case in import_module(f"bad_{kind}").CASES]
