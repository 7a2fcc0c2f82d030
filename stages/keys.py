"""Sample keys: what WebDataset, a USTAR header and a file system all read back as it was written."""

import re

from worldloom.stages.rejects import InputRejected

# No dot: WebDataset ends a key at the first one after the last slash. No leading underscores: it keeps those names for itself.
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_/-]{0,199}")
NAME_BYTES, PREFIX_BYTES = 100, 155  # what a USTAR header holds of a member's path: after and before one slash


def check_key(key: str) -> str:
    """The key itself; InputRejected(key_invalid) where webdataset or a tar could misread it."""
    if not is_key(key):
        raise InputRejected(
            "key_invalid",
            f"{key[:80]!r} is no sample key: letters, digits, _ / -, at most 200, a letter or digit first, none empty between /",
        )
    return key


def is_key(key: str) -> bool:
    """Whether a sample may be called this."""
    return KEY.fullmatch(key) is not None and "//" not in key and not key.endswith("/")


def fits_ustar(name: str) -> bool:
    """Whether a USTAR header can hold the member's path: as it is, or split at a slash."""
    if len(name) <= NAME_BYTES:
        return True
    cut = name.find("/", len(name) - NAME_BYTES - 1)
    return 0 < cut <= PREFIX_BYTES
