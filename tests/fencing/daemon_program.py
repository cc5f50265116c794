"""
A daemon that does nothing but talk to its guard, as the test's lines of JSON say.

Run by `world.Daemon`; a process of its own, so that it can be killed and stopped.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from backends.system import clock
from plugin.errors import FencingError
from plugin.fencing.client import Guard
from plugin.fencing.held import HeldVolume
from plugin.fencing.pausing import Pausing

RENEWAL_INTERVAL_S = 0.3


def renew(guard: Guard, volumes: list[dict], ttl_s: float) -> None:
    """Hold *volumes* for *ttl_s*, again and again, like a node with a lease."""
    while True:
        deadline_s = clock.boottime_s() + ttl_s
        guard.hold([HeldVolume(**v | {"deadline_s": deadline_s}) for v in volumes])
        clock.pause(RENEWAL_INTERVAL_S)


def pause(guard: Guard, request: dict, pauses: ExitStack) -> str:
    """Begin or end a pause; return why it is none, "" if it is one."""
    try:
        if request["op"] == "pause":
            pausing = Pausing(guard)
            paused = pausing.find(request["id"])
            pauses.enter_context(pausing.paused(paused))
        else:
            pauses.close()
    except FencingError as error:
        return str(error)
    return ""


def answer(guard: Guard, request: dict, pauses: ExitStack) -> object:
    match request["op"]:
        case "pause" | "resume":
            return pause(guard, request, pauses)
        case "hold":
            return dict(guard.hold([HeldVolume(**v) for v in request["volumes"]]))
        case "renew":
            arguments = (guard, request["volumes"], request["ttl_s"])
            threading.Thread(target=renew, args=arguments, daemon=True).start()
        case "kill":
            return guard.kill([request["id"]]).get(request["id"])
        case "forget":
            guard.forget(request["id"])
        case "states":
            return dict(guard.states())
    return None


def main() -> None:
    logging.basicConfig(stream=sys.stderr)
    guard = Guard(Path(sys.argv[1]))
    guard.start()
    pauses = ExitStack()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(guard, json.loads(line), pauses)), flush=True)
    guard.close()


main()
