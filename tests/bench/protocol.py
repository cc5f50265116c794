"""Calls on the plugin sockets, each by a new connection: ours and the peer's."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .figures import turns
from .report import Row, Target, row
from .subjects import InstalledDaemon, Rclone, call, request, timed_call_ms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .sizes import Sizes

ENGINE_ID = "0123456789abcdef" * 4
PARALLEL_CREATES = 16
QUICK_CALL = Target(p50_max=1.0, p99_max=10.0)
LONG_LIST = Target(p50_max=100.0)
SECTION = "Calls on the socket, a new connection each"
Socket = tuple["Path", "dict[str, str]"]


def measure(
    daemon: InstalledDaemon, rclone: Rclone | None, sizes: Sizes
) -> Iterator[Row]:
    """Yield the rows of the calls that read and those that change."""
    sockets = {"remora": (daemon.socket, {})}
    if rclone is not None:
        sockets["rclone"] = (rclone.socket, rclone.options)
    for path, options in sockets.values():
        create_many(path, sizes.volumes, options, parallel=1)
    yield from _reads(sockets, sizes)
    yield from _changes(sockets, sizes)
    for path, _ in sockets.values():
        for number in range(sizes.volumes):
            _succeed(path, "Remove", {"Name": volume(number)})


def measure_many(daemon: InstalledDaemon, sizes: Sizes) -> Iterator[Row]:
    """Yield the rows of reading from a daemon that has `sizes.many_volumes`."""
    many = f"{sizes.many_volumes:,}"
    listed = call(daemon.socket, "VolumeDriver.List", {})["Volumes"]
    if len(listed) != sizes.many_volumes:
        raise AssertionError(f"{len(listed)} volumes are listed")
    calls = {
        "list-many": ("List", b"{}", LONG_LIST, sizes.many_calls),
        "get-many": ("Get", _body(sizes.many_volumes // 2), QUICK_CALL, sizes.calls),
    }
    for key, (method, body, target, count) in calls.items():
        sent = request(f"VolumeDriver.{method}", body)
        times = [timed_call_ms(daemon.socket, sent) for _ in range(count)]
        what = f"{method}, {many} volumes"
        yield row(SECTION, key, what, {"remora": times}, target=target)


def create_many(
    path: Path, count: int, options: Mapping[str, str], *, parallel: int
) -> None:
    """Make volumes by the plugin's own Create, *parallel* calls at a time."""

    def create(number: int) -> None:
        _succeed(path, "Create", {"Name": volume(number), "Opts": dict(options)})

    with ThreadPoolExecutor(parallel) as pool:
        for _ in pool.map(create, range(count)):
            pass


def volume(number: int) -> str:
    """Return the name of the volume *number*."""
    return f"bench-volume-{number:05}"


def _reads(sockets: Mapping[str, Socket], sizes: Sizes) -> Iterator[Row]:
    bodies = {"Path": _body(1), "Get": _body(1), "List": b"{}"}
    times: dict[str, dict[str, list[float]]] = {
        method: {name: [] for name in sockets} for method in bodies
    }
    for order in turns(tuple(sockets), sizes.calls):
        for method, body in bodies.items():
            sent = request(f"VolumeDriver.{method}", body)
            for name in order:
                times[method][name].append(timed_call_ms(sockets[name][0], sent))
    for method, samples in times.items():
        what = f"{method}, {sizes.volumes} volumes"
        yield row(SECTION, method.lower(), what, samples, target=QUICK_CALL)


def _changes(sockets: Mapping[str, Socket], sizes: Sizes) -> Iterator[Row]:
    """Yield rows without a target: the plugin's own part of what an engine takes."""
    methods = ("Create", "Mount", "Unmount", "Remove")
    times: dict[str, dict[str, list[float]]] = {
        method: {name: [] for name in sockets} for method in methods
    }
    for number, order in enumerate(turns(tuple(sockets), sizes.change_rounds)):
        for name in order:
            path, options = sockets[name]
            target = f"bench-change-{number:05}"
            mount = {"Name": target, "ID": ENGINE_ID}
            bodies: dict[str, Any] = {
                "Create": {"Name": target, "Opts": options},
                "Mount": mount,
                "Unmount": mount,
                "Remove": {"Name": target},
            }
            for method, body in bodies.items():
                sent = request(f"VolumeDriver.{method}", json.dumps(body).encode())
                times[method][name].append(timed_call_ms(path, sent))
    for method, samples in times.items():
        yield row(SECTION, method.lower(), method, samples)


def _body(number: int) -> bytes:
    return json.dumps({"Name": volume(number)}).encode()


def _succeed(path: Path, method: str, body: Mapping[str, Any]) -> None:
    answer = call(path, f"VolumeDriver.{method}", body)
    if answer.get("Err"):
        raise AssertionError(f"{method} {body}: {answer}")
