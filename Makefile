# make repro   trains, evaluates, packages and registers every tenant's adapter (skips what is up to date)
# make serve   answers on localhost:8000 with every tenant's adapter, as OpenAI's API does
# make test    runs every test
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: repro serve test lint format lab metrics wandb-sync wandb-online lock clean

repro: .venv/installed
	dvc repro
	lora-ops register
	lora-ops report

serve: .venv/installed
	lora-ops serve

# The pipeline's tests fill one worker, all others the second.
test: .venv/installed
	pytest --numprocesses 2 --dist loadfile

lint: .venv/installed
	ruff check .
	ruff format --check .
	mypy

format: .venv/installed
	ruff check --fix .
	ruff format .

lab: .venv/installed
	jupyter lab notebooks

metrics: .venv/installed
	dvc metrics show
	dvc plots show

# Runs that were logged without a key lie in wandb/; this sends them once you have one.
wandb-sync: .venv/installed
	lora-ops wandb-sync

# The same pipeline, logged while it runs; without a key it stops at the first stage.
wandb-online: .venv/installed
	WANDB_MODE=online dvc repro
	lora-ops register

# Pin what pyproject.toml allows today. A local build's tag (+cpu) is dropped, so the file fits every machine.
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0 setuptools wheel
	.venv-lock/bin/pip install --quiet --no-build-isolation -e '.[dev]'
	.venv-lock/bin/pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock
	rm -rf .venv-lock

.venv/installed: requirements.lock pyproject.toml lora_ops/jupyter.json
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lora-ops needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet -r requirements.lock
	.venv/bin/pip install --quiet --no-deps --no-build-isolation -e .
	# Jupyter reads this however it is started: what it saves in notebooks/ has no outputs.
	install -D -m 644 lora_ops/jupyter.json .venv/etc/jupyter/jupyter_server_config.json
	touch .venv/installed

# What the pipeline made; the registry, the downloads and DVC's cache stay.
clean:
	rm -rf data/prepared models packages reports .checkpoints
