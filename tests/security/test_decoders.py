"""
What nobody should have written, given to everything that reads what others write.

A decoder returns a value or raises an error of its own, in bounded time and memory. In
the gate each has a few dozen examples; ``REMORA_FUZZ_MINUTES`` gives all of them
together as many minutes, and the long run an hour.
"""

from __future__ import annotations

import ast
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.support.decoder_seeds import SEEDS
from tests.support.decoders import DECODERS, Decoder

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = 40
LONG_EXAMPLES = 2_000
# One example; what takes longer stops somebody.
EXAMPLE_MAX_S = 30
GROWTH_MAX_KIB = 300 * 1024
READS = {"from_json", "from_objects", "json_decoder", "msgpack_decoder", "read_request"}
DATABASES = {"file: manifest", "file: database", "file: mirror"}
_SETTINGS = settings(
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _bounded_time() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _too_long)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"an example took more than {EXAMPLE_MAX_S} s")


def _try(decoder: Decoder, directory: Path, examples: int) -> int:
    """Give *decoder* as many *examples*; return how many there were."""
    count = 0

    @settings(_SETTINGS, max_examples=examples)
    @given(content=decoder.contents)
    def try_one(content: bytes) -> None:
        nonlocal count
        count += 1
        signal.alarm(EXAMPLE_MAX_S)
        try:
            decoder.decode(directory, content)
        except decoder.refusals as error:
            assert str(error)
        finally:
            signal.alarm(0)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try_one()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + GROWTH_MAX_KIB
    return count


@pytest.mark.parametrize("name", sorted(SEEDS.keys() - DATABASES))
def test_what_is_good_is_read(name: str, tmp_path: Path) -> None:
    """Else nothing but the first check would be tried."""
    assert DECODERS[name].decode(tmp_path, SEEDS[name])


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_a_decoder_returns_or_refuses(name: str, tmp_path: Path) -> None:
    _try(DECODERS[name], tmp_path, EXAMPLES)


@pytest.mark.long
@pytest.mark.timeout(12 * 3600)
def test_decoders_for_an_hour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All in turn, as often as there is time, each time with other examples."""
    minutes = float(os.environ.get("REMORA_FUZZ_MINUTES", "60"))
    end_s = time.monotonic() + 60 * minutes
    counts = dict.fromkeys(DECODERS, 0)
    while time.monotonic() < end_s:
        for number, (name, decoder) in enumerate(DECODERS.items()):
            (directory := tmp_path / str(number)).mkdir(exist_ok=True)
            counts[name] += _try(decoder, directory, LONG_EXAMPLES)
            if time.monotonic() >= end_s:
                break
    with capsys.disabled():
        for name, count in counts.items():
            print(f"{count:9,}  {name}")


def _readers(path: Path) -> set[str]:
    """Return which functions that decode are called in the module *path*."""
    calls = [
        each
        for each in ast.walk(ast.parse(path.read_text()))
        if isinstance(each, ast.Call)
    ]
    names = {each.func.id for each in calls if isinstance(each.func, ast.Name)}
    loads = any(
        isinstance(each.func, ast.Attribute)
        and each.func.attr in ("loads", "load")
        and isinstance(each.func.value, ast.Name)
        and each.func.value.id in ("json", "tomllib")
        for each in calls
    )
    return (names & READS) | ({"json.loads"} if loads else set())


# They read what our own programs, the engine, etcd, or whoever types a command say, or
# ask other decoders.
OWN = {
    "backends/readonly/copies.py",
    "backends/nfs/agent/main.py",
    "backends/nfs/share.py",
    "backends/rsync/journal/block_index.py",
    "backends/rsync/snapshots.py",
    "backends/system/block_devices.py",
    "backends/system/copying.py",
    "backends/system/decoding.py",
    "backends/system/index_blocks.py",
    "backends/system/jailed.py",
    "backends/system/programs.py",
    "backends/system/tree.py",
    "plugin/api/admin/bodies.py",
    "plugin/cli/cmd_quarantine.py",
    "plugin/enrolment/configuration.py",
    "plugin/enrolment/steps.py",
    "plugin/fencing/client.py",
    "plugin/fencing/guard.py",
    "plugin/joining/section.py",
    "plugin/membership/addresses.py",
    "plugin/membership/directory.py",
    "plugin/ownership/heads.py",
    "plugin/peers/receive.py",
    "plugin/peers/server.py",
    "plugin/store/etcd/watch.py",
    "plugin/engine/engine_api.py",
    "plugin/volumes/catalogue.py",
}


def test_every_decoder_is_known() -> None:
    """A new module that decodes stands in `tests/support/decoders.py`, or in `OWN`."""
    support = REPOSITORY / "tests/support"
    tried = _imported(support / "decoders.py")
    tried |= _imported(support / "journal_decoders.py")
    reading = {
        str(path.relative_to(REPOSITORY))
        for package in ("plugin", "backends")
        for path in (REPOSITORY / package).rglob("*.py")
        if _readers(path)
    }
    assert sorted(reading - OWN - tried) == []
    assert OWN - reading == set()


def _imported(path: Path) -> set[str]:
    """Return the files of the modules that the module *path* imports."""
    found = set()
    for each in ast.walk(ast.parse(path.read_text())):
        if isinstance(each, ast.ImportFrom):
            module = f"{each.module}".replace(".", "/")
            found |= {
                f"{module}.py",
                *(f"{module}/{name.name}.py" for name in each.names),
            }
    return found
