"""
Fixtures of the managed plugin's tests: one build, one engine for all of them.

Every module here has to carry `xdist_group("managed-plugin")`, so that one worker runs
them all.

Numbers in brackets in the tests name moby's own cases for managed plugins:
23 removal only when disabled; 24 by force; 25 no disabling in use; 26 installed
disabled; 27 listing while disabled; 28 to 30 settings; 31 twice; 32 duplicates; 33, 34
names; 35, 36 upgrade; 37 to 42 restarts of the engine; 43 use; 44 in use after
live-restore; 45, 46 filters; 48 two plugins; 49 running before the engine; 50 a
registry.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import engine as engine_support
from tests.support import managed
from tests.support.engine import started_engine
from tests.support.host import Host
from tests.support.managed import ManagedPlugin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.engine import Engine


@pytest.fixture(scope="session")
def build_summary(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """Return what the build script says of its build."""
    if missing := engine_support.missing() or managed.missing():
        pytest.skip(f"needs {missing}")
    output = tmp_path_factory.mktemp("managed") / "plugin"
    yield managed.build(output)
    shutil.rmtree(output)


@pytest.fixture(scope="session")
def built(build_summary: dict[str, Any]) -> Path:
    """Return a directory with config.json and rootfs."""
    return Path(build_summary["output"])


@pytest.fixture(scope="session")
def only_plugin(built: Path) -> Iterator[ManagedPlugin]:
    with Host("managed") as host:
        engine = started_engine(host)
        plugin = ManagedPlugin(engine)
        plugin.create(built)
        yield plugin
        # Orderly, for the engine's cgroups of plugins lie outside those of the host.
        engine.stop()


@pytest.fixture
def plugin(only_plugin: ManagedPlugin) -> Iterator[ManagedPlugin]:
    """Return the enabled plugin; a test may leave volumes, containers, any state."""
    if not only_plugin.enabled:
        only_plugin.enable()
    yield only_plugin
    if not only_plugin.enabled:
        only_plugin.enable()
    engine = only_plugin.engine
    containers = engine.out("ps", "-aq").split()
    if containers:
        engine.docker("rm", "-f", *containers)
    for volume in engine.out("volume", "ls", "-q").split():
        engine.docker("volume", "rm", volume)
    assert only_plugin.mounts() == []


@pytest.fixture
def engine(plugin: ManagedPlugin) -> Engine:
    return plugin.engine


@pytest.fixture(scope="session")
def registry(only_plugin: ManagedPlugin) -> Iterator[str]:
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry")
    yield from managed.run_registry(only_plugin.host)
