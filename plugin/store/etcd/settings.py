"""Which cluster, who we are there, and how long we wait."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from plugin.errors import StoreError


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """
    How to reach an etcd cluster; all keys of ours begin with *prefix*.

    Give *ca_file* where the members' certificates are signed by a CA of one's own, and
    *certificate_file* and *key_file* where they ask for ours. etcd refuses a client
    certificate with a common name at its gateway as soon as users are switched on.
    """

    endpoints: tuple[str, ...]
    prefix: str = "/remora/"
    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    # A call ends within this, whatever the cluster does, a transaction within one
    # attempt more: together below the 5 s in which a Mount must say what is wrong.
    call_deadline_s: float = 3.5
    attempt_s: float = 1.25
    # A watch that heard nothing for so long is opened anew: silence proves nothing.
    watch_idle_s: float = 5.0


def tls_context(settings: EtcdSettings) -> ssl.SSLContext:
    """
    Return how to check members, and what to show them.

    Nothing of the environment is heeded (no REQUESTS_CA_BUNDLE), only *settings*.

    Raises:
        StoreError: a file cannot be read or is no certificate or key.

    """
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.certificate_file is not None:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
    except OSError as error:  # ssl.SSLError is one
        files = (settings.ca_file, settings.certificate_file, settings.key_file)
        names = ", ".join(str(each) for each in files if each is not None)
        raise StoreError(
            f"cannot use the certificates for etcd ({names}): {error}",
            hint="they must be PEM files that the daemon can read, and fit together",
        ) from error
    return context
