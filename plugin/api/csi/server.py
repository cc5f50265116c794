"""A gRPC server on a Unix socket: each call is one log line, each error one code."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import grpc

from backends.errors import RemoraError, one_line
from backends.system.clock import monotonic_s
from plugin.api.csi.errors import Code, status_of
from plugin.api.csi.messages import Package
from plugin.errors import ConfigError
from plugin.logs import fields

log = logging.getLogger(__name__)
# Of a scheduler's calls most are short; what comes beyond waits for its turn.
_THREADS: Final = 32
_CALLS_MAX: Final = 512
_PROBE_TIMEOUT_S: Final = 2.0
# sun_path has 108 bytes, the last of them zero. Source: unix(7).
_ADDRESS_MAX: Final = 107
# Asked all the time: their log lines say little.
_QUIET: Final = frozenset(
    {
        *("Probe", "GetPluginInfo", "GetPluginCapabilities", "GetInfo"),
        *("ControllerGetCapabilities", "NodeGetCapabilities", "NodeGetInfo"),
        *("NodeGetVolumeStats", "ListVolumes", "ListSnapshots", "GetCapacity"),
    }
)
# Answers a request, which has so many seconds left.
Handler = Callable[[Any, float | None], Any]
Handlers = Mapping[str, Mapping[str, Handler]]


class CsiServer:
    """Answers at the socket *path*, which only root can open."""

    def __init__(self, path: Path, package: Package, handlers: Handlers) -> None:
        """
        Listen; nobody is answered yet.

        Raises:
            ConfigError: *path* cannot be used.

        """
        self.path = path
        self._server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="csi"),
            maximum_concurrent_rpcs=_CALLS_MAX,
        )
        for service, methods in handlers.items():
            self._server.add_generic_rpc_handlers(
                (_generic(package, service, methods),)
            )
        _prepare(path)
        mask = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise ConfigError(
                [f"cannot listen at {path}: {one_line(str(error))}"],
                source="--endpoint",
            ) from error
        finally:
            os.umask(mask)

    def start(self) -> None:
        """Answer from now on."""
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """
        Answer nobody new, and give the calls under way *grace_s*.

        The socket goes at once. Meanwhile a new driver may have one at the same path.
        """
        self._server.stop(grace_s).wait()


def _generic(
    package: Package, service: str, methods: Mapping[str, Handler]
) -> grpc.GenericRpcHandler:
    """Return what finds the methods of *service*; others are UNIMPLEMENTED."""
    known = package.services[service]
    found = {
        name: grpc.unary_unary_rpc_method_handler(
            _answering(name, handler),
            request_deserializer=known[name].ask.FromString,
            response_serializer=known[name].answer.SerializeToString,
        )
        for name, handler in methods.items()
    }
    return grpc.method_handlers_generic_handler(f"{package.name}.{service}", found)


def _answering(name: str, handler: Handler) -> Callable[[Any, Any], Any]:
    """Return *handler* with what is around each call; requests may have secrets."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        began_s = monotonic_s()
        try:
            answered = handler(request, context.time_remaining())
        except RemoraError as error:
            status, told = status_of(error), _told(error)
        except Exception:
            reference = secrets.token_hex(4)
            log.exception("internal error %s", reference)
            status, told = Code.INTERNAL, f"a fault in Remora; log line {reference}"
        else:
            _log(name, request, began_s, Code.OK, "")
            return answered
        _log(name, request, began_s, status, told)
        context.abort(status, told)
        raise AssertionError  # abort has raised

    return answer


def _told(error: RemoraError) -> str:
    hint = f" (hint: {error.hint})" if error.hint else ""
    return f"{error.cause}{hint}"


def _log(
    name: str, request: Any, began_s: float, status: grpc.StatusCode, told: str
) -> None:
    duration_ms = round((monotonic_s() - began_s) * 1000, 1)
    about = getattr(request, "volume_id", "") or getattr(request, "name", "")
    more = {"volume": one_line(str(about)[:128])} if about else {}
    level = logging.DEBUG if name in _QUIET and status is Code.OK else logging.INFO
    log.log(
        level,
        "call",
        extra=fields(
            op=name,
            **more,
            duration_ms=duration_ms,
            code=status.name,
            **({"error": told} if told else {}),
        ),
    )


def _prepare(path: Path) -> None:
    """Have nothing at *path* but what a killed driver has left; raise ConfigError."""
    if len(os.fsencode(path)) > _ADDRESS_MAX:
        why = f"a socket's path has at most {_ADDRESS_MAX} bytes: {path}"
        raise ConfigError([why], source="--endpoint")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not path.exists() and not path.is_symlink():
            return
        if path.is_symlink() or not path.is_socket():
            why = f"{path} exists and is not a socket"
            raise ConfigError([why], source="--endpoint")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_TIMEOUT_S)
            try:
                probe.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)
                return
        raise ConfigError([f"another process listens at {path}"], source="--endpoint")
    except OSError as error:
        why = f"cannot listen at {path}: {error.strerror}"
        raise ConfigError([why], source="--endpoint") from error
