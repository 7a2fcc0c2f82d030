"""Reads every byte of an artifact and compares it with what was committed: finds each flipped bit, cut, swap and stranger.

A set of tokens that is what was committed is read by the grammar, too: what a faulty encoder committed may still be no legal sequence.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from worldloom.stages.artifact import Artifact, ArtifactError, content_files
from worldloom.stages.commit import Commits
from worldloom.stages.disk import digest


class Damage(NamedTuple):
    """One thing that is wrong."""

    file: Path
    problem: str


class Verified(NamedTuple):
    """What was looked at, and what is wrong with it."""

    files: int
    bytes: int
    finished: bool
    damages: tuple[Damage, ...]


def verify_run(root: Path) -> list[str]:
    """One line for everything that is wrong below a root folder; finished artifacts and unfinished ones."""
    folders = sorted({path.parent for name in ("stage.json", "DONE.json") for path in (root / "artifacts").glob(f"*/*/{name}")})
    return [f"{damage.file}: {damage.problem}" for folder in folders for damage in verify_artifact(folder).damages]


def verify_artifact(folder: Path) -> Verified:
    """Checks a finished artifact against DONE.json, an unfinished one against its shard commits; changes nothing."""
    if not (folder / "DONE.json").exists():
        return _verify_commits(folder)
    try:
        artifact = Artifact.open(folder)
    except ArtifactError as error:
        return Verified(0, 0, True, (Damage(folder, str(error)),))
    damages = [damage for name in artifact.files() for damage in _compare(artifact, name)]
    damages += [Damage(path, "is not named by DONE.json") for path in content_files(folder) if _name(folder, path) not in artifact.manifest]
    if artifact.produces == "tokens" and not damages:
        damages += _illegal(artifact)
    return Verified(len(artifact.manifest), artifact.bytes, True, tuple(damages))


def _illegal(artifact: Artifact) -> Iterator[Damage]:
    """Samples that the grammar does not allow, the first of every shard."""
    from worldloom.stages.check_tokens import illegal_shards
    from worldloom.stages.dataset import Tokens

    place = artifact.folder / "tokens"
    try:
        for split, shard, problem in illegal_shards(Tokens(artifact)):
            yield Damage(place / split, f"{shard}: {problem}")
    except (ValueError, KeyError, TypeError) as error:
        yield Damage(place / "dataset.json", f"describes no tokens that the grammar knows: {error}")


def _compare(artifact: Artifact, name: str) -> Iterator[Damage]:
    try:
        path = artifact.path(name)
    except ArtifactError as error:
        yield Damage(artifact.folder / name, str(error))
        return
    expected, actual = artifact.manifest[name]["sha256"], digest(path)
    if actual != expected:
        yield Damage(path, f"has sha256 {actual}, DONE.json says {expected}")


def _verify_commits(folder: Path) -> Verified:
    try:
        commits = Commits.of(folder)
    except (OSError, ValueError, KeyError):
        return Verified(0, 0, False, (Damage(folder / "stage.json", "cannot be read"),))
    files = size = 0
    damages: list[Damage] = []
    for record in sorted(commits.records.rglob("*.json")):
        commit = commits.read(record.relative_to(commits.records).with_suffix("").as_posix())
        if commit is None:
            damages.append(Damage(record, "is damaged"))
            continue
        for name, stored in commit.files.items():
            path = commits.objects / stored.sha256
            files, size = files + 1, size + stored.bytes
            if not path.exists():
                damages.append(Damage(path, f"is missing; it is {name} of shard {commit.shard}"))
            elif digest(path) != stored.sha256:
                damages.append(Damage(path, f"is not what was committed as {name} of shard {commit.shard}"))
    return Verified(files, size, False, tuple(damages))


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
