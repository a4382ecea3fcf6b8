"""Where generated code runs: in namespaces of its own, in bubblewrap, or under limits alone.

In Linux's user namespaces (user_namespaces(7)) the program is the second process of a world that
has no network, no other process, an empty disk in memory of 16 MiB, and Python's own library and
the system's to read; it has no privileges and can start nothing. The first process there ends
with whoever started it, and everything else with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from llamaseek.workers import answer
from llamaseek.workers.channel import Channel, Closed
from llamaseek.workers.child import address_space, die_with_parent

MODES = ("namespaces", "bubblewrap", "limits")
NOBODY = 65534
DISK = "size=16m,nr_inodes=8192,mode=0755"
NEW_USERS, NEW_NETWORK = 0x10000000, 0x40000000
NEW_NAMESPACES = 0x00020000 | 0x08000000 | 0x04000000 | 0x20000000 | NEW_USERS | NEW_NETWORK
"""clone(2)'s flags: mounts, IPC, host name, processes, users, network."""
READ_ONLY, NO_SETUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = (
    1, 2, 4, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
DETACH = 2
SET_DUMPABLE, NO_NEW_PRIVILEGES, DROP_BOUND = 4, 38, 24  # prctl(2)
CAPABILITY_VERSION = 0x20080522
SYSTEM = ("/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/lib")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def libc() -> ctypes.CDLL:
    """The C library, with errno."""
    return ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """OSError for a system call that failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def start(mode: str, descriptor: int, memory: int, seconds: int, folder: str) -> int:
    """A process that runs `answer` on a socket, confined; its id.

    `folder` is an empty one, which the program may fill where it has no disk of its own. Whatever
    goes wrong ends the process, which closes the socket.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        # As nobody, a library in root's home cannot be found by its path.
        folders = {path: os.open(path, os.O_RDONLY) for path in library()}
        keep_only([descriptor, *folders.values()])
        total = address_space() + memory
        if mode == "namespaces":
            in_namespaces(lambda: run(descriptor, total, seconds))
        elif mode == "bubblewrap":
            drop_root(folder)
            in_bubblewrap(descriptor, memory, seconds)
        else:
            drop_root(folder)
            die_with_parent()
            os.chdir(folder)
            if sys.platform == "linux":
                libc().unshare(NEW_USERS | NEW_NETWORK)  # refused by some systems, and then nothing
                find_by_descriptor(folders)
            run(descriptor, total, seconds)
        status = 0
    except Exception as error:
        refuse(descriptor, error)
    finally:
        os._exit(status)


def refuse(descriptor: int, error: Exception) -> None:
    """Say over the socket why nothing can run here."""
    with contextlib.suppress(Closed):
        Channel(socket.socket(fileno=descriptor)).send({"refused": str(error)}, seconds=1)


def run(descriptor: int, total: int, seconds: int) -> None:
    """The program, under limits, without privileges."""
    drop_privileges()
    answer.limit(total, seconds)
    answer.run(descriptor)


def keep_only(kept: Sequence[int]) -> None:
    """Close all files but these; read nothing, write nowhere."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    ends = [2, *sorted(kept), 1 << 16]
    for before, after in zip(ends, ends[1:], strict=False):
        os.closerange(before + 1, after)


def find_by_descriptor(folders: Mapping[str, int]) -> None:
    """Import the standard library through open folders, where its path cannot be reached."""
    if all(os.access(path, os.R_OK) for path in folders):
        sys.path[:] = folders
        return
    found = {path: f"/proc/self/fd/{number}" for path, number in folders.items()}
    sys.path[:] = found.values()
    for module in list(sys.modules.values()):
        for path, reached in found.items():
            inside = [each for each in getattr(module, "__path__", []) if each.startswith(path)]
            if inside:
                module.__path__ = [each.replace(path, reached, 1) for each in inside]


def drop_root(folder: str = "") -> None:
    """Be nobody, where root started this: root may do much even without privileges."""
    if os.geteuid() != 0:
        return
    if folder:
        os.chown(folder, NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    libc().prctl(SET_DUMPABLE, 1, 0, 0, 0)  # or its own files in /proc are root's


def in_namespaces(work: Callable[[], None]) -> None:
    """Do the work in namespaces of its own, and wait for it. OSError where there are none."""
    enter_namespaces()
    die_with_parent()
    first = os.fork()
    if first:
        exit_like(first)
    die_with_parent()
    new_root(library())
    second = os.fork()
    if second:
        libc().prctl(SET_DUMPABLE, 0, 0, 0, 0)
        exit_like(second)
    drop_root()
    work()


def enter_namespaces() -> None:
    """As root without one for users, if that is allowed; else with one, as who this is."""
    if os.geteuid() == 0 and libc().unshare(NEW_NAMESPACES & ~NEW_USERS) == 0:
        return
    drop_root()
    user, group = os.geteuid(), os.getegid()
    check(libc().unshare(NEW_NAMESPACES), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1")


def exit_like(pid: int) -> NoReturn:
    """Wait for a process and end as it did."""
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)


def library() -> list[str]:
    """The folders of Python's standard library."""
    own = os.path.realpath(sysconfig.get_path("stdlib"))
    compiled = [os.path.join(own, "lib-dynload"), str(sysconfig.get_config_var("DESTSHARED"))]
    return [own, *[each for each in compiled if os.path.isdir(each)][:1]]


def new_root(folders: Sequence[str]) -> None:
    """See nothing but an empty disk in memory, and folders of libraries to read."""
    mount("none", "/", "", RECURSIVE | PRIVATE)
    root = next(each for each in ("/mnt", "/tmp", "/var") if not inside(each, folders))
    wanted = [each for each in (*SYSTEM, *folders) if os.path.isdir(each)]
    mount("none", root, "tmpfs", NO_SETUID | NO_DEVICES, DISK)
    for each in wanted:
        target = root + each
        if os.path.islink(each):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.symlink(os.readlink(each), target)
        elif not os.path.exists(target):
            os.makedirs(target)
            mount(each, target, "", BIND)
            mount("none", target, "", BIND | REMOUNT | READ_ONLY | flags_of(target))
    os.makedirs(root + "/dev", exist_ok=True)
    for each in DEVICES:
        with contextlib.suppress(OSError):
            open(root + each, "w").close()
            mount(each, root + each, "", BIND)
    os.makedirs(root + "/tmp", exist_ok=True)
    os.chmod(root + "/tmp", 0o1777)
    os.makedirs(root + "/old")
    check(libc().syscall(pivot_root_number(), root.encode(), (root + "/old").encode()), "pivot")
    os.chdir("/tmp")
    check(libc().umount2(b"/old", DETACH), "umount")
    os.rmdir("/old")
    sys.path[:] = folders


def inside(folder: str, folders: Iterable[str]) -> bool:
    """Whether one of the folders is in this one, or this is none."""
    return not os.path.isdir(folder) or any(each.startswith(folder + "/") for each in folders)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    given = [part.encode() for part in (source, target, kind, data)]
    check(libc().mount(given[0], given[1], given[2], ctypes.c_ulong(flags), given[3]), target)


def flags_of(path: str) -> int:
    """What of a mount may not be undone in a namespace: no setuid, devices, programs, times."""
    kept = os.statvfs(path).f_flag
    return (kept & (1 | 2 | 4 | 8 | 1024 | 2048)) | (1 << 21 if kept & 4096 else 0)


def pivot_root_number() -> int:
    """The system call, which the C library does not have."""
    return 155 if os.uname().machine == "x86_64" else 41  # 41 on arm64 and riscv64


def drop_privileges() -> None:
    """Give up what the creator of a namespace may do in it, for good."""
    if sys.platform != "linux":
        return
    calls = libc()
    calls.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    for capability in range(64):
        calls.prctl(DROP_BOUND, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    calls.capset(header, (ctypes.c_uint32 * 6)())


def in_bubblewrap(descriptor: int, memory: int, seconds: int) -> None:
    """Become bubblewrap, with Python in it. OSError where it is not installed."""
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bwrap")
    python = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    here = os.path.dirname(os.path.realpath(__file__))
    command = [program, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--dev", "/dev", "--size", str(16 << 20), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    for each in dict.fromkeys([*SYSTEM, "/usr", sys.base_prefix, *library(), here]):
        if os.path.exists(each):
            command += ["--ro-bind", each, each]
    command += ["--clearenv", python, "-I", "-S", os.path.join(here, "answer.py")]
    os.set_inheritable(descriptor, True)
    os.execv(program, [*command, str(descriptor), str(memory + (64 << 20)), str(seconds)])


def end(pid: int) -> None:
    """Kill a process that `start` made, and what is in its namespaces, and wait for it."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.waitpid(pid, 0)
