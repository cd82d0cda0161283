"""What can be done with adapter files without a model: one file per verb, a function each."""
