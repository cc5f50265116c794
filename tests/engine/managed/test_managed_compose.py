"""
Compose 1.x and the managed plugin: the driver's name with its tag.

The file is that of docs/guides/managed-plugin.md, for a machine without a network.
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import guide, images
from tests.support.host import checked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.engine import Engine
    from tests.support.managed import ManagedPlugin

pytestmark = pytest.mark.xdist_group("managed-plugin")


@pytest.fixture
def compose(
    plugin: ManagedPlugin, engine: Engine, tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Return a function that calls Compose for the file of the guide."""
    del plugin
    if shutil.which("docker-compose") is None:
        pytest.skip("needs docker-compose")
    (text,) = guide.section("managed-plugin.md", "With Compose").files()
    image = f"{images.BUSYBOX_IMAGE}\n    network_mode: none"
    text = text.replace("mariadb:10.11", image)
    file = tmp_path / "docker-compose.yml"
    file.write_text(text)

    def call(*args: str, driver: str = "remora:latest", check: bool = True) -> str:
        file.write_text(text.replace("driver: remora:latest", f"driver: {driver}"))
        done = subprocess.run(
            ["docker-compose", "--project-name", "shop", *args],
            cwd=tmp_path,
            env=engine.cli_environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        return (checked(done) if check else done).stderr

    yield call
    call("down", "--volumes", check=False)


def test_the_second_up_finds_the_volume(
    engine: Engine, compose: Callable[..., str]
) -> None:
    compose("up", "-d")
    write = ("exec", "shop_database_1", "sh", "-c", "echo kept > /var/lib/mysql/rows")
    engine.docker(*write)
    compose("down")
    compose("up", "-d")
    shown = engine.out("exec", "shop_database_1", "cat", "/var/lib/mysql/rows")
    assert shown == "kept"
    assert engine.inspect("volume", "shop_rows")["Driver"] == "remora:latest"


def test_without_the_tag_it_does_not(compose: Callable[..., str]) -> None:
    """The engine stores the tag, and Compose 1.x compares words."""
    compose("up", "-d", driver="remora")
    compose("down", driver="remora")
    told = compose("up", "-d", driver="remora", check=False)
    assert "uses a different driver (remora:latest)" in told
    # What the guide says to do about it; nothing is lost.
    compose("up", "-d")
