"""What lies in a tar, and what no tar may hold."""

import io
import struct
import tarfile

import pytest

from worldloom.stages.rejects import InputRejected
from worldloom.stages.tar_members import MAX_MEMBER, members_of


def written(path, *members, form=tarfile.USTAR_FORMAT, pax=None):
    with tarfile.open(path, "w", format=form) as file:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size, about.pax_headers = len(content), pax or {}
            file.addfile(about, io.BytesIO(content))
    return path.read_bytes()


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_lie_where_pythons_own_reader_finds_them(tmp_path, form):
    names = ["a.txt", "./b.txt", "c/d.e.txt", "x" * 90 + "/" + "y" * 60 + ".txt"]
    content = written(tmp_path / "a.tar", *((name, name.encode() * 20) for name in names), form=form)
    found = members_of(tmp_path / "a.tar")
    assert [member.name for member in found] == [name.removeprefix("./") for name in names]
    assert [content[member.offset : member.offset + member.bytes] for member in found] == [name.encode() * 20 for name in names]


def with_size(header, field):
    """A header with another size and the checksum that goes with it."""
    changed = bytearray(header)
    changed[124:136] = field
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


@pytest.mark.parametrize(
    "field", [b"-0000000001\0", struct.pack(">B3xQ", 0x80, 1 << 40), b"\xff" * 12, b"%011o\0" % (MAX_MEMBER + 1)], ids=range(4)
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_read(tmp_path, field):
    content = written(tmp_path / "a.tar", ("a.txt", b"a"))
    (tmp_path / "a.tar").write_bytes(with_size(content[:512], field) + content[512:])
    with pytest.raises(InputRejected, match="tar_limits"):
        members_of(tmp_path / "a.tar")


def test_a_sparse_file_and_a_size_of_ones_own_are_refused(tmp_path):
    written(tmp_path / "a.tar", ("a.txt", b"a"), form=tarfile.PAX_FORMAT, pax={"GNU.sparse.major": "1"})
    with pytest.raises(InputRejected, match="tar_forbidden_member: a sparse file"):
        members_of(tmp_path / "a.tar")
    written(tmp_path / "b.tar", ("a.txt", b"a"), form=tarfile.PAX_FORMAT, pax={"size": "9999999999"})
    with pytest.raises(InputRejected, match="tar_limits: a member whose size does not fit"):
        members_of(tmp_path / "b.tar")


@pytest.mark.parametrize("keep", [0, 100, 512, 700, 1024, 1536])
def test_a_cut_anywhere_is_noticed(tmp_path, keep):
    content = written(tmp_path / "a.tar", ("a.txt", b"a"), ("b.txt", b"b"))
    (tmp_path / "a.tar").write_bytes(content[:keep])
    with pytest.raises(InputRejected, match=r"shard_truncated|empty_input"):
        members_of(tmp_path / "a.tar")


def test_every_flipped_bit_of_a_header_is_noticed(tmp_path):
    content = written(tmp_path / "a.tar", ("a.txt", b"a"))
    for at in range(0, 512, 7):
        changed = bytearray(content)
        changed[at] ^= 1
        (tmp_path / "a.tar").write_bytes(changed)
        with pytest.raises(InputRejected):
            members_of(tmp_path / "a.tar")
