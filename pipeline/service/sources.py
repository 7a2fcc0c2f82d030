"""What a batch may read: folders below prefixes that whoever runs the service has named. Nothing outside of them is even looked at."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from worldloom.pipeline.service.errors import ServiceError

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,199}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
LONGEST = 1_024  # characters


class Sources:
    """Prefix -> folder."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = {name: Path(os.path.realpath(folder)) for name, folder in folders.items()}

    def find(self, source: str) -> Path:
        """The folder that PREFIX/some/path means; ServiceError: url_forbidden, name_invalid, source_unknown."""
        if _URL.match(source):
            raise ServiceError(
                "url_forbidden", 403, "the service fetches nothing; a source is PREFIX/path, below a prefix of /v1/info", "source"
            )
        parts = source.split("/")
        if len(source) > LONGEST or not all(_PART.fullmatch(part) for part in parts):
            raise ServiceError(
                "name_invalid", 400, "a source is PREFIX/path: letters, digits, space . _ - and no part that begins with a dot", "source"
            )
        if parts[0] not in self.folders:
            raise ServiceError("source_unknown", 404, f"there is no such prefix; there are {', '.join(self.folders) or 'none'}", "source")
        folder = self.folders[parts[0]]
        if not _is_folder(folder, parts[1:]):
            raise ServiceError("source_unknown", 404, "there is no such folder below the prefix, or a link stands in its path", "source")
        return folder.joinpath(*parts[1:])


def _is_folder(root: Path, parts: list[str]) -> bool:
    """Goes down part by part and follows no link, so that what lies elsewhere is never touched."""
    opened = [os.open(root, os.O_PATH | os.O_DIRECTORY)]
    try:
        for part in parts:
            opened.append(os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
        return True
    except OSError:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
