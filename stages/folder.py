"""A folder as found: which files count, what belongs together, keys and captions, and how samples are shared out over splits and shards.

One stream leads: each of its files is a sample. What other streams have for it lies beside it: `a.depth.png` or `a.wav` beside `a.png`, or
`depth/a.png` beside `rgb/a.png`.

Everything here follows from the names in the folder and from its captions.csv, in sorted order, never from the order of a
directory listing. Nothing is refused yet but what the names alone give away.
"""

import csv
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

from worldloom.stages.keys import fits_ustar, is_key

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
OTHER_PICTURES = frozenset({".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".psd", ".jp2", ".tga", ".ico", ".ppm"})
CAPTIONS = "captions.csv"
COLUMNS = ("file", "caption")
MISSING = "file_missing"
Rule = Literal["auto", "csv", "text_file", "parent_folder", "file_name", "none"]
_LONGEST_SUFFIX = "." + 63 * "s" + ".png"  # the longest that a stream's name adds to a key
_CHUNK = 1 << 20


class Leader(NamedTuple):
    """The stream whose files are the samples, and those that may come with it."""

    stream: str
    endings: tuple[str, ...]  # of its files, in lower case, with the dot
    others: tuple[tuple[str, tuple[str, ...]], ...] = ()  # streams and their endings
    pictures: bool = True  # files of other formats of pictures are samples that are refused, and not passed over


class Picture(NamedTuple):
    """One file that should become a sample."""

    file: str  # path below the folder, with forward slashes
    key: str
    caption: str | None  # where the name or the csv gives it
    caption_file: str | None  # path below the folder of a text file that holds it
    refused: tuple[str, str] | None  # code and detail, where the name is enough to refuse it
    beside: tuple[tuple[str, str], ...] = ()  # other streams and their files


class Ignored(NamedTuple):
    """One file that is no sample and is not meant to be one."""

    file: str
    why: str


class Inventory(NamedTuple):
    """All of a folder."""

    root: Path
    rule: Rule  # never "auto"
    pictures: tuple[Picture, ...]  # in order of their files
    ignored: tuple[Ignored, ...]


class Shard(NamedTuple):
    """What goes into one shard, in order of the keys."""

    split: str
    name: str
    pictures: tuple[Picture, ...]

    @property
    def task(self) -> str:
        return f"{self.split}/{self.name}"


IMAGES = Leader("image", tuple(sorted(PICTURES)))


def take_inventory(root: Path, rule: Rule, parent: int, leader: Leader = IMAGES) -> Inventory:
    """Looks through `root` and all below it; FileNotFoundError, or ValueError where it holds no sample or a bad captions.csv.

    `auto` takes captions.csv if there is one, else the text files if there is any beside a picture, else the name of the topmost
    folder that not all pictures share, and for pictures outside any such folder their own name.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; give the path of a folder with pictures in it")
    files, ignored = _list(root)
    endings = frozenset(leader.endings) | (OTHER_PICTURES if leader.pictures else frozenset())
    pictures = [file for file in files if _suffix(file) in endings and file != CAPTIONS and not _is_of_another(file, leader)]
    if not pictures:
        raise ValueError(
            f"{root} holds no {'pictures' if leader.pictures else f'files of {leader.stream}'}: none of its {len(files)} files, folders "
            f"below included, ends in {', '.join(sorted(leader.endings))}"
        )
    present = frozenset(files)
    texts = {file: _stem(file) + ".txt" for file in pictures if _stem(file) + ".txt" in present}
    chosen = _choose(rule, CAPTIONS in present, bool(texts))
    table = read_captions(root / CAPTIONS) if chosen == "csv" else {}
    shared = _shared_folders(pictures)
    found = [
        Picture(
            file=file,
            key="",
            caption=_caption(file, chosen, parent if rule == "parent_folder" else None, shared, table),
            caption_file=texts.get(file) if chosen == "text_file" else None,
            refused=_refused_by_name(file, leader, present),
            beside=_beside(file, leader, present),
        )
        for file in pictures
    ]
    found += [
        Picture(file, "", None, None, (MISSING, f"named in {CAPTIONS}, but not a picture in the folder"))
        for file in table.keys() - set(pictures)
    ]
    used = {CAPTIONS} if chosen == "csv" else set(texts.values()) if chosen == "text_file" else set()
    used |= {file for picture in found for _, file in picture.beside} | set(pictures)
    why = "not a picture" if leader.pictures and not leader.others else f"neither of {leader.stream} nor beside one of its files"
    ignored += [Ignored(file, why) for file in files if file not in used]
    return Inventory(root, chosen, tuple(_give_keys(sorted(found))), tuple(sorted(ignored)))


def read_captions(path: Path) -> dict[str, str]:
    """captions.csv: file -> caption; ValueError if it is no UTF-8, lacks a column or names a file twice."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if reader.fieldnames is None or not set(COLUMNS) <= set(reader.fieldnames):
        raise ValueError(f"{path} must begin with a line that names the columns file and caption, it begins with {text[:60]!r}")
    captions: dict[str, str] = {}
    try:
        rows = [(reader.line_num, row["file"] or "", row["caption"] or "") for row in reader]
    except csv.Error as error:  # a quotation mark that is never closed makes one field of all that follows
        raise ValueError(f"{path} cannot be read after line {reader.line_num} ({error}); is a quotation mark not closed?") from None
    for line, name, caption in rows:
        file = _tidy(name)
        if not file and not caption.strip():  # a row of commas, as spreadsheets leave behind the last one
            continue
        if file in captions:
            raise ValueError(f"{path} line {line} names {file!r} a second time; a picture has one caption")
        captions[file] = caption
    return captions


def share_out(pictures: tuple[Picture, ...], validation_share: float, shard_size: int, held_out: str | None = None) -> list[Shard]:
    """Splits by a hash of the key, so that a picture stays where it is when others come, then shards in order of the keys.

    Training gets at least one picture, and validation too where its share is above 0 and there are two. Files whose path matches the
    pattern `held_out` (*, ? and [...] as in a shell) are a split of their own; ValueError where these are all, or none.
    """
    apart = tuple(picture for picture in pictures if held_out is not None and fnmatchcase(picture.file, held_out))
    if held_out is not None and not 0 < len(apart) < len(pictures):
        raise ValueError(
            f"held_out {held_out!r} matches {len(apart)} of {len(pictures)} files; it should match some, and leave some to train on"
        )
    files_apart = {picture.file for picture in apart}
    pictures = tuple(picture for picture in pictures if picture.file not in files_apart)
    by_hash = sorted(pictures, key=lambda picture: (_fraction(picture.key), picture.file))
    held = sum(_fraction(picture.key) < validation_share for picture in by_hash)
    if validation_share > 0:
        held = min(max(held, 1), len(by_hash) - 1)
    splits = {"train": by_hash[held:], "validation": by_hash[:held], **({"held_out": list(apart)} if apart else {})}
    return [
        Shard(split, f"shard-{number:06d}", tuple(ordered[first : first + shard_size]))
        for split, members in splits.items()
        for ordered in [sorted(members, key=lambda picture: (picture.key, picture.file))]
        for number, first in enumerate(range(0, len(ordered), shard_size))
    ]


def digest_of(root: Path, file: str) -> str:
    """sha256 of one file's content; empty if it is not there."""
    sha256 = hashlib.sha256()
    try:
        with open(root / file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                sha256.update(chunk)
    except FileNotFoundError:
        return ""
    return sha256.hexdigest()


def combine(digests: dict[str, str]) -> str:
    """One sha256 for many files, from path -> sha256, whatever the order they come in and wherever the folder lies."""
    lines = (f"{digests[file]}  {file}\n".encode("utf-8", "surrogateescape") for file in sorted(digests))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def inputs_of(inventory: Inventory) -> list[str]:
    """Every file whose content can change what is imported."""
    there = [picture for picture in inventory.pictures if picture.refused is None or picture.refused[0] != MISSING]
    files = {picture.file for picture in there} | {picture.caption_file for picture in there}
    files |= {file for picture in there for _, file in picture.beside}
    return sorted(file for file in files | ({CAPTIONS} if inventory.rule == "csv" else set()) if file is not None)


def _refused_by_name(file: str, leader: Leader, present: frozenset[str]) -> tuple[str, str] | None:
    """Code and detail where the names alone say that a file is no sample."""
    if _suffix(file) in OTHER_PICTURES - {*leader.endings}:
        return "format_not_allowed", "only PNG, JPEG and WebP are read"
    # Both would lead the same files beside them, one perhaps in training and the other held out.
    twins = [twin for ending in leader.endings if (twin := f"{_stem(file)}.{leader.stream}{ending}") in present]
    if twins:
        return "name_ambiguous", f"{twins[0]} is of the same sample and stream {leader.stream}; rename or remove one of them"
    return None


def _base(file: str, stream: str) -> str:
    """The path without its ending, and without the stream's own name before that: `a` of `a.rgb.png`."""
    return _stem(file).removesuffix(f".{stream}")


def _is_of_another(file: str, leader: Leader) -> bool:
    """Whether a file that could be the leader's says that it is of another stream, by its name or its folder."""
    names = {name for name, _ in leader.others}
    own = _stem(file).rsplit("/", 1)[-1]
    return ("." in own and own.rsplit(".", 1)[-1] in names) or bool(names & set(file.split("/")[:-1]))


def _beside(file: str, leader: Leader, present: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """What the other streams have for a sample: by its name with theirs, by its name alone where no other stream has such endings, or in a
    folder of their name where the leader's lies in one of its own."""
    base, found = _base(file, leader.stream), []
    folders = _stem(file).split("/")
    for stream, endings in leader.others:
        shared = {ending for other, theirs in (*leader.others, (leader.stream, leader.endings)) if other != stream for ending in theirs}
        places = [f"{base}.{stream}{ending}" for ending in endings]
        places += [f"{base}{ending}" for ending in endings if ending not in shared]
        if leader.stream in folders[:-1]:
            moved = "/".join(stream if part == leader.stream and at < len(folders) - 1 else part for at, part in enumerate(folders))
            places += [f"{moved}{ending}" for ending in endings]
        match = next((place for place in places if place in present and place != file), None)
        if match is not None:
            found.append((stream, match))
    return tuple(found)


def _list(root: Path) -> tuple[list[str], list[Ignored]]:
    files, ignored = [], []
    for entry in _walk(root, root):
        file = entry.relative_to(root).as_posix()
        if not stat.S_ISREG(os.lstat(entry).st_mode) and not _is_inside(entry, root):
            ignored.append(Ignored(file, "not a file of this folder"))
        else:
            files.append(file)
    return sorted(files), ignored


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name.startswith(".") or entry.name == "__MACOSX":  # what systems leave behind
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), root)
        else:
            yield Path(entry.path)


def _is_inside(link: Path, root: Path) -> bool:
    target = Path(os.path.realpath(link))
    return target.is_relative_to(os.path.realpath(root)) and target.is_file()


def _choose(rule: Rule, has_csv: bool, has_texts: bool) -> Rule:
    if rule == "csv" and not has_csv:
        raise ValueError(
            f"caption is csv, but the folder has no {CAPTIONS}; add it, with the columns file and caption, or set caption to auto"
        )
    if rule != "auto":
        return rule
    return "csv" if has_csv else "text_file" if has_texts else "parent_folder"


def _shared_folders(files: list[str]) -> int:
    """How many folders, from the root down, all files lie in."""
    shared = os.path.commonpath([os.path.dirname(file) for file in files])
    return len(shared.split("/")) if shared else 0


def _caption(file: str, rule: Rule, parent: int | None, shared: int, table: dict[str, str]) -> str | None:
    """The caption that names give; `parent` counts upwards from the file, None takes the first folder that is not shared."""
    if rule == "csv":
        return table.get(file)
    folders, own = file.split("/")[:-1], _stem(file).rsplit("/", 1)[-1]
    if rule == "parent_folder" and parent is not None:
        return in_words(folders[-parent]) if parent <= len(folders) else None
    if rule == "parent_folder":
        return in_words(folders[shared] if len(folders) > shared else own)
    return in_words(own) if rule == "file_name" else None


def in_words(name: str) -> str:
    """A name as a caption: `big_red-car` is `big red car`."""
    return " ".join(re.sub(r"[_\-\s]+", " ", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")).split())


def _give_keys(pictures: list[Picture]) -> Iterator[Picture]:
    """A picture's key is its path without the suffix; where that is no key, or differs from another one's by case only, a tidied
    path with a digest of the true one. A second file of the same key is refused."""
    taken: dict[str, str] = {}
    for picture in pictures:
        key = _key(picture.file)
        if taken.get(key.lower(), key) != key:
            key = _hashed_key(picture.file)
        if key.lower() in taken:
            twin = ("key_duplicate", f"another picture has the key {key!r} already")
            yield picture._replace(key=key, refused=picture.refused or twin)
            continue
        taken[key.lower()] = key
        yield picture._replace(key=key)


def _key(file: str) -> str:
    stem = _stem(file)
    return stem if is_key(stem) and fits_ustar(stem + _LONGEST_SUFFIX) else _hashed_key(file)


def _hashed_key(file: str) -> str:
    digest = hashlib.sha256(file.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    tidy = re.sub(r"[^A-Za-z0-9-]+", "_", _stem(file)).strip("_-")[-19:].lstrip("_-")
    return f"{tidy}-{digest}" if tidy else f"picture-{digest}"


def _fraction(key: str) -> float:
    """The key's own place in [0, 1)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _stem(file: str) -> str:
    return os.path.splitext(file)[0]


def _tidy(file: str) -> str:
    return os.path.normpath(file.strip().replace("\\", "/")) if file.strip() else ""
