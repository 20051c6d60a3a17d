"""Base model, adapter, floor and peer on the same held-out rows."""
