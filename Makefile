# Each target sets up what it needs on a fresh Debian 12 machine (root; git, python3,
# apt). What is installed, and from where, stands in tools/setup.

PYTHON := .venv/bin/python

.PHONY: run test test-long demo bench lint format setup setup-test setup-bench lab campaign \
	install uninstall managed-plugin clean

run: setup
	exec .venv/bin/remora serve

setup:
	@tools/setup run

setup-test:
	@tools/setup test

setup-bench:
	@tools/setup bench

test: setup-test lint
	$(PYTHON) -m pytest -n 3 --dist loadgroup -m "not long"

# The same tests under Docker 28.5 (Debian sid, by debootstrap), and Podman.
test-long: setup-test
	$(PYTHON) -m pytest -n 1 -m long

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
	$(PYTHON) -m tests.bench.replication
	$(PYTHON) -m tests.bench.watched

# A server and two nodes with kernels of their own, and a shell on them.
lab: setup-test
	@$(PYTHON) -m tests.lab

# Writers on replicated volumes while everything breaks at random, for MINUTES. A SEED
# that was printed chooses the same again.
MINUTES := 10
campaign: setup-test
	@$(PYTHON) -m tests.lab.replication_campaign --minutes $(MINUTES) \
		$(if $(SEED),--seed $(SEED)) $(if $(SAVE),--save $(SAVE))

install: setup
	packaging/install

uninstall:
	packaging/install --uninstall

managed-plugin: setup-test
	packaging/managed-plugin/build

clean:
	rm -rf .venv build *.egg-info
