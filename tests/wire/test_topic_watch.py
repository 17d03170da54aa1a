"""A topic is gone once it is missing several times in a row; one that a broker does not know for a moment is not."""

from __future__ import annotations

import pytest

from wire.config import KafkaConfig
from wire.errors import TopicMissing
from wire.kafka.identity import MISSES, Identity, TopicWatch


def test_topics_that_are_missing_in_turn_are_not_gone() -> None:
    known = {"a": Identity("1", 1), "b": Identity("2", 1)}
    watch = TopicWatch(KafkaConfig(), known, dict.fromkeys(known, "Do this"))
    only_a, only_b = {"a": known["a"]}, {"b": known["b"]}
    for _ in range(MISSES):
        watch._compare(only_a, "offset 3")
        watch._compare(only_b, "offset 3")
    for _ in range(MISSES - 1):
        watch._compare(only_a, "offset 3")
    with pytest.raises(
        TopicMissing, match=r"topic b: expected it to exist still, with offset 3, but it is gone. Do this"
    ):
        watch._compare(only_a, "offset 3")
