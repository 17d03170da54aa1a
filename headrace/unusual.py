"""Values of the configuration that are allowed, and probably meant in another unit (`wire.doubts`)."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from headrace.config import Settings
from model.config import MODEL_LIMITS
from serving.config import SERVING_LIMITS
from state.config import STORE_LIMITS
from stream.config import STREAM_LIMITS
from trainer.config import TRAINER_LIMITS
from wire.checks import Limit
from wire.config import ACTION_LIMITS, KAFKA_LIMITS, SEQUENCE_LIMITS
from wire.doubts import Doubt, doubts

LIMITS: dict[str, Mapping[str, Limit]] = {
    "kafka": KAFKA_LIMITS, "action": ACTION_LIMITS, "sequence": SEQUENCE_LIMITS, "store": STORE_LIMITS,
    "stream": STREAM_LIMITS, "model": MODEL_LIMITS, "trainer": TRAINER_LIMITS, "serving": SERVING_LIMITS,
}  # fmt: skip
"""The limits of every key, by section."""
log = structlog.get_logger("headrace")


def unusual(settings: Settings) -> list[Doubt]:
    """All values that are not usual."""
    return [each for section, limits in LIMITS.items() for each in doubts(getattr(settings, section), section, limits)]


def warn(settings: Settings) -> None:
    """Log a line for each."""
    for each in unusual(settings):
        log.warning("; ".join(each))
