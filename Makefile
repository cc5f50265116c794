# Each target sets up what it needs on a fresh Debian 12 machine (root; git, python3,
# apt). What is installed, and from where, stands in tools/setup.

PYTHON := .venv/bin/python

.PHONY: run check test test-long compiled demo bench lint format setup setup-test setup-bench lab campaign \
	install uninstall managed-plugin cluster-volumes-plugin image manifests clean

run: setup
	exec .venv/bin/remora serve

setup:
	@tools/setup run

setup-test:
	@tools/setup test

setup-bench:
	@tools/setup bench

# A test waits for daemons, kernels and leases more than it computes: more workers than
# processors. They begin in the order of tests/support/order.py.
DISTRIBUTION := --dist loadgroup --no-loadscope-reorder
PYTEST := $(PYTHON) -m pytest $(DISTRIBUTION)
WORKERS := 6

# While writing: what needs no engine, no lab and no cluster of daemons.
check: setup-test lint
	$(PYTEST) -n $(WORKERS) -m "not long" tests/unit tests/model tests/contract tests/protocol

test:
	$(MAKE) -j 2 lint compiled
	$(PYTHON) -m tests.gate $(DISTRIBUTION) -n $(WORKERS) -m "not long" --durations=50 --durations-min=3

# Tests and daemons find compiled what one of them has imported. To compile all tests takes
# a processor eight seconds, and each worker would: the one without types to check does it.
# What cannot be collected, the run itself tells.
unexport PYTHONDONTWRITEBYTECODE
compiled: setup-test
	-@$(PYTHON) -m pytest -n 0 --collect-only -q >/dev/null 2>&1

# What takes minutes; the engine tests under Docker 28.5 (Debian sid, by mmdebstrap); and
# the lab's tests on each older kernel that boots here. docs/testing.md says more.
LAB_MODULES := $(wildcard tests/lab/test_nfs_*.py tests/lab/test_replication*.py \
	tests/lab/test_cluster_*.py)
SWARM_MODULES := tests/lab/test_replication_swarm.py tests/lab/test_swarm_wordpress.py
test-long: setup-test
	$(PYTHON) -m tests.kubernetes.build
	$(PYTEST) -n 1 -m long --durations=50 --durations-min=3
	set -e; kernels=$$($(PYTHON) -m tests.lab.kernels --others); \
	[ "$$kernels" ] || echo "no older kernel boots here: the lab's tests ran on one"; \
	for kernel in $$kernels; do \
		REMORA_LAB_KERNEL=$$kernel $(PYTEST) -n 1 -m "not long" $(LAB_MODULES); \
		REMORA_LAB_KERNEL=$$kernel $(PYTEST) -n 1 -m long $(SWARM_MODULES); \
	done

lint: setup-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

format: setup-test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

demo: setup-test
	@$(PYTHON) tools/demo.py

bench: setup-bench
	$(PYTHON) -m tests.bench
	$(PYTHON) -m tests.bench.nfs
	$(PYTHON) -m tests.bench.cluster
	$(PYTHON) -m tests.bench.peers
	$(PYTHON) -m tests.bench.replication
	$(PYTHON) -m tests.bench.fairness
	$(PYTHON) -m tests.bench.watched
	$(PYTHON) -m tests.bench.csi

# A server and two nodes with kernels of their own, and a shell on them.
lab: setup-test
	@$(PYTHON) -m tests.lab

# Writers on replicated volumes while everything breaks at random, for MINUTES. A SEED
# that was printed chooses the same again.
MINUTES := 10
campaign: setup-test
	@$(PYTHON) -m tests.lab.replication_campaign --minutes $(MINUTES) \
		$(if $(SEED),--seed $(SEED)) $(if $(POOL),--pool $(POOL)) $(if $(SAVE),--save $(SAVE))

install:
	@tools/setup install
	packaging/install

uninstall:
	packaging/install --uninstall

managed-plugin: setup-test
	packaging/managed-plugin/build

# The managed plugin for Swarm's cluster volumes.
cluster-volumes-plugin: setup-test
	packaging/managed-plugin/build cluster-volumes --name remora-cluster

# The image of the DaemonSet in deploy/: build/image/remora.tar.
image: setup-test
	packaging/managed-plugin/build image

# deploy/kubernetes, for who has no Helm.
manifests: setup-test
	$(PYTHON) tools/manifests.py

clean:
	rm -rf .venv build *.egg-info
