"""Runs of training as processes and folders: which there are, how far they are, what waits."""
