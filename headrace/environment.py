"""Settings in the environment, for commands that configure processes of their own.

The environment wins over every file, also over one that the demo or a measurement has just written: their traffic would
go to the deployment that the environment describes.
"""

from __future__ import annotations

import os

from headrace.config import Settings
from headrace.config_errors import PREFIX

CLIENT = (f"{PREFIX}KAFKA__CLIENT", f"{PREFIX}KAFKA__REPLICATION_FACTOR")
"""The beginnings of what it takes to use a broker, whatever the deployment."""


def unset_settings(*kept: str) -> list[str]:
    """Remove all settings but those that begin with ``kept``; returns the names of the removed variables."""
    sections = {PREFIX + section.upper() for section in Settings.model_fields}
    found = [name for name in os.environ if name.upper().partition("__")[0] in sections]
    unset = sorted(name for name in found if not name.upper().startswith(kept))
    for name in unset:
        del os.environ[name]
    return unset
