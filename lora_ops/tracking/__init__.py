"""W&B runs of the pipeline: what each stage logs, what it used and made, and what is sent later."""
