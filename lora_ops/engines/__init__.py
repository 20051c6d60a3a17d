"""Answer prompts from one base model with many adapters: in this process, or through a server."""
