"""Access control: bearer tokens from a file, each with a role. Without a file, anyone who reaches the port has access.

    read = ["a long random string"]       # requests and state
    admin = ["another one"]               # may also send actions, and have users and items forgotten

Tokens are compared by their SHA-256, so the time of a comparison reveals nothing about them. The file is read again
when it changes: a token can be replaced without a restart.
"""

from __future__ import annotations

import hashlib
import logging
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from serving.errors import UnauthorizedError
from wire.errors import ConfigError

logger = logging.getLogger(__name__)
ROLES = ("read", "admin")
MIN_TOKEN = 16
LOOK_EVERY_S = 1.0
Headers = Sequence[tuple[bytes, bytes]]


class Access:
    """Checks requests by their ``authorization`` header; without a file of tokens (`read`), all are allowed."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._roles: dict[bytes, str] = {}
        self._looked = self._changed_ns = 0.0

    @classmethod
    def read(cls, tokens_file: str) -> Access:
        """The access that a file of tokens gives; everyone's if ``tokens_file`` is empty. Raises `ConfigError`."""
        access = cls()
        if tokens_file:
            access._path = path = Path(tokens_file)
            access._roles, access._changed_ns = _read(path), path.stat().st_mtime_ns
        return access

    @property
    def is_open(self) -> bool:
        """Whether no token is needed."""
        return self._path is None

    def check(self, headers: Headers, role: str) -> None:
        """Raise `UnauthorizedError` unless the request has a token with at least this role."""
        if self._path is None:
            return
        self._look(self._path)
        given = next((value for name, value in headers if name == b"authorization"), b"")
        kind, _, token = given.partition(b" ")
        found = self._roles.get(hashlib.sha256(token.strip()).digest()) if kind.lower() == b"bearer" else None
        if found is None:
            raise UnauthorizedError("send a token from serving.tokens_file in the header authorization", 401)
        if ROLES.index(found) < ROLES.index(role):
            raise UnauthorizedError(f"expected a token of role {role}, got one of role {found}; send another", 403)

    def _look(self, path: Path) -> None:
        """Read the file again if it has changed; if it is broken, log that and keep the old tokens."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        try:
            changed_ns = path.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                self._changed_ns = changed_ns
                self._roles = _read(path)
                logger.info("tokens read again: %d", len(self._roles))
        except (OSError, ConfigError) as error:
            logger.warning("the tokens stay as they were: %s", error)


def _read(path: Path) -> dict[bytes, str]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"serving.tokens_file: expected a TOML file, got {path} ({error}); correct it") from None
    roles: dict[bytes, str] = {}
    for role, tokens in table.items():
        if role not in ROLES or not isinstance(tokens, list):
            raise ConfigError(f"serving.tokens_file: expected lists read and admin, got {role}; correct {path}")
        for token in tokens:
            if not isinstance(token, str) or len(token) < MIN_TOKEN or token != token.strip():
                raise ConfigError(
                    f"serving.tokens_file: expected strings of {MIN_TOKEN} or more characters, got a shorter one under "
                    f"{role}, or one with spaces around it; make one with `openssl rand -hex 32` in {path}"
                )
            if roles.setdefault(hashlib.sha256(token.encode()).digest(), role) != role:
                raise ConfigError(
                    f"serving.tokens_file: expected one role for each token, got both for one; correct {path}"
                )
    if not roles:
        raise ConfigError(f"serving.tokens_file: expected at least one token, got none in {path}; add one")
    return roles
