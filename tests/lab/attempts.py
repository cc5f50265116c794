#!/usr/bin/python3 -ISE
"""
A client in a node that mounts and unmounts volumes at random, as an engine would.

Prints a line of JSON before every call and one after it. Its output is a file of the
host, written through, so that a power failure loses no line. `history.py` reads it.

    attempts.py SEED THREADS HOLD_S PAUSE_S VOLUME...

Ends in good order on SIGTERM. A Mount that was not refused is followed by Unmounts
until one is answered with success, or for as long as anybody may hope for it.

Runs in a node, where imports are slow: nothing but the standard library.
"""

import http.client
import json
import random
import signal
import socket
import sys
import threading
import time

SOCKET = "/run/docker/plugins/remora.sock"
# The engine waits so long for a Mount; for an Unmount, half of it.
MOUNT_TIMEOUT_S = 120.0
UNMOUNT_TIMEOUT_S = 60.0
UNMOUNT_RETRY_S = 1.0
UNMOUNT_FOR_S = 300.0

with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
    BOOT_ID = file.read().strip()


class Connection(http.client.HTTPConnection):
    """A connection to the daemon."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


class Journal:
    """What is printed: one line at a time, from any thread."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        # Unique in this boot, also when the client is started again.
        self.number = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def write(self, **line: object) -> None:
        with self.lock:
            print(json.dumps({"boot_id": BOOT_ID, **line}), flush=True)

    def next_number(self) -> int:
        with self.lock:
            self.number += 1
            return self.number


def now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def ask(kind: str, volume: str, mount_id: str) -> tuple[str, str]:
    """Return the outcome of a call (ok, error or unknown) and the error's text."""
    mounting = kind == "mount"
    timeout_s = MOUNT_TIMEOUT_S if mounting else UNMOUNT_TIMEOUT_S
    connection = Connection("localhost", timeout=timeout_s)
    try:
        connection.connect()
    except OSError as error:
        return "error", f"no-daemon: {error}"
    try:
        body = json.dumps({"Name": volume, "ID": mount_id})
        connection.request("POST", f"/VolumeDriver.{kind.capitalize()}", body)
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        return "unknown", f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    if error := answer.get("Err", ""):
        return "error", error
    return ("ok", "") if answer.get("Mountpoint") or not mounting else ("error", "odd:")


def attempt(journal: Journal, kind: str, volume: str, mount_id: str) -> str:
    """Return the outcome of a call that is written down."""
    number = journal.next_number()
    journal.write(
        n=number, kind=kind, volume=volume, mount_id=mount_id, start_s=now_s()
    )
    outcome, error = ask(kind, volume, mount_id)
    journal.write(n=number, end_s=now_s(), outcome=outcome, error=error)
    return outcome


def unmount(journal: Journal, volume: str, mount_id: str) -> None:
    end_s = now_s() + UNMOUNT_FOR_S
    while attempt(journal, "unmount", volume, mount_id) != "ok" and now_s() < end_s:
        time.sleep(UNMOUNT_RETRY_S)


def work(
    journal: Journal,
    chance: random.Random,
    stop: threading.Event,
    hold_s: float,
    pause_s: float,
    volumes: list[str],
) -> None:
    """Mount, hold and unmount one volume after another until *stop*."""
    while not stop.is_set():
        volume = chance.choice(volumes)
        mount_id = f"{chance.getrandbits(64):016x}"
        if attempt(journal, "mount", volume, mount_id) != "error":
            stop.wait(chance.uniform(0, hold_s))
            unmount(journal, volume, mount_id)
        stop.wait(chance.uniform(0, pause_s))


def main() -> None:
    seed, threads, hold_s, pause_s, *volumes = sys.argv[1:]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    journal = Journal()
    workers = [
        threading.Thread(
            target=work,
            args=(
                journal,
                random.Random(f"{seed}-{number}"),
                stop,
                float(hold_s),
                float(pause_s),
                volumes,
            ),
        )
        for number in range(int(threads))
    ]
    for each in workers:
        each.start()
    for each in workers:
        each.join()


if __name__ == "__main__":
    main()
