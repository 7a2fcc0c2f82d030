"""Keys survive what others do with them."""

import io
import tarfile

import pytest

from worldloom.stages.keys import check_key, fits_ustar, is_key
from worldloom.stages.rejects import InputRejected


@pytest.mark.parametrize("key", ["a", "7", "a/b-c_d", "A" * 200, "shape_0000001"])
def test_ordinary_keys_are_taken(key):
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    ["", "__bad__", "_a", "-a", "/a", "a.b", "a b", "../a", "a/../b", "a\n", "a\u202eb", "\u00e9", "A" * 201, "a//b", "a/", "a\0b"],
)
def test_keys_that_others_misread_are_refused(key):
    assert not is_key(key)
    with pytest.raises(InputRejected, match=r"key_invalid: .* is no sample key"):
        check_key(key)


@pytest.mark.parametrize(
    "name", ["a" * 100, "a" * 101, "b" * 50 + "/" + "a" * 100, "b" * 50 + "/" + "a" * 101, "b" * 155 + "/a", "b" * 156 + "/a"]
)
def test_a_name_fits_exactly_when_tarfile_can_write_it(name):
    with tarfile.open(fileobj=io.BytesIO(), mode="w", format=tarfile.USTAR_FORMAT) as tar:
        try:
            tar.addfile(tarfile.TarInfo(name))
            written = True
        except ValueError:
            written = False
    assert fits_ustar(name) is written
