"""Sharing: model cards, and from there the Hub."""
