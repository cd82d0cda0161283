"""The few parts of torchvision that diffusers' training scripts use, for machines without it.

Written from torchvision's documentation, with Pillow and torch alone. bench_train.py puts it on the
path of the baseline where the real package cannot be imported, and says so in the result.
"""

__version__ = "0+stand.in"
