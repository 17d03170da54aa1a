"""The base of every error that a person can act on, and the errors of what crosses Kafka.

::

    HeadraceError
    ├── ConfigError (also ValueError)        a configuration value is not usable
    ├── CodecError (also ValueError)         bytes that are not a message of ours
    ├── VersionError                         a version does not fit the weights that it is applied to
    ├── BrokerUnavailable (also ConnectionError)  no broker answered in time
    ├── ClientRefused                        a Kafka client cannot work as it is set up, however often it tries
    ├── TopicMissing                         the broker has no such topic
    ├── TopicReplaced                        a topic is not the one that a position is in
    └── TopicsMismatch                       a topic exists with another number of partitions than configured

The rooms derive their own: `state.errors`, `stream.errors`, `trainer.errors`, `serving.errors`. Each message says what
was expected, what came and what to do; a process ends with it in one line.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of every error that a person, and not a retry, can resolve."""


class ConfigError(HeadraceError, ValueError):
    """A configuration value is not usable; the message names the key, the value and what would be right."""


class CodecError(HeadraceError, ValueError):
    """Bytes that are not a message in a layout that this build can read."""


class VersionError(HeadraceError):
    """A version does not fit the weights that it is applied to."""


class BrokerUnavailable(HeadraceError, ConnectionError):
    """No broker answered in time."""


class ClientRefused(HeadraceError):
    """A Kafka client cannot work as it is set up, however often it tries."""


class TopicMissing(HeadraceError):
    """The broker has no such topic."""


class TopicReplaced(HeadraceError):
    """A topic is another one than that in which a position was reached, or does not reach so far any more."""


class TopicsMismatch(HeadraceError):
    """A topic exists with another shape than the configuration says."""
