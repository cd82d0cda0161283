"""Training: one loop over phases. Read run.py first."""
