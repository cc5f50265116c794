"""What people wait for: volumes and containers of one engine, driver by driver."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.support.images import BUSYBOX_IMAGE

from .figures import turns
from .report import Row, Target, row
from .subjects import EngineApi, Rclone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.support.engine import Engine

    from .sizes import Sizes

AGAINST_LOCAL = Target(ratio_max=1.15)
SECTION = "Volumes and containers of an engine"
RUN_VOLUME = "bench-run"
PAIR_VOLUME = "bench-pair"


def measure(engine: Engine, rclone: Rclone | None, sizes: Sizes) -> Iterator[Row]:
    """Yield the rows; the engine runs, with the plugins of all drivers."""
    options: dict[str, Mapping[str, str]] = {"local": {}, "remora": {}, "no-op": {}}
    if rclone is not None:
        options["rclone"] = rclone.options
    api = EngineApi(engine.host)
    try:
        bench = _Bench(engine, api, options, warm_up=sizes.warm_up)
        bench.make_volumes()
        create = "volume create + rm, "
        run = "run --rm -v volume:/d image true, "
        for key, what, action, rounds in (
            ("pair-api", create + "engine API", bench.pair_api, sizes.pair_rounds_api),
            ("pair-cli", create + "CLI", bench.pair_cli, sizes.pair_rounds_cli),
            ("run-api", run + "engine API", bench.run_api, sizes.run_rounds),
            ("run-cli", run + "CLI", bench.run_cli, sizes.run_rounds),
        ):
            samples = bench.in_turns(action, rounds)
            yield row(SECTION, key, what, samples, target=AGAINST_LOCAL)
        bench.remove_volumes()
    finally:
        api.close()


class _Bench:
    def __init__(
        self,
        engine: Engine,
        api: EngineApi,
        options: Mapping[str, Mapping[str, str]],
        *,
        warm_up: bool,
    ) -> None:
        self._warm_up = warm_up
        self._engine = engine
        self._api = api
        self._options = options

    def in_turns(
        self, action: Callable[[str], None], rounds: int
    ) -> dict[str, list[float]]:
        """Return the ms that *action* took for each driver, round by round."""
        times: dict[str, list[float]] = {driver: [] for driver in self._options}
        for driver in self._options if self._warm_up else ():
            action(driver)  # the first time has the engine look for the plugin
        for order in turns(tuple(self._options), rounds):
            for driver in order:
                start = time.perf_counter()
                action(driver)
                times[driver].append((time.perf_counter() - start) * 1000)
        return times

    def make_volumes(self) -> None:
        for driver in self._options:
            self._create(driver, f"{RUN_VOLUME}-{driver}")

    def remove_volumes(self) -> None:
        for driver in self._options:
            self._api.request("DELETE", f"/volumes/{RUN_VOLUME}-{driver}")

    def _create(self, driver: str, name: str) -> None:
        body = {"Name": name, "Driver": driver, "DriverOpts": self._options[driver]}
        self._api.request("POST", "/volumes/create", body)

    def pair_api(self, driver: str) -> None:
        """Make a volume and remove it."""
        name = f"{PAIR_VOLUME}-{driver}"
        self._create(driver, name)
        self._api.request("DELETE", f"/volumes/{name}")

    def pair_cli(self, driver: str) -> None:
        """Make a volume and remove it with `docker`."""
        given = [f"--opt={key}={text}" for key, text in self._options[driver].items()]
        name = f"{PAIR_VOLUME}-{driver}"
        self._engine.docker("volume", "create", "-d", driver, *given, name)
        self._engine.docker("volume", "rm", name)

    def run_api(self, driver: str) -> None:
        """Run a container that ends at once, and remove it."""
        body = {
            "Image": BUSYBOX_IMAGE,
            "Cmd": ["true"],
            "HostConfig": {
                "Binds": [f"{RUN_VOLUME}-{driver}:/d"],
                "NetworkMode": "none",
            },
        }
        container = self._api.request("POST", "/containers/create", body)["Id"]
        self._api.request("POST", f"/containers/{container}/start")
        self._api.request("POST", f"/containers/{container}/wait")
        self._api.request("DELETE", f"/containers/{container}")

    def run_cli(self, driver: str) -> None:
        """Run a container that ends at once with `docker run --rm`."""
        self._engine.run("-v", f"{RUN_VOLUME}-{driver}:/d", BUSYBOX_IMAGE, "true")
