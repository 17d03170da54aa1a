"""What errors say in a log line."""

from kafka.errors import KafkaTimeoutError, MetadataEmptyBrokerList

from wire.errors import SHOWN_CHARACTERS, brief


def test_an_error_with_the_whole_clusters_metadata_is_a_short_line() -> None:
    said = brief(MetadataEmptyBrokerList("MetadataResponse(brokers=[], topics=[" + "Topic(name='t'), " * 1000))
    assert len(said) == SHOWN_CHARACTERS + 1
    assert said.startswith("MetadataEmptyBrokerList(")
    assert said.endswith("…")


def test_a_short_error_is_shown_as_it_is() -> None:
    assert brief(KafkaTimeoutError("Unable to bootstrap")) == "KafkaTimeoutError('Unable to bootstrap')"
