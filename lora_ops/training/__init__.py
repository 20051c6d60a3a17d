"""One LoRA adapter from a train split: batches, the loop, and checkpoints to resume from."""
