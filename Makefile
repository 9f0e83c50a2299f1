# demo: the main job on the embedded mini base · test · check: lint, types, slow tests · bench
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := build/demo
export HF_HUB_OFFLINE := 1

.PHONY: demo test check lint slow bench clean

$(VENV)/.user: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.user
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.user
	rm -rf $(DEMO)
	$(BIN)/styletune run recipes/mini-horizon.toml --publish \
	    --runs-dir $(DEMO)/runs --registry $(DEMO)/registry
	$(BIN)/styletune generate 'horizon@^1' --prompts eval/demo-prompts.txt --seeds 101-104 \
	    --registry $(DEMO)/registry --pulled $(DEMO)/pulled --out $(DEMO)/generated
	@echo
	@echo "open    $$(ls -d $(DEMO)/runs/mini-horizon/*)/report.html"
	@echo "adapter $(DEMO)/pulled/horizon/1.0.0/README.md"
	@echo "images  $(DEMO)/generated"
	@echo "next    copy recipes/mini-horizon.toml, point [data] path at your images, and"
	@echo "        $(BIN)/styletune plan YOUR-RECIPE.toml"

# One thread per worker: two torch processes of many threads each slow each other tenfold.
# Files go to the workers in tests/conftest.py's order, the longest first.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
	    --no-loadscope-reorder -m "not slow and not gpu"

check: lint test slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/house.py --check

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not gpu"

bench: $(VENV)/.dev
	$(BIN)/python scripts/bench/train_step.py
	$(BIN)/python scripts/bench/data.py
	$(BIN)/python scripts/near_duplicates.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
