"""
Starting containers that Docker will not: those whose start failed for a volume of ours.

Each is started when its volumes' storage is there, a few times and ever later: a
container that fails for another reason is not among `failed_starts` any more, and one
that goes on failing for ours is left alone at last. A start for which something gave no
answer does not count: a server or a node may be hours later than this machine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from backends.system import clock
from backends.system.aside import begun, log_fault
from plugin.engine.engine_api import EngineApi
from plugin.engine.failed_starts import FailedStart, failed_starts
from plugin.errors import EngineError
from plugin.logs import fields

log = logging.getLogger(__name__)
ATTEMPTS_MAX: Final = 5
FIRST_PAUSE_S: Final = 20.0
# So long after the last one the attempts are forgotten of one that fails no more.
_FORGET_S: Final = 3600.0
# A start takes as long as its Mounts may take.
_AT_ONCE_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class _Attempts:
    """How often a container was started, and when it may be next."""

    count: int = 0
    last_s: float = 0.0

    def is_due(self, now_s: float) -> bool:
        pause_s = FIRST_PAUSE_S * 2 ** (self.count - 1) if self.count else 0.0
        return self.count < ATTEMPTS_MAX and now_s >= self.last_s + pause_s


class ContainerStarter:
    """See the module's text; *note* is told of each container that was started."""

    def __init__(
        self,
        engine: EngineApi,
        *,
        driver: str,
        is_there: Callable[[str], bool],
        was_silent: Callable[[str], bool],
        note: Callable[[FailedStart], None],
    ) -> None:
        """
        Begin with nothing started.

        *is_there* tells by a volume's name whether its storage is, *was_silent* whether
        its last Mount ended without an answer of it, of etcd or of another node.
        """
        self._engine = engine
        self._driver = driver
        self._is_there = is_there
        self._was_silent = was_silent
        self._note = note
        self._attempts: dict[str, _Attempts] = {}
        self._under_way: set[str] = set()
        self._guard = threading.Lock()

    def run_once(self, looking: EngineApi) -> None:
        """
        Begin to start whatever is due, and return.

        Raises:
            EngineError: the engine did not answer *looking*.

        """
        now_s = clock.monotonic_s()
        # A container that is being started answers when it was: it is not asked.
        with self._guard:
            under_way = {*self._under_way}
        failed = failed_starts(looking, self._driver, but=under_way)
        self._forget(now_s, but={each.id for each in failed})
        for each in failed:
            attempts = self._attempts.get(each.id, _Attempts())
            if attempts.is_due(now_s) and self._are_there(each.volumes):
                self._begin(each, _Attempts(attempts.count + 1, now_s))

    def _forget(self, now_s: float, *, but: Container[str]) -> None:
        with self._guard:
            self._attempts = {
                container: each
                for container, each in self._attempts.items()
                if container in but or now_s < each.last_s + _FORGET_S
            }

    def _are_there(self, volumes: Sequence[str]) -> bool:
        return all(map(self._is_there, volumes))

    def _begin(self, failed: FailedStart, attempts: _Attempts) -> None:
        with self._guard:
            if failed.id in self._under_way or len(self._under_way) >= _AT_ONCE_MAX:
                return
            self._under_way.add(failed.id)
            self._attempts[failed.id] = attempts
        starting = begun(
            partial(self._start, failed, attempts),
            name=f"start:{failed.name}",
        )
        starting.add_done_callback(lambda _: self._under_way.discard(failed.id))
        starting.add_done_callback(log_fault)

    def _start(self, failed: FailedStart, attempts: _Attempts) -> None:
        volumes = " ".join(failed.volumes)
        told = fields(container=failed.name, volume=volumes, attempt=attempts.count)
        try:
            self._engine.call("POST", f"/containers/{failed.id}/start")
        except EngineError as error:
            is_last = attempts.count >= ATTEMPTS_MAX
            if is_last and any(map(self._was_silent, failed.volumes)):
                is_last = False
                with self._guard:
                    self._attempts[failed.id] = replace(
                        attempts, count=ATTEMPTS_MAX - 1
                    )
            last = "for the last time " if is_last else ""
            log.warning(
                "a container was started %sin vain: %s", last, error, extra=told
            )
            return
        log.info("started a container that was down for its volume", extra=told)
        self._note(failed)
