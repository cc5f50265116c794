"""How much is measured: the figures of a full run and of a smoke run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of volumes, rounds and bytes."""

    name: str
    warm_up: bool
    volumes: int
    calls: int
    change_rounds: int
    many_volumes: int
    many_calls: int
    start_rounds: int
    settle_s: float
    calls_before_memory: int
    pair_rounds_api: int
    pair_rounds_cli: int
    run_rounds: int
    io_rounds: int
    io_file_bytes: int
    io_small_files: int
    io_synced_writes: int


FULL = Sizes(
    name="full",
    warm_up=True,
    volumes=100,
    calls=2000,
    change_rounds=150,
    many_volumes=10_000,
    many_calls=50,
    start_rounds=15,
    settle_s=1.0,
    calls_before_memory=1000,
    pair_rounds_api=150,
    pair_rounds_cli=80,
    run_rounds=40,
    io_rounds=60,
    io_file_bytes=64 << 20,
    io_small_files=300,
    io_synced_writes=100,
)
QUICK = Sizes(
    name="quick",
    warm_up=False,
    volumes=5,
    calls=20,
    change_rounds=3,
    many_volumes=40,
    many_calls=3,
    start_rounds=1,
    settle_s=0.1,
    calls_before_memory=50,
    pair_rounds_api=3,
    pair_rounds_cli=1,
    run_rounds=1,
    io_rounds=2,
    io_file_bytes=1 << 20,
    io_small_files=20,
    io_synced_writes=5,
)
