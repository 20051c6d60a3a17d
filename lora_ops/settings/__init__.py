"""params.yaml, typed: the only place where a value of the pipeline is read; one module a section."""
