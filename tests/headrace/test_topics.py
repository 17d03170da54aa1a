"""`headrace topics`: missing topics and differing settings are shown, and set the exit status."""

import json
from dataclasses import replace

import pytest

from headrace.config import Settings
from headrace.topics import show
from tests.brokers import Broker
from wire.config import KafkaConfig


def test_topics_that_are_missing_or_differ_are_shown(
    kafka: Broker, topic_prefix: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    settings = Settings(kafka=KafkaConfig(kafka.bootstrap, prefix=topic_prefix, partitions=2))
    assert show(settings) == 1
    assert "headrace topics --create" in capsys.readouterr().out
    assert show(settings, create=True) == 0
    shown = capsys.readouterr().out
    assert f"{topic_prefix}.trainer.lag.v1" in shown, "names are complete on a terminal of 80 columns"
    assert shown.count("as configured") == 7

    other = settings.model_copy(update={"kafka": replace(settings.kafka, actions_retention_s=60.0)})
    assert show(other) == 1
    assert "retention.ms" in capsys.readouterr().out
    assert show(other, as_json=True) == 1
    rows = {row["topic"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows[f"{topic_prefix}.weights.v1"]["settings"]["retention.ms"] == "60000"
    assert "604800000" in rows[f"{topic_prefix}.weights.v1"]["broker_has"].values()
    assert rows[f"{topic_prefix}.sequences.v1"]["broker_has"] == {}
