"""The web page: train, generate and look after adapters without a terminal."""
