"""Programs: train, evaluate."""
