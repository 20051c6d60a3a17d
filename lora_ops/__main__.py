"""`python -m lora_ops` is `lora-ops`."""

from lora_ops.cli import main

main()
