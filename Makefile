# Targets for users and developers. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GEN := .tools/gen
ENVOY_API := .tools/envoy-api
CLIENTS := .tools/clients
# Tests mostly wait, so more workers than cores are useful. One worker runs all tests of a file, in the order of the folders: the files
# that take long come first, so that no worker has one left at the end.
TEST_WORKERS ?= 4
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
PIP := -m pip install --quiet --disable-pip-version-check --no-input --require-hashes
# Containers often set it. Then every process of every mesh would compile this folder's modules again.
unexport PYTHONDONTWRITEBYTECODE
DEFINITIONS := deploy/kubernetes/modelserves.yaml deploy/chart/files/modelserves.yaml
# Targets of the reference deployment, reserved for the Kubernetes release.
KUBERNETES := docker-build docker-load infra operator-deploy services-deploy frontend port-forward logs-k8s rebuild-operator

.DEFAULT_GOAL := help
.PHONY: help check-deps deps all run status logs stop restart clean db-status db-shell test test-failed test-isolation test-cluster test-kubernetes lint format \
	gen gen-check breaking accept-contracts docs corpus bench cluster cluster-delete $(KUBERNETES)

help: ## List all targets
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\nWith the Kubernetes release\n'
	@echo $(KUBERNETES) | fold -s -w 76 | sed 's/^/  /'

# An environment is made again only if its lock file changes.
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

run: $(VENV)/run.stamp ## Start the whole mesh, serve a small model, ask it a question, run until Ctrl-C
	@$(BIN)/llamesh up --demo

all: run ## The same as run

deps: $(VENV)/run.stamp ## Install what the mesh needs into this checkout

check-deps: ## Show what this machine lacks, and how to get it
	@$(PYTHON) tools/check_deps.py

status: $(VENV)/run.stamp ## Show servers and their state
	@$(BIN)/llamesh status

logs: $(VENV)/run.stamp ## Follow the logs of every process of the mesh
	@$(BIN)/llamesh logs --follow

stop: ## Stop the mesh on this machine
	@test ! -x $(BIN)/llamesh || $(BIN)/llamesh down

restart: $(VENV)/run.stamp ## Stop the mesh and start it again in the background with the same members
	@$(BIN)/python -m tools.restart

clean: stop ## Stop the mesh and remove the environments of this checkout (LLAMESH_HOME stays)
	@rm -rf $(VENV) .tools

db-status: $(VENV)/run.stamp ## Count the rows of all tables, SQLite or PostgreSQL
	@PYTHONPATH=. $(BIN)/python tools/database.py status

db-shell: $(VENV)/run.stamp ## Query the tables in SQL
	@PYTHONPATH=. $(BIN)/python tools/database.py shell

##@ Working on llamesh

test: $(VENV)/dev.stamp ## Run all tests that need only Python packages, with real Envoy, llama.cpp and PostgreSQL
	@$(PYTEST) tests/mesh tests/contract tests/unit

test-failed: $(VENV)/dev.stamp ## Run the tests that failed in the last run
	@$(PYTEST) --last-failed --last-failed-no-failures=none tests/mesh tests/contract tests/unit

test-isolation: $(VENV)/dev.stamp ## Run unit and contract tests next to listeners on the default ports, which nothing may connect to
	@$(BIN)/python tools/isolation.py

test-cluster: $(VENV)/dev.stamp ## Run the tests that need other programs: S3 servers, Kubernetes, Node, nginx, Caddy, Podman
	@$(BIN)/python tools/build.py $(PROGRAMS)
	@$(BIN)/python tools/packages.py
	@$(BIN)/python -m pytest tests/cluster

test-kubernetes: $(VENV)/dev.stamp ## Run those of them that need a local cluster of Kubernetes
	@$(BIN)/python tools/build.py kubernetes minio
	@$(BIN)/python -m pytest -m kubernetes tests/cluster

lint: $(VENV)/dev.stamp $(GEN)/gen.stamp ## Check style, types, import layers and contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@test -d .tools/third_party || PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/generate.py
	@$(GEN)/bin/buf lint
	@$(GEN)/bin/buf format --diff --exit-code proto

format: $(VENV)/dev.stamp $(GEN)/gen.stamp ## Format code and contracts
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .
	@$(GEN)/bin/buf format -w proto

gen: $(GEN)/gen.stamp $(ENVOY_API)/gen.stamp $(VENV)/dev.stamp ## Generate stubs, descriptor set and the synchronous client (needs Go for one third-party contract)
	@PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/generate.py
	@$(BIN)/python tools/sync_client.py
	@$(BIN)/python -m tools.options
	@$(BIN)/python -m tools.manifest_schema
	@$(BIN)/python -m tools.custom_resource
	@$(ENVOY_API)/bin/python tools/envoy_api.py envoy/api.binpb

gen-check: gen ## Fail if generated files differ from the committed ones
	@git diff --exit-code --stat -- llamesh/v1 llamesh/client/sync buf envoy/*.binpb $(DEFINITIONS)
	@test -z "$$(git status --porcelain -- llamesh/v1 llamesh/client/sync buf envoy/*.binpb $(DEFINITIONS))"

breaking: $(GEN)/gen.stamp ## Fail if a contract breaks clients of main
	@PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/breaking.py

accept-contracts: $(GEN)/gen.stamp ## Make the present contracts the baseline of `make breaking`
	@PATH="$(abspath $(GEN))/bin:$$PATH" $(GEN)/bin/python tools/breaking.py --accept

docs: $(VENV)/dev.stamp ## Generate docs/reference from the code
	@PYTHONPATH=. $(BIN)/python tools/reference.py

corpus: $(CLIENTS)/clients.stamp ## Record the requests of real clients again (tests/corpus)
	@$(CLIENTS)/bin/python -m tests.corpus.record

bench: $(VENV)/dev.stamp ## Run the side-by-side measurements (benchmarks/README.md)
	@$(BIN)/python -m benchmarks

##@ Kubernetes (docs/guide/kubernetes.md)
cluster: $(VENV)/dev.stamp ## Create a cluster: with k3d, else kind, else without Docker (Linux, root, Go)
	@$(BIN)/python -m tools.any_cluster create

cluster-delete: $(VENV)/dev.stamp ## Delete it
	@$(BIN)/python -m tools.any_cluster delete

$(KUBERNETES):
	@echo "make $@ comes with the Kubernetes release; on one machine, use make run (docs/from-the-reference-deployment.md)" >&2
	@exit 1
