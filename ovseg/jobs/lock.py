"""A lock on an open file that the system gives back when its process ends, however it ends."""

from __future__ import annotations

import errno
import logging
import os

logger = logging.getLogger(__name__)

_FAR = 1 << 40  # Windows locks bytes; these ones nobody reads
_HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)


def take_lock(descriptor: int) -> bool:
    """Lock an open file for this process, without waiting.

    There is nothing to go stale: a killed process holds no lock. On a file system that knows no locks the answer is yes, with a warning.

    Args:
        descriptor: The file, open for writing. Closing it gives the lock back.

    Returns:
        Whether the lock is ours; False where another process holds it.
    """
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        logger.warning("This file system has no locks (%s): do not run two jobs on one folder.", error.strerror)
    return True
