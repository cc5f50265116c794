"""What is told of each call that was answered: one log line, and metrics."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, field
from typing import Final

from backends.errors import RemoraError, one_line
from backends.system.clock import monotonic_s
from plugin.api.metrics import Metrics
from plugin.logs import fields

log = logging.getLogger(__name__)
# Read-only calls, which are made all the time: their log lines say little.
_QUIET: Final = frozenset(
    {"Get", "List", "Path", "Capabilities", "status", "metrics", "ls"}
)


@dataclass(slots=True)
class Told:
    """What is known of one call; *volume* and *mount_id* as the caller gave them."""

    operation: str
    volume: str = ""
    mount_id: str = ""
    code: str = "ok"
    error: str = ""
    began_s: float = field(default_factory=monotonic_s)

    def failed(self, code: str, error: str = "") -> None:
        """Note that the call has failed, and why."""
        self.code, self.error = code, one_line(error)

    def ended(self, metrics: Metrics, *, socket: str) -> None:
        """Write the line, and count the call."""
        duration_s = monotonic_s() - self.began_s
        metrics.observe(
            socket=socket,
            operation=self.operation,
            code=self.code,
            duration_s=duration_s,
        )
        quiet = self.code == "ok" and self.operation in _QUIET
        level = logging.DEBUG if quiet else logging.INFO
        if log.isEnabledFor(level):
            log.log(level, "call", extra=self._line(duration_s))

    def _line(self, duration_s: float) -> dict[str, dict[str, object]]:
        values: dict[str, object] = {
            "op": self.operation,
            "volume": one_line(self.volume),
            "id": one_line(self.mount_id)[:12],
            "duration_ms": round(duration_s * 1000, 1),
            "outcome": "ok" if self.code == "ok" else "error",
            "code": self.code,
            "error": self.error,
        }
        return fields(**{key: value for key, value in values.items() if value != ""})


def bug(error: Exception) -> RemoraError:
    """Return what a caller is told of a fault of ours, which the log has whole."""
    reference = secrets.token_hex(4)
    log.error("internal error %s", reference, exc_info=error)
    return RemoraError(f"a fault in Remora; log line {reference}")
