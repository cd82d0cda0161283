"""Lean forwards for a frozen denoiser, put on a built model by walking it and taken off again."""
