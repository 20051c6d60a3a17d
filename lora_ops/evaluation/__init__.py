"""Base model, adapter and baselines on the same held-out rows."""
