# Everything one does here. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GEN := .tools/gen
ENVOY_API := .tools/envoy-api
CLIENTS := .tools/clients
# Tests wait more than they compute, so there may be more workers than cores. A file is one worker's.
TEST_WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile
PIP := -m pip install --quiet --disable-pip-version-check --no-input --require-hashes
# Names of the reference deployment, kept for what takes their place on Kubernetes.
KUBERNETES := cluster docker-build docker-load infra operator-deploy services-deploy \
	frontend port-forward logs-k8s rebuild-operator cluster-delete

.DEFAULT_GOAL := help
.PHONY: help check-deps deps all run status logs stop restart clean db-status db-shell test test-failed test-isolation test-cluster lint format \
	gen gen-check breaking accept-contracts docs corpus bench $(KUBERNETES)

help: ## This list
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nWith the Kubernetes release\n'
	@echo $(KUBERNETES) | fold -s -w 76 | sed 's/^/  /'

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

$(CLIENTS)/clients.stamp: requirements/clients.txt
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python $(PIP) -r requirements/clients.txt
	@touch $@

$(ENVOY_API)/gen.stamp: requirements/envoy-api.txt
	@test -x $(ENVOY_API)/bin/python || $(PYTHON) -m venv $(ENVOY_API)
	@$(ENVOY_API)/bin/python $(PIP) -r requirements/envoy-api.txt
	@touch $@

##@ The mesh on this machine

run: $(VENV)/run.stamp ## Start the whole mesh here, serve a small model, ask it a question, stay up until Ctrl-C
	@$(BIN)/llamesh up --demo

all: run ## The same

deps: $(VENV)/run.stamp ## Only install what the mesh needs, into this checkout

check-deps: ## What this machine has, lacks, and how to get it
	@$(PYTHON) tools/check_deps.py

status: $(VENV)/run.stamp ## Servers and their state
	@$(BIN)/llamesh status

logs: $(VENV)/run.stamp ## Follow the logs of every process of the mesh
	@$(BIN)/llamesh logs --follow

stop: ## Stop the mesh that runs here
	@test ! -x $(BIN)/llamesh || $(BIN)/llamesh down

restart: $(VENV)/run.stamp ## Stop it and start it again in the background
	@$(BIN)/llamesh down
	@$(BIN)/llamesh up --detach

clean: stop ## Stop it and remove the environments of this checkout (models and data stay in LLAMESH_HOME)
	@rm -rf $(VENV) .tools

db-status: $(VENV)/run.stamp ## Tables and their rows, SQLite or PostgreSQL
	@PYTHONPATH=. $(BIN)/python tools/database.py status

db-shell: $(VENV)/run.stamp ## Read the tables in SQL
	@PYTHONPATH=. $(BIN)/python tools/database.py shell

##@ Working on llamesh

test: $(VENV)/dev.stamp ## Everything that needs only Python packages: real Envoy, llama.cpp and PostgreSQL included
	@$(PYTEST) tests/unit tests/contract tests/mesh

test-failed: $(VENV)/dev.stamp ## Only what failed in the last run
	@$(PYTEST) --last-failed --last-failed-no-failures=none tests/unit tests/contract tests/mesh

test-isolation: $(VENV)/dev.stamp ## Unit and contract tests beside listeners at the default ports, which nothing may connect to
	@$(BIN)/python tools/isolation.py

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

gen: $(GEN)/gen.stamp $(ENVOY_API)/gen.stamp $(VENV)/dev.stamp ## Make stubs, descriptor set and the synchronous client (needs Go for one third-party contract)
	@PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/generate.py
	@$(BIN)/python tools/sync_client.py
	@$(BIN)/python -m tools.options
	@$(ENVOY_API)/bin/python tools/envoy_api.py envoy/api.binpb

gen-check: gen ## Fail where what is generated differs from what is committed
	@git diff --exit-code --stat -- llamesh/v1 llamesh/client/sync buf envoy/*.binpb
	@test -z "$$(git status --porcelain -- llamesh/v1 llamesh/client/sync buf envoy/*.binpb)"

breaking: $(GEN)/gen.stamp ## Fail where a contract breaks clients of main
	@PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/breaking.py

accept-contracts: $(GEN)/gen.stamp ## Take the contracts as they are now for what `make breaking` compares with
	@PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/breaking.py --accept

docs: $(VENV)/dev.stamp ## Write the pages of docs/reference from the code
	@PYTHONPATH=. $(BIN)/python tools/reference.py

corpus: $(CLIENTS)/clients.stamp ## Record anew what real clients send (tests/corpus)
	@$(CLIENTS)/bin/python -m tests.corpus.record

bench: $(VENV)/dev.stamp ## Side-by-side measurements (benchmarks/README.md)
	@$(BIN)/python -m benchmarks

$(KUBERNETES):
	@echo "make $@ comes with the Kubernetes release; on one machine make run does it all (docs/from-the-reference-deployment.md)" >&2
	@exit 1
