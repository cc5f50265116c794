"""
Takes from this process all system calls but those that work on files needs.

A process with root's capabilities could mount, open files by their handles, or give a
disk orders: this is the lock behind the capabilities that a jail leaves. What is not
named here is refused, so also what later kernels will have. On machines other than
those below, and kernels without seccomp, there is no such lock.

Source: linux/filter.h, linux/audit.h, asm/unistd.h.
"""

import errno
import os
import struct

from backends.system import libc

_LOAD, _JUMP_IF_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
# Places in what the kernel shows the filter; of an argument, its low half. sendto's
# fifth is an address.
_NUMBER_AT, _MACHINE_AT, _FIRST_ARGUMENT_AT, _SECOND_ARGUMENT_AT = 0, 4, 16, 24
_ADDRESS_AT = 48
_ALL_BITS = 0xFFFFFFFF
_MACHINES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}
# Each call with its number on x86-64, and on arm64. There are no sockets, nor memory
# and queues of System V, which root shares with all of the machine.
_ALLOWED = """
    access 21 -  alarm 37 -  arch_prctl 158 -  brk 12 214  capget 125 90  capset 126 91
    chdir 80 49  chmod 90 -  chown 92 -  clock_getres 229 114  clock_gettime 228 113
    clock_nanosleep 230 115  close 3 57  close_range 436 436  copy_file_range 326 285
    creat 85 -  dup 32 23  dup2 33 -  dup3 292 24  execve 59 221  exit 60 93
    exit_group 231 94  faccessat 269 48  faccessat2 439 439  fadvise64 221 223
    fallocate 285 47  fchdir 81 50  fchmod 91 52  fchmodat 268 53  fchmodat2 452 452
    fchown 93 55  fchownat 260 54  fcntl 72 25  fdatasync 75 83  fgetxattr 193 10
    flistxattr 196 13  flock 73 32  fork 57 -  fremovexattr 199 16  fsetxattr 190 7
    fstat 5 80  fstatfs 138 44  fsync 74 82  ftruncate 77 46  futex 202 98
    futimesat 261 -  getcwd 79 17  getdents 78 -  getdents64 217 61  getegid 108 177
    geteuid 107 175  getgid 104 176  getgroups 115 158  getitimer 36 102
    getpgid 121 155  getpgrp 111 -  getpid 39 172  getppid 110 173  getrandom 318 278
    getresgid 120 150  getresuid 118 148  getrlimit 97 163  getrusage 98 165
    getsid 124 156  getsockopt 55 209  gettid 186 178  gettimeofday 96 169
    getuid 102 174  getxattr 191 8  kill 62 129  lchown 94 -  lgetxattr 192 9  link 86 -
    linkat 265 37  listxattr 194 11  llistxattr 195 12  lremovexattr 198 15  lseek 8 62
    lsetxattr 189 6  lstat 6 -  madvise 28 233  mkdir 83 -  mkdirat 258 34  mknod 133 -
    mknodat 259 33  mmap 9 222  mprotect 10 226  mremap 25 216  msync 26 227
    munmap 11 215  name_to_handle_at 303 264  nanosleep 35 101  newfstatat 262 79
    open 2 -  openat 257 56  openat2 437 437  pause 34 -  pipe 22 -  pipe2 293 59
    poll 7 -  ppoll 271 73
    prctl 157 167  pread64 17 67  preadv 295 69  preadv2 327 286  prlimit64 302 261
    pselect6 270 72  pwrite64 18 68  pwritev 296 70  pwritev2 328 287  read 0 63
    readlink 89 -  readlinkat 267 78  readv 19 65  recvfrom 45 207  removexattr 197 14
    rename 82 -  renameat 264 38  renameat2 316 276  restart_syscall 219 128  rmdir 84 -
    rseq 334 293  rt_sigaction 13 134  rt_sigpending 127 136  rt_sigprocmask 14 135
    rt_sigreturn 15 139  rt_sigsuspend 130 133  rt_sigtimedwait 128 137
    sched_getaffinity 204 123  sched_yield 24 124  select 23 -  sendfile 40 71
    set_robust_list 273 99  set_tid_address 218 96  setfsgid 123 152
    setfsuid 122 151  setgid 106 144  setgroups 116 159  setitimer 38 103
    setpgid 109 154  setregid 114 143  setresgid 119 149  setresuid 117 147
    setreuid 113 145  setrlimit 160 164  setsid 112 157  setsockopt 54 208
    setuid 105 146  setxattr 188 5  shutdown 48 210  sigaltstack 131 132
    stat 4 -  statfs 137 43  statx 332 291  symlink 88 -
    symlinkat 266 36  sync_file_range 277 84  syncfs 306 267  sysinfo 99 179
    tgkill 234 131  time 201 -  times 100 153  truncate 76 45  umask 95 166
    uname 63 160  unlink 87 -  unlinkat 263 35  utime 132 -  utimensat 280 88
    utimes 235 -  vfork 58 -  wait4 61 260  waitid 247 95  write 1 64  writev 20 66
"""
# Each with its conditions: where in what the filter is shown, of which bits, and what
# they have to be. Instead of clone3, whose flags no filter sees, libc takes clone. The
# bits are all of CLONE_NEW*, but NEWTIME, which clone does not have (linux/sched.h). A
# pair of sockets is for streams (AF_UNIX, SOCK_STREAM): a datagram may be sent to any
# address, and path names know no network namespace.
_IF = {
    ("clone", 56, 220): ((_FIRST_ARGUMENT_AT, 0x7E020000, 0),),
    ("socketpair", 53, 199): (
        (_FIRST_ARGUMENT_AT, _ALL_BITS, 1),
        (_SECOND_ARGUMENT_AT, 0xF, 1),
    ),
    ("sendto", 44, 206): (
        (_ADDRESS_AT, _ALL_BITS, 0),
        (_ADDRESS_AT + 4, _ALL_BITS, 0),
    ),
}
_IOCTL = ("ioctl", 16, 29)
# FICLONE, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Source: linux/fs.h, asm/ioctls.h.
_COMMANDS = (0x40049409, 0x541B, 0x5421, 0x5450, 0x5451)
_Step = tuple[int, int, int, int]


def refuse() -> None:
    """
    Have all other calls fail, in this process and what it starts.

    They fail with ENOSYS, as on a kernel that has none such, so that libraries take
    their older ways; commands to disks and devices with ENOTTY, as where none is known.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None or struct.calcsize("P") != 8:
        return
    steps = _filter(*machine)
    libc.set_filter(len(steps), b"".join(struct.pack("=HBBI", *each) for each in steps))


def _filter(machine: int, column: int) -> list[_Step]:
    """Return the steps of the filter; jumps are counted from the step after."""
    words = _ALLOWED.split()
    absent = (_RETURN, 0, 0, _REFUSE | errno.ENOSYS)
    steps: list[_Step] = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_JUMP_IF_EQUAL, 1, 0, machine),
        absent,
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for number in words[column::3]:
        if number != "-":
            steps += _allow_if_equal(int(number))
    for call, conditions in _IF.items():
        checks: list[_Step] = []
        for place, bits, wanted in conditions:
            checks += [
                (_LOAD, 0, 0, place),
                (_AND, 0, 0, bits),
                (_JUMP_IF_EQUAL, 1, 0, wanted),
                (_RETURN, 0, 0, _REFUSE | errno.EPERM),
            ]
        checks.append((_RETURN, 0, 0, _ALLOW))
        steps += [(_JUMP_IF_EQUAL, 0, len(checks), int(call[column])), *checks]
    steps += [
        (_JUMP_IF_EQUAL, 1, 0, int(_IOCTL[column])),
        absent,
        (_LOAD, 0, 0, _SECOND_ARGUMENT_AT),
    ]
    for command in _COMMANDS:
        steps += _allow_if_equal(command)
    return [*steps, (_RETURN, 0, 0, _REFUSE | errno.ENOTTY)]


def _allow_if_equal(value: int) -> tuple[_Step, _Step]:
    return (_JUMP_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)
