"""How the built-in base model `scumble-tiny` is drawn for, trained and exported."""
