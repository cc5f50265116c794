"""Remora's daemon: Docker's volume protocol, volume records, mounts and the CLI."""

__version__ = "0.1.0"
