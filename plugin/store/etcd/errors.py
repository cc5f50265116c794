"""The errors of calls to etcd, sorted by what they mean for the caller."""

from __future__ import annotations

from typing import Final

from plugin.errors import StoreError

# gRPC status codes. Source: grpc.github.io/grpc/core/md_doc_statuscodes.html.
NOT_FOUND: Final = 5
# A revision is no longer kept.
OUT_OF_RANGE: Final = 11
ALREADY_EXISTS_MESSAGE: Final = "lease already exists"
_UNAUTHENTICATED: Final = 16
# With these codes the member gave up waiting: the request may still be done, or not.
_UNDECIDED: Final = frozenset({1, 2, 4, 13, 14, 15})
_NO_LEADER: Final = "no leader"
_TOKEN_REFUSED: Final = (
    "invalid auth token",
    "revision of auth store is old",
    "user name is empty",
)


_FULL: Final = "database space exceeded"
FULL_HINT: Final = (
    "every write is refused until etcdctl compact, defrag and alarm disarm have made "
    "room: docs/guides/cluster.md, 'etcd is full'"
)


class RefusedError(StoreError):
    """The cluster decided: it will not do this, and has not done it."""

    unanswered = False

    def __init__(self, message: str, *, code: int, hint: str = "") -> None:
        super().__init__(f"etcd refused: {message}", hint=hint)
        self.grpc_code = code
        self.message = message

    @property
    def token_refused(self) -> bool:
        """Return whether signing in again may help."""
        return self.grpc_code == _UNAUTHENTICATED or is_token_refused(self.message)


class UnknownOutcomeError(StoreError):
    """The transaction may have been done, or be done later; nobody could tell."""


class AttemptError(Exception):
    """
    One member told no success; *maybe_done*: it may have done it, or do so later.

    It is *lasting* if asking it again would end in the same way.
    """

    def __init__(self, cause: str, *, maybe_done: bool, lasting: bool = False) -> None:
        super().__init__(cause)
        self.maybe_done = maybe_done
        self.lasting = lasting


class NoAnswerError(StoreError):
    """No member answered in time; *maybe_done* as in `AttemptError`."""

    def __init__(self, cause: str, *, maybe_done: bool) -> None:
        super().__init__(
            f"etcd did not answer: {cause}",
            hint="see that a majority of its members runs and can be reached",
        )
        self.maybe_done = maybe_done


def is_token_refused(message: str) -> bool:
    """Return whether *message* says that our token is no longer good."""
    return any(each in message for each in _TOKEN_REFUSED)


def from_answer(status: int, code: int, message: str) -> Exception:
    """Return the error for a member's answer that is not a success."""
    if code in _UNDECIDED or (not code and status >= 500):
        # A member without a leader refuses before it proposes anything.
        return AttemptError(message, maybe_done=_NO_LEADER not in message)
    return RefusedError(message, code=code, hint=FULL_HINT if _FULL in message else "")
