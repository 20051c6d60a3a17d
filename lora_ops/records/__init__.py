"""The nouns of the project: what is written to disk and read back, one module a wing."""
