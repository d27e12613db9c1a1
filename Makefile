# `make run` and `make test` are all a new user needs. Everything else is for working on the project.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
VENV := .venv
BIN := $(VENV)/bin

# Many images set it. Without bytecode each process of an engine, of Ray and of a test compiles thousands of modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-all unit commands simulation ray engine check setup gpu-rehearsal versions drift peer lock figures clean

run: $(VENV)/.run
	$(BIN)/python jobs/run.py graph_cache=per_run $(ARGS)

# What every change has to pass: minutes. Its parts are in tests/parts.py.
test: $(VENV)/.dev
	$(BIN)/python -m tests.parts $(ARGS)

# The rest as well: full matrices, large numbers, long faults.
test-all: $(VENV)/.dev
	$(BIN)/python -m tests.parts --all $(ARGS)

unit commands simulation ray engine: $(VENV)/.dev
	$(BIN)/python -m tests.parts --only $@ $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# An environment for NVIDIA GPUs: make setup DEVICE=gpu
DEVICE ?= cpu
setup:
	@$(PYTHON) deploy/install.py $(VENV) --device $(DEVICE) $(ARGS)

# Optional: what a GPU node's zygote does, with the environment that `make setup DEVICE=gpu` made; a GPU is not needed.
gpu-rehearsal:
	@$(BIN)/python -m tests.gpu.rehearsal

ASKED := requirements-cpu.lock pyproject.toml setup.py deploy/install.py
$(VENV)/.run: $(ASKED)
	@$(PYTHON) deploy/install.py $(VENV)
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(ASKED)
	@$(PYTHON) deploy/install.py $(VENV) --dev
	@touch $@ $(VENV)/.run

# Optional: which of our features work with which vLLM, as a table. Each is installed into build/versions, and takes minutes.
VERSIONS ?= 0.29.0 0.30.0 0.31.0 0.32.0
versions: $(VENV)/.dev
	@$(BIN)/python -m tests.versions $(VERSIONS)

# Optional, seconds: what we lean on that another vLLM has moved. VLLM is a folder with its sources (an unpacked wheel, a
# checkout). An error means that something moved; by `python -m orchestrator.compat.drift FOLDER` that is exit code 1.
drift: $(VENV)/.dev
	@$(BIN)/python -m orchestrator.compat.drift $(VLLM)

# Optional: vLLM's own tests of compile, graphs and cache reuse, first as they are, then with our plugin at work in them.
PEER_TESTS ?= test_aot_compile.py test_graph_partition.py test_codegen.py test_wrapper.py test_decorator.py \
  test_compile_ranges.py fullgraph/test_simple.py fullgraph/test_multiple_graphs.py fullgraph/test_toy_llama.py
peer: $(VENV)/.dev
	@test -d "$(VLLM_SOURCE)/tests/compile" || { \
	  echo "error: set VLLM_SOURCE to vLLM 0.32.0's source (its sdist unpacked, or a checkout of its tag)" >&2; exit 1; }
	@rm -rf build/peer && mkdir -p build/peer && cp -r $(VLLM_SOURCE)/tests $(VLLM_SOURCE)/pyproject.toml build/peer/
	@$(BIN)/pip install --quiet --no-deps --target build/peer/more tblib
	@cd build/peer && for plugin in "" "-p vllm_with_plugin"; do \
	  HF_HUB_OFFLINE=1 KV_UPDATE=layer_index PYTHONPATH=$(CURDIR)/tests/peer:more \
	    $(CURDIR)/$(BIN)/python -m pytest -q --timeout=120 $$plugin $(addprefix tests/compile/,$(PEER_TESTS)) || true; \
	done

# Resolves anew; versions that are locked stay where they fit. ARGS=--upgrade takes the newest.
lock: $(VENV)/.dev
	@$(BIN)/python deploy/lock.py $(ARGS)

# Tables and figures in README and docs, from the JSON files in docs/results.
figures: $(VENV)/.dev
	$(BIN)/python -m tests.figures

clean:
	rm -rf $(VENV) outputs multirun .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
