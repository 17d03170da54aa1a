"""How many files and sockets this process has open, of how many it may.

Beyond the limit a server cannot accept connections: the system's library accepts and closes them, unanswered and
without a word, and clients of Kafka report only that the broker does not answer. So the server itself has to say so.
"""

from __future__ import annotations

import errno
import logging
import resource
import time
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)
FOLDER = Path("/proc/self/fd")
SPARE = 24
"""Kafka's clients need this many for new connections."""
TELL_EVERY_S = 30.0
REMEDY = "raise the limit (ulimit -n, systemd's LimitNOFILE, docker's --ulimit nofile), or add servers"


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """``num`` open files of at most ``most``; both 0 if the system does not say."""

    num: int
    most: int

    @staticmethod
    def count() -> OpenFiles:
        """As of now."""
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            return OpenFiles(len(list(FOLDER.iterdir())) - 1, most)  # without the one that lists them
        except OSError as error:
            return OpenFiles(most, most) if error.errno == errno.EMFILE else OpenFiles(0, 0)

    @property
    def is_short(self) -> bool:
        """Whether hardly any more can be opened."""
        return 0 < self.most <= self.num + SPARE


class FileWatch:
    """Logs that the limit is reached, at most twice a minute."""

    def __init__(self) -> None:
        self._told_s = -TELL_EVERY_S

    def look(self, num_connections: int) -> None:
        """Count, and say so if there are too many."""
        found = OpenFiles.count()
        if found.is_short and time.monotonic() - self._told_s >= TELL_EVERY_S:
            self._told_s = time.monotonic()
            logger.error(
                "%d files of at most %d are open, %d of them connections of clients: further ones are closed "
                "unanswered, and the broker may seem to be away; %s", found.num, found.most, num_connections, REMEDY,
            )  # fmt: skip
