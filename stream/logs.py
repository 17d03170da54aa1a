"""The stream's logger; `headrace.logs` says how its lines look."""

from __future__ import annotations

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger("stream")
