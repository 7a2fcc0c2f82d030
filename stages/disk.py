"""The disk: the only seven calls that make something durable, so that a test can stand in for it, and what is built on them.

A file is created once, or replaced whole. After an error from `write`, `fsync` or closing, a file is given up and never
synced again: its pages may be gone although a second fsync says nothing (the PostgreSQL fsync story of 2018).
"""

import hashlib
import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 1 << 20  # bytes read at a time when hashing


def create(path: Path) -> BinaryIO:
    """A new file to write, FileExistsError if the name is taken."""
    return open(path, "xb")


def write(file: BinaryIO, data: bytes | bytearray | memoryview) -> int:
    """Appends `data` to a file of `create`; an OSError names the file."""
    try:
        return file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


def fsync(file: BinaryIO) -> None:
    """Brings a file's content to the disk itself; an OSError names the file."""
    try:
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


def link_new(source: Path, target: Path) -> None:
    """Gives a file a second name; FileExistsError if that name is taken, never overwriting what it stands for."""
    os.link(source, target)


def replace(source: Path, target: Path) -> None:
    """Moves `source` over `target` in one step."""
    os.replace(source, target)


def unlink(path: Path) -> None:
    """Takes a name away; nothing happens where it is not there."""
    path.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Brings a folder's names to the disk itself."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(source: Path, target: Path) -> bool:
    """Gives a finished, fsynced, closed file its final name. False: the name was taken, compare the contents."""
    try:
        link_new(source, target)
    except FileExistsError:
        return False
    finally:
        fsync_folder(target.parent)  # also when taken: whoever made the name may have died before this line
    return True


def make_folder(folder: Path) -> None:
    """Creates a folder and those above it; each new name is durable before anything is put below it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def write_file(path: Path, data: bytes) -> None:
    """Writes a whole file under its name at once: readers see the old content or the new, and a power cut leaves one of them."""
    temporary = _write_aside(path, data)
    replace(temporary, path)
    fsync_folder(path.parent)


def write_new_file(path: Path, data: bytes) -> bool:
    """As `write_file`, but False, and nothing changed, if the name is taken."""
    temporary = _write_aside(path, data)
    try:
        return publish(temporary, path)
    finally:
        unlink(temporary)


def give_up(file: BinaryIO) -> None:
    """Closes a file that will not be used; whatever the disk still has to say about it no longer matters."""
    with suppress(OSError):
        file.close()


def canonical_json(value: Any) -> bytes:
    """The one way to write `value`: sorted keys, no spaces, UTF-8, no NaN; ValueError for what JSON cannot say."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(path: Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
    return sha256.hexdigest()


def _write_aside(path: Path, data: bytes) -> Path:
    make_folder(path.parent)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    file = create(temporary)
    try:
        write(file, data)
        fsync(file)
        file.close()
    except OSError:
        give_up(file)
        temporary.unlink(missing_ok=True)  # a full disk needs the room, and nobody will come back for this name
        raise
    return temporary
