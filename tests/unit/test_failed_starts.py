"""Which errors of a container's start are for a volume of ours."""

from __future__ import annotations

import pytest

from backends.errors import BackendError, StorageAwayError
from plugin.engine.failed_starts import is_for_a_volume
from plugin.engine.local_volumes import hidden
from plugin.engine.starter import ATTEMPTS_MAX, FIRST_PAUSE_S, _Attempts
from tests.support.world import World, failing

AWAY = "NFS-UNREACHABLE: no answer; nas:/export (hint: is the server up?)"
# As dockerd 20.10.24 keeps them in State.Error.
OURS = [
    f"error while mounting volume '': {AWAY}",
    f"error while mounting volume '/var/lib/remora/mounts/1': {AWAY}",
    "error while mounting volume '/x': store-unavailable: etcd did not answer",
    "error while mounting volume '/x': VolumeDriver.Mount: a fault in Remora",
    """error while mounting volume '/x': Post "http://%2F/VolumeDriver.Mount": EOF""",
]
NAMED = [
    'get x: error looking up volume plugin remora: plugin "remora" not found',
    'get rows: error while checking if volume "rows" exists in driver "remora": EOF',
]
OTHERS = [
    "",
    "error while mounting volume '/x': failed to mount local volume: mount :/e: no way",
    'OCI runtime create failed: exec: "nothing": executable file not found in $PATH',
    'get x: error while checking if volume "x" exists in driver "other": EOF',
    "driver failed programming external connectivity on endpoint web: port is in use",
]


@pytest.mark.parametrize("error", OURS + NAMED)
def test_an_error_of_ours_is_known(error: str) -> None:
    assert is_for_a_volume(error, "remora", others=False)


@pytest.mark.parametrize("error", OTHERS)
def test_an_error_of_others_is_not_ours(error: str) -> None:
    assert not is_for_a_volume(error, "remora", others=False)


def test_beside_another_plugin_only_an_error_that_names_us_is_ours() -> None:
    assert not any(is_for_a_volume(each, "remora", others=True) for each in OURS)
    assert all(is_for_a_volume(each, "remora", others=True) for each in NAMED)


def test_attempts_are_few_and_ever_later() -> None:
    now_s, gaps = 100.0, []
    attempts = _Attempts()
    while attempts.count < ATTEMPTS_MAX:
        began_s = now_s
        while not attempts.is_due(now_s):
            now_s += 1
        gaps.append(now_s - began_s)
        attempts = _Attempts(attempts.count + 1, now_s)
    assert gaps == [0.0, *(FIRST_PAUSE_S * 2**each for each in range(4))]
    assert not attempts.is_due(now_s + 10**9)


def test_it_is_known_of_the_last_mount_whether_it_was_not_answered(
    world: World,
) -> None:
    world.volumes.creation.create("v", {})
    mounting = world.volumes.mounting
    for error in (StorageAwayError("away"), BackendError("no"), StorageAwayError("")):
        world.backend.before = failing("mount", error)
        with pytest.raises(BackendError):
            mounting.mount("v", "a")
        assert mounting.was_silent("v") is error.unanswered
    world.backend.before = lambda _operation, _volume: None
    mounting.mount("v", "a")
    assert not mounting.was_silent("v")


def test_a_volume_is_hidden_by_a_local_one_of_its_name() -> None:
    assert hidden(["b", "a", "mine"], ["a", "b", "other"]) == ["a", "b"]
