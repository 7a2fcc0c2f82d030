"""Who may use the service, and how much: tokens as digests, quotas in cost.

The file of tokens has a line for each: TENANT SHA256 [COST_PER_MINUTE], the sha256 of the token in hex. `worldloom token TENANT` makes one.
"""

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worldloom.pipeline.service.errors import ServiceError
from worldloom.stages.settings import NAME

PREFIX = "wl_"
_SHA256 = re.compile(r"[0-9a-f]{64}")
WINDOW = 60.0  # seconds, of a quota


class Quota:
    """A bucket that fills up again within a minute. Safe for several threads."""

    def __init__(self, per_minute: float, now: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._now = per_minute, now
        self._left, self._at = per_minute, now()
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        """What may be spent at once."""
        with self._lock:
            return self._filled()

    def _filled(self) -> float:
        now = self._now()
        self._left = min(self.per_minute, self._left + (now - self._at) * self.per_minute / WINDOW)
        self._at = now
        return self._left

    def spend(self, cost: float) -> None:
        """ServiceError: too_costly for what the quota never allows, quota_exceeded for what it does not allow yet."""
        if cost > self.per_minute:
            raise ServiceError(
                "too_costly", 413, f"the request costs {cost:.0f}, this token may spend {self.per_minute:.0f} a minute; ask for less"
            )
        with self._lock:
            if cost > (left := self._filled()):
                wait = (cost - left) * WINDOW / self.per_minute
                raise ServiceError(
                    "quota_exceeded", 429, f"the request costs {cost:.0f}, {left:.0f} are left of this minute's quota", None, wait
                )
            self._left -= cost


@dataclass(frozen=True)
class Tenant:
    """Whoever holds a token; jobs, sessions and quotas are theirs."""

    name: str
    quota: Quota | None = None

    def spend(self, cost: float) -> None:
        """Takes it off the quota, if there is one."""
        if self.quota is not None:
            self.quota.spend(cost)


class Tenants:
    """All tokens; with none, everybody is the one tenant there is."""

    def __init__(self, entries: Sequence[tuple[str, str, float | None]] = ()) -> None:
        """`entries`: tenant, sha256 of a token, cost a minute. Tokens of one tenant have quotas of their own."""
        self.open = not entries
        self._known = [(bytes.fromhex(digest), Tenant(name, None if quota is None else Quota(quota))) for name, digest, quota in entries]
        self._anybody = Tenant("local")

    def find(self, authorization: str | None) -> Tenant:
        """The tenant of an Authorization header; ServiceError(unauthorized), the same for no token and a wrong one."""
        if self.open:
            return self._anybody
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, tenant in self._known:  # all of them, whichever it is
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None or scheme.lower() != "bearer":
            raise ServiceError("unauthorized", 401, "send a token that this service knows: Authorization: Bearer TOKEN")
        return found


def read_tenants(path: Path) -> Tenants:
    """ValueError, without the line itself, for one that is no entry."""
    entries: list[tuple[str, str, float | None]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split("#", 1)[0].split()
        if not parts:
            continue
        quota = parts[2] if len(parts) == 3 else None
        if len(parts) > 3 or len(parts) < 2 or not re.fullmatch(NAME, parts[0]) or not _SHA256.fullmatch(parts[1]) or not _is_quota(quota):
            raise ValueError(f"{path} line {number} is not: TENANT SHA256 [COST_PER_MINUTE]; `worldloom token TENANT` writes such a line")
        entries.append((parts[0], parts[1], None if quota is None else float(quota)))
    if not entries:
        raise ValueError(f"{path} holds no token; `worldloom token TENANT --to {path}` adds one")
    return Tenants(entries)


def add_token(tenant: str, path: Path | None, quota: int | None) -> list[str]:
    """Makes a token and adds its line to the file; what to say: the token, and the line where there is no file."""
    if not re.fullmatch(NAME, tenant):
        raise ValueError(f"{tenant!r} is no name of a tenant: small letters, digits, - and _, at most 63")
    token = PREFIX + secrets.token_urlsafe(32)
    line = " ".join([tenant, hashlib.sha256(token.encode()).hexdigest(), *([] if quota is None else [str(quota)])])
    if path is None:
        return [token, line]
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
        file.write(line + "\n")
    return [token]


def _is_quota(text: str | None) -> bool:
    return text is None or bool(re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,3})?", text) and float(text) > 0)
