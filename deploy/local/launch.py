"""Become another program, which dies with the process that asked for it.

A script for a bare interpreter (`python -I -S launch.py PARENT SIGNAL UID GID PROGRAM [ARGUMENT...]`): between
fork and exec of a process that has threads nothing but exec is safe, so the work that belongs there is done here.
UID and GID are -1 to stay who we are.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def become_user(uid: int, gid: int) -> None:
    """Give up root for good; a no-op for -1."""
    if uid != -1:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def die_with(parent: int, signal: int) -> None:
    """Have the kernel send us a signal when our parent's thread ends; changing the user would forget it again."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)


def main() -> None:
    """Run the command line described above; returns only by an error."""
    parent, signal, uid, gid = map(int, sys.argv[1:5])
    become_user(uid, gid)
    die_with(parent, signal)
    os.execv(sys.argv[5], sys.argv[5:])  # noqa: S606 - the program is what our caller wants to become


if __name__ == "__main__":
    main()
