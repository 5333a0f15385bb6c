# gratis: `make X` is `gratis X`, and every one has --help. `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
GRATIS := .venv/bin/gratis
PY := .venv/bin/python
INSTALLED := .venv/installed
# of `make test` and `make check`: in parallel, unless ARGS names the tests
PYTEST_ARGS ?= $(if $(findstring tests/,$(ARGS)),,-n auto --dist worksteal)

# $(call quoted,TEXT): one word of the shell. $(call flag,--name,VARIABLE): the flag, if the variable was given
quoted = '$(subst ','\'',$(1))'
flag = $(if $($(2)),$(1) $(call quoted,$($(2))))

.PHONY: help install train paper shards status top bench report doctor quick test prove mutants check clean

help: ## list the targets and their variables
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): requirements.lock pyproject.toml setup.py docker/install.py $(wildcard gratis/loader/engine/*.[ch])
	@$(PYTHON) docker/install.py --venv .venv

install: ## make .venv and install the locked dependencies, or what is missing of them. ARGS=--extra
	@$(PYTHON) docker/install.py --venv .venv $(ARGS)

train: $(INSTALLED) ## train AlexNet; without SHARDS on a sample drawn here. SHARDS GPUS RECIPE EPOCHS RUN PORT, NNODES NODE_RANK RDZV ARGS
	@$(GRATIS) train $(call flag,--shards,SHARDS) $(call flag,--gpus,GPUS) $(call flag,--recipe,RECIPE) $(call flag,--epochs,EPOCHS) $(call flag,--run,RUN) $(call flag,--port,PORT) $(call flag,--nnodes,NNODES) $(call flag,--node-rank,NODE_RANK) $(call flag,--rdzv,RDZV) $(ARGS)

paper: $(INSTALLED) ## the paper on SHARDS in an hour: training, figures, ablations, tables, one report. SHARDS GPUS RECIPE RUN ARGS
	@$(GRATIS) paper $(call flag,--shards,SHARDS) $(call flag,--gpus,GPUS) $(call flag,--recipe,RECIPE) $(call flag,--run,RUN) $(ARGS)

shards: $(INSTALLED) ## resize images to 256x256 and write shards and statistics. SRC OUT WORKERS CODEC ENGINE ARGS
	@$(GRATIS) shards $(call flag,--src,SRC) --out $(call quoted,$(or $(OUT),shards)) $(call flag,--workers,WORKERS) $(call flag,--codec,CODEC) $(call flag,--engine,ENGINE) $(ARGS)

status: $(INSTALLED) ## serve the status of all runs, finished ones too. PORT ARGS
	@$(GRATIS) status $(call flag,--port,PORT) $(ARGS)

top: $(INSTALLED) ## the status in a terminal. RUN ARGS
	@$(GRATIS) top $(call flag,--run,RUN) $(ARGS)

bench: $(INSTALLED) ## measure WHAT (loader, shards, train) beside its peers. WHAT SHARDS SRC PEERS ARGS
	@$(GRATIS) bench $(call quoted,$(or $(WHAT),loader)) $(if $(filter loader,$(or $(WHAT),loader)),$(call quoted,$(or $(SHARDS),sample/shards)),$(call flag,--shards,SHARDS)) $(call flag,--src,SRC) $(call flag,--peers,PEERS) $(ARGS)

report: $(INSTALLED) ## prove and measure on this machine what is claimed, within MINUTES. MINUTES SHARDS SRC OUT ARGS
	@$(GRATIS) report $(call flag,--minutes,MINUTES) $(call flag,--shards,SHARDS) $(call flag,--src,SRC) $(call flag,--out,OUT) $(ARGS)

doctor: ## what this machine has and what it means; leftovers. ARGS
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m gratis doctor $(ARGS)

quick: $(INSTALLED) ## the pure tests: nothing is started, about a minute. ARGS
	@$(PY) -m pytest -m "not starts and not slow" $(ARGS)

test: $(INSTALLED) ## run every test, in parallel; those that ARGS names by their file, one by one. PYTEST_ARGS ARGS
	@$(PY) -m pytest $(PYTEST_ARGS) $(ARGS)

prove: $(INSTALLED) ## the long forms of the slow tests: minutes to hours. ARGS
	@$(PY) -m pytest -m prove $(ARGS)

mutants: $(INSTALLED) ## small changes of modules that the quick tests should see. ARGS='loader/plan.py --jobs 2'
	@$(PY) -m benchmarks.mutants $(ARGS)

check: $(INSTALLED) ## linters, types, every test. PYTEST_ARGS ARGS
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && $(PY) -m pytest $(PYTEST_ARGS) $(ARGS)

clean: ## remove .venv, the drawn sample with its shards, builds and caches; ./shards and ./runs stay
	@rm -rf .venv sample build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
