"""The base of every error that a person can act on, and the errors of what crosses Kafka.

::

    HeadraceError
    ├── ConfigError (also ValueError)        a configuration value is unusable
    ├── CodecError (also ValueError)         bytes that are not one of our messages
    ├── VersionError                         a version does not fit the weights it is applied to
    ├── BrokerUnavailable (also ConnectionError)  no broker answered in time
    ├── ClientRefused                        a Kafka client cannot work with its options, however often it tries
    ├── TopicMissing                         the broker has no such topic
    ├── TopicReplaced                        a topic is not the one that a position refers to
    └── TopicsMismatch                       a topic has a different number of partitions than configured

The rooms derive their own: `state.errors`, `stream.errors`, `trainer.errors`, `serving.errors`. Each message says what
was expected, what came and what to do; a process that ends with one prints it on one line.
"""

from __future__ import annotations

SHOWN_CHARACTERS = 400


def brief(error: BaseException) -> str:
    """An error for a log line, shortened: a Kafka client's may hold the metadata of every topic of the cluster."""
    text = repr(error)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


class HeadraceError(Exception):
    """Base of every error that a person can resolve and a retry cannot."""


class ConfigError(HeadraceError, ValueError):
    """A configuration value is unusable; the message names the key, the value and what would be right."""


class CodecError(HeadraceError, ValueError):
    """Bytes that are not a message in a layout that this build can read."""


class VersionError(HeadraceError):
    """A version does not fit the weights it is applied to."""


class BrokerUnavailable(HeadraceError, ConnectionError):
    """No broker answered in time."""


class ClientRefused(HeadraceError):
    """A Kafka client cannot work with its options, however often it tries."""


class TopicMissing(HeadraceError):
    """The broker has no such topic."""


class TopicReplaced(HeadraceError):
    """A topic is not the one that a position refers to, or no longer reaches that far."""


class TopicsMismatch(HeadraceError):
    """A topic does not have the shape that the configuration says."""
