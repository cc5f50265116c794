#!/usr/bin/python3 -ISE
"""
Process 1 of a node: makes the node's filesystems, then runs commands for the host.

The node's root is the machine's own, read through hostfs, below an overlay that keeps
what the node writes on its first disk. Commands arrive as lines of JSON on a serial
line whose other end the host holds, so they get through whatever happens to the
network; what they print goes to files in a directory that both sides see.

Runs before anything is mounted, with nothing but the standard library; an import costs
tens of milliseconds here, so there are few (not pathlib), some only where needed.
"""
# ruff: noqa: PTH103, PTH110, PTH120, PTH123, PTH211

import _thread
import ctypes
import json
import os
import select
import signal
import time

MS_RDONLY, MS_BIND, MS_REC, MS_SHARED = 0x1, 0x1000, 0x4000, 0x100000
MS_NOATIME = 0x400
MNT_DETACH = 2
SYS_PIVOT_ROOT, SYS_FINIT_MODULE = 155, 313

EXCHANGE = "/run/lab"
SERIAL_LINE = "/dev/ttyS0"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
# How long a killed command may take to go before its caller is told that it stays.
UNKILLABLE_AFTER_S = 5.0

_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def mount(
    kind: str, at: str, *, source: str = "", flags: int = 0, options: str = ""
) -> None:
    os.makedirs(at, exist_ok=True)
    result = _libc.mount(
        (source or kind).encode(),
        at.encode(),
        kind.encode(),
        ctypes.c_ulong(flags),
        options.encode(),
    )
    check(result, f"mount {source or kind} at {at}")


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def command(*argv: str) -> None:
    pid = os.posix_spawnp(argv[0], argv, os.environ)
    if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise OSError(f"{' '.join(argv)}: exit {status}")


def boot(config: dict) -> None:
    """Make the node what *config* says, up to its addresses."""
    enter_root(config)
    mount_system(config)
    _libc.sethostname(config["name"].encode(), len(config["name"]))
    write("/etc/hostname", config["name"] + "\n")
    write("/etc/hosts", config["hosts"])
    write("/etc/machine-id", config["machine_id"] + "\n")
    modules = f"/lib/modules/{os.uname().release}"
    if not os.path.lexists(modules):
        os.makedirs(os.path.dirname(modules), exist_ok=True)
        os.symlink(config["modules"], modules)
    # What one kernel has as a module is built into another.
    load = [
        each for each in config["load"] if not os.path.exists(f"/sys/module/{each}")
    ]
    command("modprobe", "-a", *load)
    write(f"{EXCHANGE}/network", config["network"])
    command("ip", "-batch", f"{EXCHANGE}/network")


def enter_root(config: dict) -> None:
    """Make the overlay the root, and the machine's own filesystem unreachable."""
    mount("tmpfs", "/mnt")
    path = f"{config['modules']}/kernel/fs/overlayfs/overlay.ko"
    if os.path.exists(path):  # else it is built in
        module = os.open(path, os.O_RDONLY)
        check(_libc.syscall(SYS_FINIT_MODULE, module, b"", 0), path)
        os.close(module)
    mount("ext4", "/mnt/disk", source="/dev/ubda", flags=MS_NOATIME)
    for directory in ("upper", "work", "data"):
        os.makedirs(f"/mnt/disk/{directory}", exist_ok=True)
    layers = "lowerdir=/,upperdir=/mnt/disk/upper,workdir=/mnt/disk/work"
    mount("overlay", "/mnt/root", options=layers)
    config["kept"] = [
        (path, os.open(f"/mnt/root{path}", os.O_PATH)) for path in config["keep"]
    ]
    for path, inside in config["binds"].items():
        os.makedirs(f"/mnt/disk/data/{inside}", exist_ok=True)
        mount("", f"/mnt/root{path}", source=f"/mnt/disk/data/{inside}", flags=MS_BIND)
    os.makedirs("/mnt/root/mnt", exist_ok=True)
    # Not chroot: what the kernel starts itself (modprobe) has to see the overlay too.
    os.chdir("/mnt/root")
    check(_libc.syscall(SYS_PIVOT_ROOT, b".", b"mnt"), "pivot_root")
    os.chroot(".")
    check(_libc.umount2(b"/mnt", MNT_DETACH), "detach the old root")
    _libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_SHARED), None)


def mount_system(config: dict) -> None:
    """Mount what every system has, the exchange with the host, and the data disks."""
    mount("proc", "/proc")
    mount("sysfs", "/sys")
    mount("devtmpfs", "/dev")
    mount("devpts", "/dev/pts", options="ptmxmode=666,mode=620,gid=5")
    mount("tmpfs", "/dev/shm", options="mode=1777")
    mount("tmpfs", "/run", options="mode=755")
    mount("tmpfs", "/tmp", options="mode=1777")
    mount("tmpfs", "/sys/fs/cgroup", options="mode=755")
    with open("/proc/cgroups") as listed:
        for line in listed.read().splitlines()[1:]:
            name = line.split()[0]
            mount("cgroup", f"/sys/fs/cgroup/{name}", options=name)
    mount("cgroup", "/sys/fs/cgroup/systemd", options="none,name=systemd")
    mount("cgroup2", "/sys/fs/cgroup/unified")
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1")):
        os.symlink(f"/proc/self/{target}", f"/dev/{name}")
    os.symlink("/proc/self/fd/2", "/dev/stderr")
    for directory in ("lock", "rpcbind", "sshd", "docker/plugins"):
        os.makedirs(f"/run/{directory}", exist_ok=True)
    mount("hostfs", EXCHANGE, options=config["exchange"])
    # A checkout below /tmp, for example, which is another one now.
    for path, directory in config["kept"]:
        if not os.path.exists(path):
            mount("", path, source=f"/proc/self/fd/{directory}", flags=MS_BIND)
        os.close(directory)
    for disk in config["disks"]:
        mount(disk["kind"], disk["at"], source=disk["device"], options=disk["options"])


class Job:
    """A command that was started for the host."""

    def __init__(self, number: int, pid: int, deadline_s: float | None) -> None:
        self.number = number
        self.pid = pid
        now = time.monotonic()
        self.expires = None if deadline_s is None else now + deadline_s
        self.killed = False


class Agent:
    """Runs the host's commands; one poll loop, so that none waits for another."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.input = b""
        self.jobs: dict[int, Job] = {}
        self.sending = _thread.allocate_lock()
        self.wake, child_ended = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(child_ended)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def send(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self.sending:
            while data:
                data = data[os.write(self.line, data) :]

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self.line, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        while True:
            expiries = [job.expires for job in self.jobs.values() if job.expires]
            wait_ms = None
            if expiries:
                wait_ms = max(0.0, min(expiries) - time.monotonic()) * 1000 + 1
            ready = dict(poll.poll(wait_ms))
            if self.wake in ready:
                os.read(self.wake, 4096)
            if self.line in ready:
                self.receive()
            self.reap()
            self.expire()

    def receive(self) -> None:
        *lines, self.input = (self.input + os.read(self.line, 65536)).split(b"\n")
        for line in lines:
            request = json.loads(line)
            try:
                getattr(self, f"do_{request['do']}")(request)
            except Exception as error:  # noqa: BLE001 - the host has to hear of it
                self.send(id=request["id"], error=f"{type(error).__name__}: {error}")

    def do_start(self, request: dict) -> None:
        path = f"{EXCHANGE}/{request['id']}"
        out = request.get("out") or f"{path}.out"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, request.get("in") or os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, out, flags, 0o600),
        ]
        if request.get("out"):
            actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
        else:
            actions.append((os.POSIX_SPAWN_OPEN, 2, f"{path}.err", flags, 0o600))
        pid = os.posix_spawnp(
            request["argv"][0],
            request["argv"],
            {**os.environ, **request["env"]},
            file_actions=actions,
            setsid=True,
            setsigdef=(signal.SIGPIPE, signal.SIGCHLD, signal.SIGINT),
        )
        self.jobs[request["id"]] = Job(request["id"], pid, request["deadline_s"])
        if request["announce"]:
            self.send(id=request["id"], pid=pid)

    def do_signal(self, request: dict) -> None:
        job = self.jobs.get(request["job"])
        if job is not None:
            (os.killpg if request["group"] else os.kill)(job.pid, request["signal"])
        self.send(id=request["id"], done=job is not None)

    def do_exchange(self, request: dict) -> None:
        """Send bytes to a Unix socket of the node; hand back what it answers."""
        import threading

        threading.Thread(target=self.exchange, args=(request,), daemon=True).start()

    def exchange(self, request: dict) -> None:
        import socket

        path = f"{EXCHANGE}/{request['id']}"
        try:
            with (
                socket.socket(socket.AF_UNIX) as client,
                open(f"{path}.out", "wb") as out,
            ):
                client.settimeout(request["deadline_s"])
                client.connect(request["socket"])
                with open(request["in"], "rb") as sent:
                    client.sendall(sent.read())
                while data := client.recv(65536):
                    out.write(data)
        except OSError as error:
            self.send(id=request["id"], errno=error.errno, error=str(error))
        else:
            self.send(id=request["id"], done=True)

    def reap(self) -> None:
        by_pid = {job.pid: job for job in self.jobs.values()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = by_pid.get(pid)
            if job is not None and self.jobs.pop(job.number, None) is not None:
                code = os.waitstatus_to_exitcode(status)
                self.send(id=job.number, status=code, expired=job.killed)

    def expire(self) -> None:
        now = time.monotonic()
        for job in list(self.jobs.values()):
            if job.expires is None or job.expires > now:
                continue
            if job.killed:
                del self.jobs[job.number]
                self.send(id=job.number, status=None, expired=True)
                continue
            os.killpg(job.pid, signal.SIGKILL)
            job.killed = True
            job.expires = now + UNKILLABLE_AFTER_S


def main() -> None:
    mount("proc", "/proc")
    with open(os.environ["remora_lab_node"]) as file:  # noqa: SIM112 - the kernel's
        config = json.load(file)
    os.environ.update(ENVIRONMENT)
    boot(config)
    line = os.open(SERIAL_LINE, os.O_RDWR | os.O_NOCTTY)
    import tty

    tty.setraw(line)
    command("sh", "-euc", config["services"])
    agent = Agent(line)
    agent.send(id=0, ready=True)
    agent.serve()


if __name__ == "__main__":
    # Its end, with the reason on the console, is the end of the kernel.
    main()
