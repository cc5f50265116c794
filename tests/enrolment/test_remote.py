"""Commands on the other machine: bounds, files, connections that break."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.enrolment.login import Login, connect
from plugin.enrolment.remote import RemoteMachine
from plugin.errors import EnrolmentError
from tests.enrolment.conftest import Answers
from tests.support.etcd import new_address
from tests.support.host import wait_until
from tests.support.processes import with_argument
from tests.support.ssh_server import SshServer

MIB = 1024 * 1024


@pytest.fixture
def machine(server: SshServer) -> Iterator[RemoteMachine]:
    login = Login(host=server.address, port=server.port, identity=server.identity)
    machine = connect(login, Answers(trust=True))
    yield machine
    machine.close()


def test_arguments_and_input_arrive_as_they_are(machine: RemoteMachine) -> None:
    strange = "a 'b' $(c) \\ \n d"
    done = machine.run(
        'printf "%s" "$1"; cat >&2', strange, what="echo", stdin=b"input"
    )
    assert (done.output, done.errors) == (strange, "input")


def test_a_failure_is_its_last_line(machine: RemoteMachine) -> None:
    with pytest.raises(EnrolmentError, match=r": trying: second$"):
        machine.run("echo first >&2; echo second >&2; exit 3", what="trying")
    allowed = machine.run("exit 3", what="trying", allowed=(0, 3))
    assert allowed.exit_status == 3


def test_the_first_failure_ends_a_script(machine: RemoteMachine) -> None:
    with pytest.raises(EnrolmentError):
        machine.run("false; true", what="trying")


def test_a_command_ends_at_its_deadline_there_too(machine: RemoteMachine) -> None:
    mark = f"mark-{new_address()}"
    # In the foreground of a shell, with a child that does not care for SIGTERM.
    script = 'trap "" TERM; sleep 600 & wait; : "$1"'
    with pytest.raises(EnrolmentError, match="still running after 1 s"):
        machine.run(script, mark, what="waiting", deadline_s=1)
    wait_until(lambda: not with_argument(mark), timeout_s=60, what="it has ended")
    assert machine.run("echo on", what="going on").output == "on\n"


def test_output_is_bounded_and_both_streams_are_read(machine: RemoteMachine) -> None:
    """More than SSH's window on each stream, which would stop a reader of one."""
    script = "yes | head -c 5000000; yes no | head -c 5000000 >&2; echo end"
    done = machine.run(script, what="printing")
    assert len(done.output) == len(done.errors) == 64 * 1024
    assert done.output.endswith("end\n")


def test_much_input_for_a_command_that_does_not_read(machine: RemoteMachine) -> None:
    done = machine.run("exit 5", what="x", stdin=bytes(8 * MIB), allowed=(5,))
    assert done.exit_status == 5


def test_files_are_replaced_whole(machine: RemoteMachine, tmp_path: Path) -> None:
    path = tmp_path / "made/as needed/file"
    content = bytes(range(256)) * 9000
    machine.write_file(str(path), content, mode=0o600)
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    machine.write_file(str(path), b"new\n", mode=0o644)
    assert path.read_bytes() == b"new\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert machine.read_file(str(path)) == "new\n"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_file_that_is_not_there(machine: RemoteMachine, tmp_path: Path) -> None:
    assert machine.read_file(str(tmp_path / "none")) is None
    assert machine.digest_of(str(tmp_path / "none")) == ""


def test_a_connection_that_breaks_leaves_the_old_file(
    machine: RemoteMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    class Breaking(io.BytesIO):
        """Some bytes, and then no connection any more."""

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= MIB:
                machine.close()
            return super().read(size)

    monkeypatch.setattr(
        "plugin.enrolment.remote.io.BytesIO", lambda content=b"": Breaking(content)
    )
    with pytest.raises(EnrolmentError, match="broke"):
        machine.write_file(str(path), bytes(4 * MIB), mode=0o600)
    # What was begun there notices that the rest does not come.
    wait_until(
        lambda: [each.name for each in tmp_path.iterdir()] == ["file"],
        timeout_s=60,
        what="nothing is left of the new file",
    )
    assert path.read_text() == "old"
