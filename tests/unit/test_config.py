"""The configuration: defaults, the file, the environment, and every fault at once."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.config import DEFAULT_PATH, ClusterConfig, Config, load
from plugin.daemon.backends import profile_faults
from plugin.errors import ConfigError
from tests.support.config_keys import (
    CLUSTER,
    DAEMON,
    REPLICATION,
    SECTIONS,
    SWARM,
    environment_names,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def read(
    tmp_path: Path, text: str, environment: Mapping[str, str] | None = None
) -> Config:
    file = tmp_path / "remora.toml"
    file.write_text(text)
    return load(file, environment or {})


def faults_of(
    tmp_path: Path, text: str, environment: Mapping[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, environment)
    return caught.value.faults


def test_the_defaults_are_those_that_everything_relies_on(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Config(
        plugin_socket=Path("/run/docker/plugins/remora.sock"),
        control_socket=Path("/run/remora/control.sock"),
        state_dir=Path("/var/lib/remora"),
        pool=Path("/var/lib/remora/pool"),
        mount_dir=Path("/var/lib/remora/mounts"),
        log_format="auto",
        metrics_address="",
        mount_deadline_s=100.0,
        disuse_grace_s=60.0,
        boot_wait_s=300.0,
        start_containers=False,
        profiles={},
        cluster=ClusterConfig(
            etcd=(),
            etcd_prefix="/remora/",
            node_name="",
            peer_port=7424,
            lease_ttl_s=15.0,
            freeze_max_s=60.0,
            mount_wait_s=20.0,
            failsafe=True,
            replace_after="1800s",
        ),
    )
    assert Path("/etc/remora/remora.toml") == DEFAULT_PATH


def test_pool_and_mounts_follow_the_state_directory(tmp_path: Path) -> None:
    config = read(tmp_path, '[daemon]\nstate_dir = "/srv/r"')
    assert (config.pool, config.mount_dir) == (
        Path("/srv/r/pool"),
        Path("/srv/r/mounts"),
    )
    config = read(tmp_path, '[daemon]\nstate_dir = "/srv/r"\npool = "/disk"')
    assert (config.pool, config.mount_dir) == (Path("/disk"), Path("/srv/r/mounts"))
    config = read(tmp_path, "", {"REMORA_STATE_DIR": "/srv/e"})
    assert config.pool == Path("/srv/e/pool")


def test_every_key_is_read_from_the_file_and_from_the_environment(
    tmp_path: Path,
) -> None:
    both = {
        **DAEMON,
        **CLUSTER,
        **REPLICATION,
        **{f"swarm_{key}": SWARM[key] for key in SWARM},
    }
    environment = {f"REMORA_{key.upper()}": both[key][0] for key in both}
    assert environment_names() == sorted(environment)
    text = "".join(
        f"[{name}]\n" + "".join(f"{key} = {keys[key][1]}\n" for key in keys)
        for name, keys in SECTIONS.items()
    )
    config = read(tmp_path, text)
    assert config == read(tmp_path, "", environment)
    assert (config.mount_deadline_s, config.disuse_grace_s) == (12.5, 0.0)
    assert config.cluster.etcd == ("http://a:1", "http://b:2")
    assert config.cluster.failsafe is False
    assert config.replication.bandwidth_limit_bytes == 20 * 2**20
    assert config.replication.nice == 5
    for key in DAEMON:
        assert getattr(config, key) != getattr(Config(), key), key
    for key in CLUSTER:
        assert getattr(config.cluster, key) != getattr(ClusterConfig(), key), key


def test_the_shortest_lease(tmp_path: Path) -> None:
    path = tmp_path / "remora.toml"
    path.write_text("[cluster]\nlease_ttl_s = 8")
    assert load(path, {}).cluster.lease_ttl_s == 8


def test_the_environment_wins_and_other_variables_are_nobodys_fault(
    tmp_path: Path,
) -> None:
    text = '[daemon]\nlog_format = "json"\nmount_deadline_s = 5'
    environment = {
        "REMORA_LOG_FORMAT": "console",
        "REMORA_CONFIG": "/elsewhere",
        "REMORA_TESTS_WORK": "x",
        "remora_pool": "/lower",
        "PATH": "/bin",
    }
    config = read(tmp_path, text, environment)
    assert (config.log_format, config.mount_deadline_s) == ("console", 5.0)
    assert config.pool == Path("/var/lib/remora/pool")


def test_an_empty_variable_is_none(tmp_path: Path) -> None:
    """The managed plugin has all of its variables, set or not."""
    text = '[daemon]\nlog_format = "json"\n[cluster]\npeer_port = 99'
    environment = dict.fromkeys(environment_names(), "")
    assert read(tmp_path, text, environment) == read(tmp_path, text)


def test_a_variable_mends_a_fault_of_the_file(tmp_path: Path) -> None:
    text = '[daemon]\npool = "relative"'
    assert read(tmp_path, text, {"REMORA_POOL": "/p"}).pool == Path("/p")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = """
    [daemon]
    state_dir = "relative"
    pool = 5
    log_format = "xml"
    mount_deadline_s = 101
    disuse_grace_s = -1
    metrics_address = "0.0.0.0:9550"
    colour = "red"
    [profiles.fast]
    backend = "floppy"
    mode = [1]
    [volumes]
    x = 1
    """
    environment = {"REMORA_CONTROL_SOCKET": "/" + "x" * 107}
    faults = faults_of(tmp_path, text, environment)
    starts = (
        "unknown section [volumes] (valid: [daemon], [cluster], [replication], ",
        "[daemon] colour: unknown key (valid: allowed_options, boot_wait_s,",
        "[daemon] pool: ",
        "[daemon] log_format: ",
        "[daemon] mount_deadline_s: ",
        "[daemon] disuse_grace_s: ",
        "state_dir: must be an absolute path, not 'relative'",
        "[profiles.fast] backend: 'floppy' is none of ",
        "[profiles.fast] mode: must be a string or a number",
        "control_socket: 108 bytes; a socket's path has at most 107",
        "metrics_address: must be 127.0.0.1:PORT or [::1]:PORT",
    )
    for start in starts:
        assert [each for each in faults if each.startswith(start)], start
    assert len(faults) == len(starts)


def test_the_error_is_one_line_that_counts_and_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "[daemon]\na = 1\nb = 2")
    shown = str(caught.value)
    assert shown.startswith(f"config: 2 faults in {tmp_path}/remora.toml: [daemon] a: ")
    assert "; [daemon] b: " in shown
    assert shown.isprintable()
    assert caught.value.exit_code == 17
    assert "1 fault in" in str(ConfigError(["x"], source="y"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pool", "."),
        ("pool", "pool"),
        ("mount_dir", "/a/../b"),
        ("plugin_socket", "unix:///run/x.sock"),
        ("log_format", "JSON"),
        ("mount_deadline_s", "0"),
        ("mount_deadline_s", "100.1"),
        ("mount_deadline_s", "nan"),
        ("mount_deadline_s", "inf"),
        ("mount_deadline_s", "10s"),
        ("disuse_grace_s", "3601"),
        ("disuse_grace_s", "-0.1"),
        ("boot_wait_s", "-1"),
        ("boot_wait_s", "3601"),
        ("boot_wait_s", "5m"),
        ("start_containers", "yes"),
        ("metrics_address", "9550"),
        ("metrics_address", ":9550"),
        ("metrics_address", "localhost:9550"),
        ("metrics_address", "192.0.2.1:9550"),
        ("metrics_address", "127.0.0.1"),
        ("metrics_address", "127.0.0.1:"),
        ("metrics_address", "127.0.0.1:http"),
        ("metrics_address", "127.0.0.1:65536"),
        ("metrics_address", "127.0.0.1:0"),
        ("metrics_address", "127.0.0.1:٣٣٣"),
        ("metrics_address", "::1:9550"),
    ],
)
def test_values_that_are_none(tmp_path: Path, key: str, value: str) -> None:
    [fault] = faults_of(tmp_path, "", {f"REMORA_{key.upper()}": value})
    assert key in fault.lower()


@pytest.mark.parametrize(
    "line",
    [
        'mount_deadline_s = "5"',
        "mount_deadline_s = true",
        "mount_deadline_s = nan",
        "pool = 5",
        'pool = ["/a"]',
        'pool = "/a\\u0000b"',
        'control_socket = "/a\\nb"',
        "metrics_address = 9550",
        "log_format = {}",
    ],
)
def test_values_of_another_kind(tmp_path: Path, line: str) -> None:
    [fault] = faults_of(tmp_path, f"[daemon]\n{line}")
    assert line.partition(" ")[0] in fault


@pytest.mark.parametrize(
    ("pool", "mount_dir"), [("/a", "/a"), ("/a", "/a/m"), ("/a/p", "/a"), ("/", "/m")]
)
def test_pool_and_mounts_lie_apart(tmp_path: Path, pool: str, mount_dir: str) -> None:
    """Else a removal could reach through a mount, or a mount hide the pool."""
    environment = {"REMORA_POOL": pool, "REMORA_MOUNT_DIR": mount_dir}
    [fault] = faults_of(tmp_path, "", environment)
    assert "must lie apart" in fault
    assert read(tmp_path, "", environment | {"REMORA_POOL": "/am"}).pool == Path("/am")


def test_two_sockets_at_one_path_are_a_fault(tmp_path: Path) -> None:
    both = {"REMORA_PLUGIN_SOCKET": "/a", "REMORA_CONTROL_SOCKET": "/a"}
    [fault] = faults_of(tmp_path, "", both)
    assert "control_socket" in fault


@pytest.mark.parametrize("length", [107, 108])
def test_a_sockets_path_has_a_longest_length(tmp_path: Path, length: int) -> None:
    # Counted in bytes: this letter has two.
    path = "/" + "ü" * 53 + "x" * (length - 107)
    environment = {"REMORA_PLUGIN_SOCKET": path}
    if length == 107:
        assert str(read(tmp_path, "", environment).plugin_socket) == path
    else:
        assert "108 bytes" in faults_of(tmp_path, "", environment)[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("daemon = 3", "[daemon] must be a table"),
        ("[[daemon]]", "[daemon] must be a table"),
        ("profiles = 3", "[profiles] must hold tables: [profiles.NAME]"),
        ("[profiles]\nx = 1", "[profiles.x] must be a table of options"),
        ("[profiles.x]\na = true", "[profiles.x] a: must be a string or a number"),
        ("[profiles.x]\na = 1.5", "[profiles.x] a: must be a string or a number"),
        ('[profiles.x]\nprofile = "y"', "a profile cannot name a profile"),
        ("[Daemon]", "unknown section [Daemon]"),
        ("a", "cannot be read"),
        ("[daemon]\n[daemon]", "cannot be read"),
    ],
)
def test_sections_that_are_none(tmp_path: Path, text: str, told: str) -> None:
    assert [each for each in faults_of(tmp_path, text) if told in each]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def fault(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        [told] = caught.value.faults
        return told

    missing = tmp_path / "missing"
    assert fault(missing) == f"{missing} does not exist"
    assert f"{tmp_path} cannot be read: " in fault(tmp_path)
    latin = tmp_path / "latin"
    latin.write_bytes(b'[daemon]\npool = "/\xff"')
    assert f"{latin} cannot be read: " in fault(latin)


def test_profiles_are_tables_of_strings_and_numbers(tmp_path: Path) -> None:
    text = '[profiles.app]\nuid = 1000\nmode = "0750"\n[profiles.default]\ngid = 7'
    config = read(tmp_path, text)
    assert config.profiles == {
        "app": {"uid": "1000", "mode": "0750"},
        "default": {"gid": "7"},
    }
    assert profile_faults(config) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ('mode = "rwx"', "option 'mode': must be octal permissions"),
        ('sise = "1G"', "unknown option 'sise'"),
        ('uid = "root"', "option 'uid': must be a numeric id"),
        ("uid = -1", "option 'uid': must be a numeric id"),
        ('interval = "0s"', "option 'interval': must be a duration above zero"),
    ],
)
def test_a_profiles_options_are_checked_by_its_backend(
    tmp_path: Path, options: str, told: str
) -> None:
    config = read(tmp_path, f"[profiles.bad]\n{options}\n[profiles.good]\nuid = 1")
    [fault] = profile_faults(config)
    assert fault.startswith("[profiles.bad] ")
    assert told in fault


def test_the_packaged_file_holds_every_default(tmp_path: Path) -> None:
    """Its comments are the values; with their # taken away it means the same."""
    packaged = (REPOSITORY / "packaging/remora.toml").read_text()
    assert read(tmp_path, packaged) == Config()
    lines = [line for line in packaged.splitlines() if not line.startswith("# ")]
    plain = "\n".join(line.removeprefix("#") for line in lines)
    assert tomllib.loads(plain)["daemon"]["mount_deadline_s"] == 100
    told = read(tmp_path, plain)
    assert profile_faults(told) == []
    for key in tomllib.loads(plain)["daemon"]:
        if key != "metrics_address":
            assert getattr(told, key) == getattr(Config(), key), key


@given(
    st.dictionaries(
        st.sampled_from(environment_names()),
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=120),
        max_size=4,
    )
)
def test_any_environment_is_a_configuration_or_one_line_of_faults(
    environment: dict[str, str],
) -> None:
    try:
        config = load(None, environment)
    except ConfigError as error:
        assert error.faults
        assert str(error).isprintable()
    else:
        assert config.pool.is_absolute()
        assert 0 < config.mount_deadline_s <= 100
