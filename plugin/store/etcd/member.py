"""One member of the cluster, asked once: bytes out, bytes in, errors sorted."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from backends.system import clock
from plugin.store.etcd.errors import AttemptError, RefusedError, from_answer

ANSWER_SIZE_MAX: Final = 64 * 1024 * 1024
_READ_SIZE: Final = 256 * 1024
# So many are kept for reuse; more are made if need be, and closed after their call.
_CONNECTIONS_MAX: Final = 64
# A member's words for a refused handshake; it has then not read our request.
_HANDSHAKE_REFUSED: Final = (
    "CERTIFICATE",
    "UNKNOWN_CA",
    "HANDSHAKE",
    "PROTOCOL_VERSION",
    "WRONG_VERSION_NUMBER",
)


class Member:
    """An endpoint and its connections."""

    def __init__(self, endpoint: str, context: ssl.SSLContext | None) -> None:
        self.endpoint = endpoint
        secure = {"ssl_context": context} if endpoint.startswith("https:") else {}
        self._pool = urllib3.connection_from_url(
            endpoint, maxsize=_CONNECTIONS_MAX, **secure
        )

    def ask(
        self,
        path: str,
        body: object,
        *,
        token: str,
        first_s: float,
        deadline: clock.Deadline,
    ) -> dict[str, Any]:
        """
        Return the member's answer, which begins within *first_s*.

        Raises:
            RefusedError: the cluster said no.
            AttemptError: this member gave no answer, or none that decides anything.

        """
        response = self._send(path, body, token, first_s)
        try:
            content = self._content(response, deadline)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        return self._checked(response.status, content)

    def open_stream(
        self, path: str, body: object, *, token: str, first_s: float, idle_s: float
    ) -> urllib3.BaseHTTPResponse:
        """
        Return a response whose first message is there within *first_s*.

        Reading on ends in an error after *idle_s* of silence.

        Raises:
            RefusedError, AttemptError: as `ask`.

        """
        response = self._send(path, body, token, first_s)
        if response.status != 200:
            try:
                content = self._content(response, clock.Deadline(first_s))
            finally:
                response.close()
            self._checked(response.status, content)
        connection = response.connection
        if isinstance(connection, HTTPConnection) and connection.sock is not None:
            connection.sock.settimeout(idle_s)
        return response

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._pool.close()

    def _send(
        self, path: str, body: object, token: str, timeout_s: float
    ) -> urllib3.BaseHTTPResponse:
        # A member that lost its leader says so at once instead of waiting for one.
        headers = {"Grpc-Metadata-hasleader": "true"}
        if token:
            headers["Authorization"] = token
        # Zero would mean "do not block" to the socket.
        wait_s = max(timeout_s, 0.001)
        try:
            return self._pool.urlopen(
                "POST",
                path,
                body=msgspec.json.encode(body),
                headers=headers,
                timeout=urllib3.Timeout(connect=wait_s, read=wait_s),
                retries=False,
                redirect=False,
                preload_content=False,
            )
        except (HTTPError, OSError) as error:
            raise self._fault(error) from error

    def _content(
        self, response: urllib3.BaseHTTPResponse, deadline: clock.Deadline
    ) -> bytes:
        content = bytearray()
        try:
            while chunk := response.read1(_READ_SIZE):
                content += chunk
                if len(content) > ANSWER_SIZE_MAX:
                    raise RefusedError(
                        f"an answer larger than {ANSWER_SIZE_MAX} bytes", code=0
                    )
                if deadline.passed():
                    raise AttemptError(f"{self.endpoint} is too slow", maybe_done=True)
        except (HTTPError, OSError) as error:
            raise self._fault(error, sent=True) from error
        return bytes(content)

    def _checked(self, status: int, content: bytes) -> dict[str, Any]:
        """Return the decoded answer; raise what it says if it is an error."""
        try:
            answer = msgspec.json.decode(content)
        except msgspec.DecodeError:
            answer = None
        if status == 200 and isinstance(answer, dict):
            if "error" not in answer:
                return answer
            answer = answer["error"]  # a stream's error comes after its status line
        fields: Mapping[str, Any] = answer if isinstance(answer, dict) else {}
        message = str(
            fields.get("message") or fields.get("error") or f"HTTP status {status}"
        )
        code = int(fields.get("grpc_code") or fields.get("code") or 0)
        error = from_answer(status, code, message)
        if isinstance(error, AttemptError):
            raise AttemptError(f"{self.endpoint}: {error}", maybe_done=error.maybe_done)
        raise error

    def _fault(self, error: Exception, *, sent: bool = False) -> AttemptError:
        """Return what *error* means: what was never sent was never done."""
        if isinstance(error, NewConnectionError | ConnectTimeoutError):
            return AttemptError(f"cannot connect to {self.endpoint}", maybe_done=sent)
        reason = _tls_reason(error)
        if reason:
            refused = any(each in reason for each in _HANDSHAKE_REFUSED)
            return AttemptError(
                f"TLS with {self.endpoint}: {reason}",
                maybe_done=not refused,
                lasting=refused,
            )
        if isinstance(error, ReadTimeoutError | TimeoutError):
            return AttemptError(f"{self.endpoint} is silent", maybe_done=True)
        return AttemptError(f"{self.endpoint}: {error}", maybe_done=True)


def _tls_reason(error: BaseException | None) -> str:
    """Return OpenSSL's own word for a failure of TLS, or an empty text."""
    pending = [error] if error is not None else []
    for _ in range(8):  # urllib3 wraps errors in errors, not deeper than this
        if not pending:
            return ""
        each = pending.pop()
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"CERTIFICATE_VERIFY_FAILED: {each.verify_message}"
        if isinstance(each, ssl.SSLError):
            return each.reason or str(each)
        inner = [one for one in each.args if isinstance(one, BaseException)]
        pending += inner
        if isinstance(each, SSLError) and not inner:
            return str(each)
    return ""
