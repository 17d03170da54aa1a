"""The stream's logger; `headrace.logs` configures its format."""

from __future__ import annotations

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger("stream")
