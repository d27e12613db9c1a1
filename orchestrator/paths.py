"""Where files go when nobody says, and what a file system's refusal has to do with settings."""

from __future__ import annotations

import errno
import os
import pwd
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import ConfigError

# A person mends these by another path, more room, or other permissions.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}
_KEYS = re.compile(r"""(?<=://)([^/@\s]+|[^/@\s:"',]+:[^@\s"',]*)@""")  # with a `:`, also a secret with slashes
SOCKET = 107  # bytes of a Unix socket's path
_ROOM = 1 << 20  # bytes; a file system with less is full


def home() -> str:
    """ORCHESTRATOR_HOME, or a folder below the user's home.

    Raises:
        ConfigError: there is neither, as for a user without an entry in /etc/passwd.
    """
    if own := os.environ.get("ORCHESTRATOR_HOME"):
        return expanded(own)
    user = os.environ.get("HOME", "")
    with suppress(KeyError):
        user = user or pwd.getpwuid(os.getuid()).pw_dir
    if not user:
        raise ConfigError("This user has no home folder.", where="state_dir", hint="Set ORCHESTRATOR_HOME.")
    return f"{user.rstrip('/')}/.cache/orchestrator"


def expanded(path: str) -> str:
    """A path with its `~`, which a shell leaves where it stands behind `=`."""
    return path if "://" in path else os.path.expanduser(path)


def shown(text: str) -> str:
    """A text as others may see it: without the keys that a URI in it may carry, as in `s3://key:secret@bucket`."""
    return _KEYS.sub("***@", text)


def for_socket(path: str) -> str:
    """A path for a Unix socket, which has 107 bytes at most: a longer one goes by this process's handle of its folder.

    Others of the same user may use it too, for as long as this process lives; the folder has to be there.
    """
    if len(os.fsencode(path)) <= SOCKET:
        return path
    folder, name = os.path.split(path)
    return f"/proc/{os.getpid()}/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY)}/{name}"


def refusal(error: BaseException, places: Mapping[str, str]) -> ConfigError | None:
    """What a setting can mend of an error: no space, no permission, read-only, a name too long. None: nothing.

    Args:
        error: it, or what it was raised from.
        places: a folder or file -> the setting that says where it is.
    """
    found = next((e for e in (error, error.__cause__) if isinstance(e, OSError)), None)
    if found is None or found.errno not in _FULL | _REFUSED:
        return None
    file = str(found.filename or "")
    if not file:  # a write does not say where
        file = next((place for place in places if _is_full(place)), "") if found.errno in _FULL else ""
    if not file:
        return None
    inside = Path(os.path.abspath(file))
    known = sorted(places.items())
    around = [setting for place, setting in known if inside.is_relative_to(place)]
    below = [setting for place, setting in known if Path(place).is_relative_to(inside)]
    first = below[:1] if _is_file(inside) else []  # a file stands where that setting needs a folder
    where = next(iter(first + around[-1:] + below[:1]), "")
    hint = f"Set {where} to a path that this user may write to, on a disk with room." if where else ""
    number = errno.ENOTDIR if found.errno == errno.EEXIST and _is_file(inside) else found.errno
    return ConfigError(f"{os.strerror(number)}: {file}.", where=where, hint=hint)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _is_full(place: str) -> bool:
    there = next((p for p in (Path(place), *Path(place).parents) if p.exists()), Path("/"))
    return shutil.disk_usage(there).free < _ROOM
