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
    found, left = [], [process_id]
    while left:
        each = left.pop()
        if _read(each, "comm") != "ssh\n":
            found.append(_read(each, "io"))
            left += map(int, _read(each, f"task/{each}/children").split())
    return found


def _read(process_id: int, name: str) -> str:
    """Return a file of a process, "" if that has ended or the kernel has none."""
    try:
        with open(f"/proc/{process_id}/{name}", encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""
