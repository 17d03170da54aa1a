"""The limits of configuration values: type and range, checked with a message that says what would be right.

Besides its own limit, every value has to be one that Kafka, a clock and 32 bits can hold, and text that can be printed:
anything else would be a traceback hours later, in a client's library.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from wire.errors import ConfigError

SHOWN_CHARACTERS = 200
DEFAULT = "leave it out to get the default"
MAX_WHOLE = 2**53
"""Above this, a double loses units."""
MAX_FLOAT = 3.4e38
"""The most that 32 bits hold."""
MIN_FLOAT = 1.2e-38
"""The least above 0 that they hold with all digits."""
MAX_S = 1e9
"""Thirty years."""
MAX_DAYS = 1e5
MAX_CHARACTERS = 4_000
_PATHS = ("path", "_dir", "_file", "_folder")
"""Ends of keys that name a file or a folder."""
_SPACED = ("kafka.bootstrap", "password", "username")
"""Ends of keys whose values may have spaces around them."""
_PUBLIC = ("security_protocol", "sasl_mechanism", "ssl_check_hostname", "client_id", "file", "_ms")
"""Ends of the keys under ``kafka.client`` whose values are no secrets. Any other value may be one."""
_KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", tuple: "a list"}
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PORT = re.compile(r"[0-9]{1,5}")


def expect(holds: bool, key: str, expected: str, got: object, advice: str) -> None:
    """Raise `ConfigError` unless ``holds``."""
    if not holds:
        raise ConfigError(f"{key}: expected {expected}, got {shown_of(key, got)}; {advice}")


def shown(value: object) -> str:
    """A value for a message, shortened to a readable length."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def shown_of(key: str, value: object) -> str:
    """A key's value for a message: only its type where it may be a secret, and no user or password of an address."""
    is_secret = key == "kafka" or (key.startswith("kafka.client") and not key.endswith(_PUBLIC))
    if is_secret and value is not None:
        return f"{_KINDS.get(type(value), 'a table')}, which is not shown, since it may be a secret"
    text = repr(value)
    return shown(value) if "@" not in text else f"…{text[text.rindex('@') :]:.{SHOWN_CHARACTERS}}"


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number from ``low`` to ``high``; ``open_low``, ``open_high``: excluding that bound. ``usual``: between
    which bounds nobody asks whether it is in another unit (`wire.doubts`)."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    advice: str = DEFAULT
    usual: tuple[float, float] = (-math.inf, math.inf)

    def check(self, key: str, value: object) -> None:
        """Raise `ConfigError` if ``value`` is not such a number."""
        kinds = int if self.whole else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        fine = is_number and self._in_range(value)
        expect(fine, key, self._expected(), value, self.advice)

    def _in_range(self, value: Any) -> bool:
        if not -math.inf < value < math.inf:
            return False
        above = value > self.low if self.open_low else value >= self.low
        return bool(above and (value < self.high if self.open_high else value <= self.high))

    def is_unusual(self, value: Any) -> bool:
        """Whether it is outside of the usual bounds. 0, which most often turns something off, is not."""
        return value != 0 and not self.usual[0] <= value <= self.usual[1]

    @property
    def usual_words(self) -> str:
        """The usual bounds; empty if there are none."""
        low, high = (f"{bound:.15g}" for bound in self.usual)
        if math.isinf(self.usual[1]):
            return "" if math.isinf(self.usual[0]) else f"{low} or more"
        return f"up to {high}" if math.isinf(self.usual[0]) else f"{low} to {high}"

    def _expected(self) -> str:
        low = f"{'above ' if self.open_low else ''}{self.low:.15g}"
        high = f"{'below ' if self.open_high else ''}{self.high:.15g}"
        noun = "a whole number" if self.whole else "a number"
        if math.isinf(self.high):
            return noun if math.isinf(self.low) else f"{noun} {low}" if self.open_low else f"{noun}, {low} or more"
        return f"{noun}, {low} to {high}"


@dataclass(frozen=True, slots=True)
class Switch:
    """True or false."""

    def check(self, key: str, value: object) -> None:
        """Raise `ConfigError` if ``value`` is neither."""
        expect(isinstance(value, bool), key, "true or false", value, DEFAULT)


@dataclass(frozen=True, slots=True)
class Word:
    """A non-empty string; one of ``choices`` if there are any."""

    choices: tuple[str, ...] = ()
    advice: str = DEFAULT

    def check(self, key: str, value: object) -> None:
        """Raise `ConfigError` if ``value`` is not such a string."""
        expected = f"one of {self.choices}" if self.choices else "a string that is not empty"
        fine = isinstance(value, str) and (value in self.choices if self.choices else bool(value.strip()))
        expect(fine, key, expected, value, self.advice)


@dataclass(frozen=True, slots=True)
class Numbers:
    """A table of numbers by name, each within ``limit``; ``expected`` describes it."""

    limit: Number
    expected: str
    advice: str = DEFAULT

    def check(self, key: str, value: object) -> None:
        """Raise `ConfigError` if ``value`` is not such a table."""
        expect(isinstance(value, Mapping), key, f"a table of {self.expected}", value, self.advice)
        assert isinstance(value, Mapping)
        for name, number in value.items():
            self.limit.check(f"{key}.{name}", number)


@dataclass(frozen=True, slots=True)
class Names:
    """At least ``least`` names and at most ``most``."""

    most: int
    advice: str = DEFAULT
    least: int = 1

    def check(self, key: str, value: object) -> None:
        """Raise `ConfigError` if ``value`` is not a tuple of such names."""
        names = value if isinstance(value, tuple) else ()
        fine = all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)
        fine = fine and isinstance(value, tuple) and self.least <= len(names) <= self.most
        expect(fine, key, f"{self.least} to {self.most} names, none twice", value, self.advice)
        bare = all(name == name.strip() for name in names)
        expect(bare, key, "names without spaces around them", value, "no producer sends those")


@dataclass(frozen=True, slots=True)
class Text:
    """A string that matches ``pattern`` as a whole; ``expected`` describes it."""

    pattern: str = r"(?s:.*)"
    expected: str = "a string"
    advice: str = DEFAULT

    def check(self, key: str, value: object) -> None:
        """Raise `ConfigError` if ``value`` is not such a string."""
        fine = isinstance(value, str) and re.fullmatch(self.pattern, value) is not None
        expect(fine, key, self.expected, value, self.advice)


@dataclass(frozen=True, slots=True)
class Folder:
    """A path."""

    def check(self, key: str, value: object) -> None:
        """Raise `ConfigError` if ``value`` is no path."""
        expect(isinstance(value, Path), key, "a path", value, DEFAULT)


class Limit(Protocol):
    """What a field's value may be."""

    def check(self, key: str, value: object) -> None:
        """Raise `ConfigError` unless ``value`` is within the limit."""


AT_LEAST_1 = Number(1, whole=True)
FROM_0 = Number(0, whole=True)
ABOVE_0 = Number(0, open_low=True)


def above_0(low: float, high: float = math.inf) -> Number:
    """A number above 0, as a rule from ``low`` to ``high``."""
    return Number(0, open_low=True, usual=(low, high))


def at_least_1(low: float) -> Number:
    """A whole number, 1 or more, as a rule ``low`` or more."""
    return Number(1, whole=True, usual=(low, math.inf))


def check_fields(config: Any, section: str, limits: Mapping[str, Limit]) -> None:
    """Check every field of a dataclass against its limit. A field without a limit is a programming error."""
    for each in fields(config):
        key, value = f"{section}.{each.name}", getattr(config, each.name)
        limits[each.name].check(key, value)
        for place, entry in _leaves(key, value):
            _check_plausible(place, entry)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, tuple):
        yield from ((key, entry) for entry in value)
    elif isinstance(value, Mapping):
        yield from ((f"{key}.{name}", entry) for name, entry in value.items())
    else:
        yield key, value


def _check_plausible(key: str, value: Any) -> None:
    if isinstance(value, str | Path):
        text = str(value)
        expected = f"at most {MAX_CHARACTERS} characters, none of them a control character"
        expect(len(text) <= MAX_CHARACTERS and text.isprintable(), key, expected, text, "remove what is too much")
        is_bare = text == text.strip() or key.endswith(_SPACED)
        expect(is_bare, key, "text without spaces around it", text, "remove them")
        is_plain = not key.endswith(_PATHS) or not any(part.startswith(("~", "$")) for part in Path(text).parts)
        expect(
            is_plain, key, "a path, in which nothing is expanded", text, "write the folder of ~ or of a variable out"
        )
        is_fine = not key.endswith("host") or is_host(text)
        expect(is_fine, key, "a host name or an address", text, "127.0.0.1 is this machine, 0.0.0.0 any address of it")
    elif isinstance(value, bool):
        return
    elif isinstance(value, int):
        expect(abs(value) <= MAX_WHOLE, key, f"at most {MAX_WHOLE}", value, "give a smaller number")
    elif isinstance(value, float):
        most = MAX_S if key.endswith("_s") else MAX_DAYS if key.endswith("_days") else MAX_FLOAT
        expect(abs(value) <= most, key, f"at most {most:g}", value, "give a smaller number")
        is_held = value == 0 or abs(value) >= MIN_FLOAT
        expect(is_held, key, f"0 or at least {MIN_FLOAT:g}, the least that 32 bits hold", value, "give a larger number")


def is_host(text: str) -> bool:
    """Whether the text is an IP address, or a name that a machine can have. DNS knows no underscore, but names of
    containers have some."""
    if ":" in text:
        return _is_ip(text)
    try:
        plain = text.encode("idna").decode()
    except UnicodeError:
        return False
    labels = plain.removesuffix(".").split(".")
    if len(labels) > 1 and all(label.isdigit() for label in labels):
        return _is_ip(plain)
    return len(plain) <= 253 and all(_LABEL.fullmatch(label) for label in labels)


def is_host_port(text: str) -> bool:
    """Whether the text is HOST:PORT, with an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    is_port = _PORT.fullmatch(port) is not None and 0 < int(port) < 65_536
    return is_port and (is_host(host[1:-1]) if _is_bracketed(host) else ":" not in host and is_host(host))


def is_base_url(text: str) -> bool:
    """Whether the text is http://HOST or http://HOST:PORT (or https), without a path."""
    scheme, _, place = text.partition("://")
    is_place = is_host_port(place) or is_host(place[1:-1] if _is_bracketed(place) else place.replace(":", " "))
    return scheme in ("http", "https") and is_place


def _is_bracketed(host: str) -> bool:
    return host.startswith("[") and host.endswith("]") and ":" in host


def _is_ip(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False
