# Everything one does here. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GEN := .tools/gen
PIP := -m pip install --quiet --disable-pip-version-check --no-input --require-hashes

.DEFAULT_GOAL := help
.PHONY: docs help check-deps run test test-cluster lint format gen gen-check breaking accept-contracts bench status stop logs clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check-deps: ## What this machine has, lacks, and how to get it
	@$(PYTHON) tools/check_deps.py

# The environments are made once for each lock file: a second run costs nothing.
$(VENV)/run.stamp: requirements/run.txt requirements/build.txt pyproject.toml
	@$(PYTHON) tools/check_deps.py --quiet
	@echo "Setting up (once): the Python packages of requirements/run.txt"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) -r requirements/run.txt -r requirements/build.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/run.stamp
	@echo "Setting up (once): the Python packages of requirements/dev.txt"
	@$(BIN)/python $(PIP) -r requirements/dev.txt
	@touch $@

$(GEN)/gen.stamp: requirements/gen.txt
	@test -x $(GEN)/bin/python || $(PYTHON) -m venv $(GEN)
	@$(GEN)/bin/python $(PIP) -r requirements/gen.txt
	@touch $@

run: $(VENV)/run.stamp ## Start the whole mesh here, serve a small model, ask it a question, stay up until Ctrl-C
	@$(BIN)/llamesh up --demo

test: $(VENV)/dev.stamp ## Everything that needs only Python packages: real Envoy, llama.cpp and PostgreSQL included
	@$(BIN)/python -m pytest tests/unit tests/contract tests/mesh

test-cluster: $(VENV)/dev.stamp ## What needs built programs: grpcurl, MinIO, Node (see tools/)
	@$(BIN)/python tools/build.py
	@$(BIN)/python -m pytest tests/cluster

lint: $(VENV)/dev.stamp $(GEN)/gen.stamp ## Style, types, import layers, contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@test -d .tools/third_party || PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/generate.py
	@$(GEN)/bin/buf lint
	@$(GEN)/bin/buf format --diff --exit-code proto

format: $(VENV)/dev.stamp $(GEN)/gen.stamp ## Bring code and contracts into the house's form
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .
	@$(GEN)/bin/buf format -w proto

gen: $(GEN)/gen.stamp $(VENV)/dev.stamp ## Make stubs, descriptor set and the synchronous client (needs Go for one third-party contract)
	@PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/generate.py
	@$(BIN)/python tools/sync_client.py

gen-check: gen ## Fail where what is generated differs from what is committed
	@git diff --exit-code --stat -- llamesh/v1 llamesh/client/sync.py buf envoy/llamesh.binpb
	@test -z "$$(git status --porcelain -- llamesh/v1 llamesh/client/sync.py buf envoy/llamesh.binpb)"

breaking: $(GEN)/gen.stamp ## Fail where a contract breaks clients of main
	@PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/breaking.py

accept-contracts: $(GEN)/gen.stamp ## Take the contracts as they are now for what `make breaking` compares with
	@PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/breaking.py --accept

docs: $(VENV)/dev.stamp ## Write the pages of docs/reference from the code
	@PYTHONPATH=. $(BIN)/python tools/reference.py

bench: $(VENV)/dev.stamp ## Side-by-side measurements (benchmarks/README.md)
	@$(BIN)/python -m benchmarks

status: ## Servers and their state
	@$(BIN)/llamesh status

stop: ## Stop the mesh that `llamesh up` started here
	@$(BIN)/llamesh down

logs: ## Follow the mesh's logs
	@$(BIN)/llamesh logs --follow

clean: stop ## Stop the mesh and remove the environments of this checkout (models and data stay in LLAMESH_HOME)
	@rm -rf $(VENV) .tools
