"""The members of a stranger's tar: where they lie and what they are called. Nothing is extracted, and only plain files are let through.

USTAR headers, with the long names of pax (POSIX.1-2001) and GNU; every header's checksum is checked, and the two blocks of zeros at the end
must be there: a tar that was cut is noticed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from worldloom.stages.rejects import InputRejected

BLOCK = 512
MAX_MEMBER = 256 << 20  # bytes
MAX_EXTENDED = 64 << 10  # bytes of a header that goes on, as pax and GNU have them
MAX_MEMBERS = 4_000_000
_FILE, _FOLDER, _PAX, _PAX_GLOBAL, _GNU_NAME = b"0", b"5", b"x", b"g", b"L"


class Member(NamedTuple):
    """One plain file."""

    name: str  # without "./" in front
    offset: int  # of its first byte in the tar
    bytes: int


def members_of(path: Path) -> list[Member]:
    """All plain files, in order; InputRejected: tar_forbidden_member, tar_limits, shard_truncated, shard_corrupt, empty_input."""
    size = path.stat().st_size
    if not size:
        raise InputRejected("empty_input", "the tar has no bytes")
    with open(path, "rb") as tar:
        return list(_members(tar, size))


def _members(tar: BinaryIO, size: int) -> Iterator[Member]:
    offset, long_name = 0, ""
    for _ in range(MAX_MEMBERS):
        tar.seek(offset)
        header = tar.read(BLOCK)
        if len(header) < BLOCK:
            raise InputRejected("shard_truncated", f"the tar ends at byte {size}, without the two blocks of zeros that end a tar")
        if not header.strip(b"\0"):
            if tar.read(BLOCK) != bytes(BLOCK):
                raise InputRejected("shard_truncated", f"one block of zeros at byte {offset}, and no second one that ends the tar")
            return
        kind, name, length = _read(header, offset)
        content, offset = offset + BLOCK, offset + BLOCK + -(-length // BLOCK) * BLOCK
        if offset > size:
            raise InputRejected("shard_truncated", f"a member of {length} bytes at byte {content} goes beyond the tar's end at {size}")
        if kind in (_PAX, _PAX_GLOBAL, _GNU_NAME):
            if length > MAX_EXTENDED:
                raise InputRejected("tar_limits", f"a header that goes on for {length} bytes, at most {MAX_EXTENDED}")
            extended = tar.read(length)
            if kind == _PAX:
                long_name = _pax(extended).get("path", long_name)
            elif kind == _GNU_NAME:
                long_name = extended.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        name, long_name = _safe(long_name or name), ""
        if kind == _FILE:
            yield Member(name, content, length)
        elif kind != _FOLDER:
            raise InputRejected(
                "tar_forbidden_member", f"{name[:80]!r} is a link, a device or the like (type {kind!r}); only files are read"
            )
    raise InputRejected("tar_limits", f"more than {MAX_MEMBERS} members")


def _read(header: bytes, offset: int) -> tuple[bytes, str, int]:
    """Type, name and size."""
    blank = header[:148] + b" " * 8 + header[156:]
    try:
        stated = int(header[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        raise InputRejected("shard_corrupt", f"what stands at byte {offset} is no header of a tar") from None
    if stated != sum(blank):
        raise InputRejected("shard_corrupt", f"the header at byte {offset} does not add up to its checksum")
    try:
        length = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        raise InputRejected("tar_limits", f"the header at byte {offset} has a size that is negative, or of more than 8 GiB") from None
    if not 0 <= length <= MAX_MEMBER:
        raise InputRejected("tar_limits", f"a member of {length} bytes at byte {offset}, at most {MAX_MEMBER}")
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    prefix = header[345:500].split(b"\0", 1)[0].decode("utf-8", "surrogateescape") if header[257:263] == b"ustar\0" else ""
    kind = header[156:157]
    return _FILE if kind in (b"\0", b"7") else kind, f"{prefix}/{name}" if prefix else name, length


def _pax(content: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n"; what describes a sparse file is refused, since its bytes are not the file's."""
    found: dict[str, str] = {}
    at = 0
    while at < len(content):
        length, space, _ = content[at : at + 20].partition(b" ")
        if (
            not space
            or not length.isdigit()
            or not at + int(length) <= len(content)
            or content[at + int(length) - 1 : at + int(length)] != b"\n"
        ):
            raise InputRejected("shard_corrupt", "an extended header (pax) whose records do not add up")
        record = content[at + len(length) + 1 : at + int(length) - 1]
        key, _, value = record.partition(b"=")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += int(length)
    if any(key.startswith("GNU.sparse") for key in found):
        raise InputRejected("tar_forbidden_member", "a sparse file; only plain files are read")
    if "size" in found:
        raise InputRejected("tar_limits", "a member whose size does not fit its header; the largest has 256 MiB")
    return found


def _safe(name: str) -> str:
    tidy = name.removeprefix("./")
    if tidy.startswith("/") or ".." in tidy.split("/") or "\0" in tidy or not tidy:
        raise InputRejected("tar_forbidden_member", f"{name[:80]!r} leads out of the tar; names are relative, without ..")
    return tidy
