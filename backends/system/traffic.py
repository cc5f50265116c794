"""
What a program reads and writes: the sign of life of one that prints nothing.

It imports nothing: programs that start in a bare Python use it too.
"""


def traffic(process_id: int) -> list[str]:
    """
    Return what the kernel has counted of a program's reads and writes until now.

    It changes while the program works. Its children count, but for ssh, whose
    keepalives say nothing of the work. Source: proc_pid_io(5), proc_tid_children(5).
    """
    return [_read(each, "io") for each in _processes(process_id)]


def waits_for_lease(process_id: int) -> bool:
    """
    Return whether a program opens a file on which another one holds a lease.

    It waits for that to be given back, for 45 seconds. Source: fcntl(2), F_SETLEASE;
    proc_pid_wchan(5).
    """
    return "__break_lease" in [_read(each, "wchan") for each in _processes(process_id)]


def _processes(process_id: int) -> list[int]:
    """Return a program's processes, but for ssh."""
    found, left = [], [process_id]
    while left:
        each = left.pop()
        if _read(each, "comm") != "ssh\n":
            found.append(each)
            left += map(int, _read(each, f"task/{each}/children").split())
    return found


def _read(process_id: int, name: str) -> str:
    """Return a file of a process, "" if that has ended or the kernel has none."""
    try:
        with open(f"/proc/{process_id}/{name}", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
