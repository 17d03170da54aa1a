"""Dead letters are counted, shown, and sent again once their cause is fixed."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition

from headrace import forgotten
from headrace.broker import EmbeddedBroker
from headrace.command import run
from headrace.config import Settings
from headrace.dead_letters import _command, acceptable, resend, show
from headrace.forgotten import Forgotten
from tests.brokers import Broker, free_port
from wire.action_json import ForgetRequest
from wire.config import ActionConfig, KafkaConfig
from wire.kafka.admin import ensure_topics
from wire.kafka.consumer import connect, read, spans
from wire.kafka.producer import make_producer
from wire.partitioner import partition_of
from wire.topics import Topics

NOW = 1_760_000_000_000


def action(user: str, **changed: object) -> dict[str, object]:
    return {"user": user, "item": 1, "action": "click", "timestamp": NOW, **changed}


@pytest.fixture
def settings(kafka: Broker, topic_prefix: str) -> Settings:
    """A deployment of five dead letters: three of an unknown kind, one with a time in seconds, one that is not JSON."""
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix, partitions=2)
    ensure_topics(config)
    topics = Topics.under(topic_prefix)
    letters: list[tuple[str, bytes]] = [
        ("unknown_action", msgspec.json.encode(action(f"u{number}", action="buy"))) for number in range(3)
    ]
    letters += [("bad_time", msgspec.json.encode(action("u4", timestamp=NOW // 1000))), ("malformed", b"{")]
    producer = make_producer(config)
    for number, (reason, value) in enumerate(letters):
        headers = {"reason": reason, "message": f"why {reason}", "topic": topics.actions, "partition": "1",
                   "offset": str(number), "index": "-1"}  # fmt: skip
        producer.send(
            topics.dead_letters, value, partition=0, headers=[(name, text.encode()) for name, text in headers.items()]
        )
    producer.close()
    return Settings(kafka=config)


def actions_of(settings: Settings) -> list[Any]:
    consumer = connect(settings.kafka)
    topic = Topics.under(settings.kafka.prefix).actions
    records = list(read(consumer, topic, spans(consumer, topic)))
    consumer.close()
    found = [msgspec.json.decode(record.value) for record in records]
    return [each for one in found for each in (one if isinstance(one, list) else [one])]


def test_requests_to_forget_that_were_refused_are_told_as_commands(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    producer = make_producer(settings.kafka)
    for content in ({"forget": True, "user": "it's"}, {"forget": False, "item": 7}, {"forget": True, "user": "it's"}):
        producer.send(
            Topics.under(settings.kafka.prefix).dead_letters, msgspec.json.encode(content), partition=0,
            headers=[("reason", b"wrong_partition"), ("topic", b"t"), ("partition", b"0"), ("offset", b"9")],
        )  # fmt: skip
    producer.close()
    assert resend(settings, first=5) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-2:] == ["""headrace forget user 'it'"'"'s'""", "headrace forget item --undo 7"]
    assert "2 requests to forget" in told[-3]
    assert actions_of(settings) == []


@pytest.mark.parametrize(
    "name", ["a b", "-x", "--undo", "it's", "a\\nb", "[red]x", "~", "$HOME", "#x", "Ünï 😀", "a  b"]
)
@pytest.mark.parametrize("is_back", [False, True])
def test_a_command_that_is_entered_forgets_whom_the_letter_names(
    name: str, is_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[str, str, bool]]()
    monkeypatch.setattr("headrace.forget.forget", lambda _, *who, is_back, **__: asked.append((*who, is_back)) or 0)
    program, *arguments = shlex.split(_command(ForgetRequest("", name, is_back)))
    assert run(program, arguments=arguments) == 0
    assert asked == [("item", name, is_back)]


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\u202eabc", "a\u2028", "\x1b[2J", "\xa0", "\ufeffa"])
def test_a_name_that_no_terminal_shows_is_given_as_the_body_of_a_request(name: str) -> None:
    told = _command(ForgetRequest("", name, is_back=True))
    assert told.startswith("# an item that no terminal shows")
    assert told.isascii()
    assert told.isprintable()
    body = json.loads(told[told.index("{") :])
    assert body == {"item": name, "undo": True}
    assert shlex.split(told, comments=True) == []


def test_they_are_counted_by_reason_and_the_newest_shown(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(settings, num_last=2, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num"], told["by_reason"]) == (5, {"unknown_action": 3, "bad_time": 1, "malformed": 1})
    assert [letter["reason"] for letter in told["last"]] == ["bad_time", "malformed"]
    assert told["last"][1]["value"] == "{"
    assert show(settings, reason="unknown_action") == 0
    assert "5 dead letters: unknown_action 3, bad_time 1, malformed 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"[/red] no tag", "[/red] no tag"),
        (b"[bold]x :smile:", "[bold]x :smile:"),
        (b"\x1b[2J\x07x", "\ufffd[2J\ufffdx"),
    ],
)
def test_what_a_letter_holds_is_shown_and_not_obeyed(
    value: bytes, shown: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    producer = make_producer(settings.kafka)
    headers = [("reason", value), ("message", value)]
    producer.send(Topics.under(settings.kafka.prefix).dead_letters, value, partition=0, headers=headers)
    producer.close()
    assert show(settings, num_last=1) == 0
    assert shown in capsys.readouterr().out


def test_resending_sends_what_is_fixed_once_and_reports_what_is_not(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resend(settings) == 1
    assert actions_of(settings) == [], "nothing is fixed yet"
    assert "still refused: unknown_action 3" in capsys.readouterr().out
    fixed = settings.model_copy(update={"action": ActionConfig(kinds=("click", "buy"))})
    assert resend(fixed, first=0) == 1
    said = capsys.readouterr().out
    assert "sent 3 actions again, of dead letters 0 to 4" in said
    assert "still refused: bad_time 1, malformed 1; afterwards: headrace dead-letters --resend --from 3" in said
    assert sorted(each["user"] for each in actions_of(settings)) == ["u0", "u1", "u2"]
    assert resend(fixed) == 0
    assert "no new dead letters" in capsys.readouterr().out
    assert len(actions_of(settings)) == 3, "each once"


def test_letters_are_sent_again_where_the_actions_topic_has_transactions(settings: Settings, kafka: Broker) -> None:
    if kafka.kind != "apache":
        pytest.skip("expected Apache Kafka: the embedded broker knows no transactions")
    topics = Topics.under(settings.kafka.prefix)

    async def write() -> None:
        async with AIOKafkaProducer(
            bootstrap_servers=kafka.bootstrap, transactional_id=settings.kafka.prefix
        ) as producer:
            for user in ("committed", "aborted"):
                await producer.begin_transaction()
                await producer.send_and_wait(topics.actions, msgspec.json.encode(action(user)), partition=1)
                await (producer.commit_transaction() if user == "committed" else producer.abort_transaction())

    asyncio.run(write())
    fixed = settings.model_copy(update={"action": ActionConfig(kinds=("click", "buy"))})
    assert resend(fixed) == 1
    assert [each["user"] for each in actions_of(settings)].count("committed") == 1
    assert {each["user"] for each in actions_of(settings)} == {"committed", "u0", "u1", "u2"}


def test_what_is_sent_twice_has_the_same_id_so_that_the_worker_takes_it_once(settings: Settings) -> None:
    fixed = settings.model_copy(update={"action": ActionConfig(kinds=("click", "buy"))})
    resend(fixed, first=0)
    resend(fixed, first=0)
    ids = Counter(each["id"] for each in actions_of(settings))
    topic = Topics.under(settings.kafka.prefix).actions
    assert ids == {f"dead-letter/{topic}/1/{number}/0": 2 for number in range(3)}


def test_an_action_keeps_the_id_that_it_has_and_those_of_a_list_differ() -> None:
    value = msgspec.json.encode([action("u1", id="mine"), action("u1")])
    headers = [(name, text.encode()) for name, text in {"topic": "a", "partition": "2", "offset": "7"}.items()]
    record = SimpleNamespace(value=value, headers=headers, offset=0)
    assert [each["id"] for each in acceptable(record, ActionConfig())] == ["mine", "dead-letter/a/2/7/1"]


def letter_of(settings: Settings, user: str, item: int, partition: int, offset: int) -> None:
    """A dead letter of an action that stood at this place of the actions topic."""
    topics = Topics.under(settings.kafka.prefix)
    told = {"reason": "unknown_action", "topic": topics.actions, "partition": str(partition), "offset": str(offset),
            "index": "-1"}  # fmt: skip
    producer = make_producer(settings.kafka)
    value = msgspec.json.encode(action(user, item=item, action="buy"))
    headers = [(name, text.encode()) for name, text in told.items()]
    producer.send(topics.dead_letters, value, partition=0, headers=headers).get(60)
    producer.close()


def put(settings: Settings, partition: int, **content: object) -> int:
    """Send a record to the actions topic; its offset."""
    producer = make_producer(settings.kafka)
    value = msgspec.json.encode(content)
    sent = producer.send(Topics.under(settings.kafka.prefix).actions, value, partition=partition).get(60)
    producer.close()
    time.sleep(0.01)  # the next record has another timestamp
    offset: int = sent.offset
    return offset


@pytest.fixture
def empty(kafka: Broker, topic_prefix: str) -> Settings:
    """A deployment that accepts "buy" now, without letters."""
    config = KafkaConfig(bootstrap=kafka.bootstrap, prefix=topic_prefix, partitions=2)
    ensure_topics(config)
    return Settings(kafka=config).model_copy(update={"action": ActionConfig(kinds=("click", "buy"))})


def test_who_was_forgotten_does_not_come_back_with_the_dead_letters(
    empty: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {}
    for name, partition in (("alice", 0), ("elsewhere", 1), ("bob", 0), ("late", 0), ("item", 1)):
        places[name] = partition, put(empty, partition, x=name)
    put(empty, 0, forget=True, user="alice")
    put(empty, 0, forget=True, user="elsewhere")
    put(empty, 0, forget=True, user="late")
    put(empty, 0, forget=True, item="77")
    places["late"] = 0, put(empty, 0, x="came afterwards")
    places["late elsewhere"] = 1, put(empty, 1, x="came afterwards")
    for name, place in places.items():
        letter_of(empty, name.split()[0], 77 if name == "item" else 1, *place)
    assert resend(empty) == 0
    said = capsys.readouterr().out
    assert "sent 3 actions again" in said
    assert "not sent: 3 actions whose user or item was to be forgotten after they came" in said
    resent = [each["user"] for each in actions_of(empty) if "user" in each and "forget" not in each]
    assert sorted(resent) == ["bob", "late", "late"]


def test_what_a_user_of_long_ago_did_does_not_come_back_with_the_dead_letters(
    empty: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one whom a worker forgot for being quiet, what was refused since the last action counts as a visit."""
    places = {name: (0, put(empty, 0, x=name)) for name in ("quiet", "back", "asked", "both")}
    elsewhere = 1, put(empty, 1, x="quiet")
    before = places["back"][1]
    put(empty, 0, forget=True, user="asked")
    put(empty, 0, forget=True, user="both")
    put(empty, 0, forget=True, users=["quiet", "back", "asked", "both"], before_offset=before)
    for name, place in places.items():
        letter_of(empty, name, 1, *place)
    letter_of(empty, "quiet", 1, *elsewhere)
    assert resend(empty) == 0
    said = capsys.readouterr().out
    assert "not sent: 3 actions whose user or item was to be forgotten after they came" in said
    resent = [each["user"] for each in actions_of(empty) if "user" in each and "forget" not in each]
    assert sorted(resent) == ["back", "quiet"]


def test_who_is_forgotten_while_letters_are_sent_is_forgotten_after_them(
    empty: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("alice", "bob"):
        letter_of(empty, name, 1, 0, put(empty, 0, x=name))
    look = Forgotten.read

    def overtaken(*arguments: Any) -> Forgotten:
        found = look(*arguments)
        for name in ("alice", "carol"):
            put(empty, partition_of(name.encode(), 2), forget=True, user=name)
        return found

    monkeypatch.setattr(Forgotten, "read", overtaken)
    assert resend(empty) == 0
    said = capsys.readouterr().out
    assert "sent 2 actions again" in said
    assert "1 users were to be forgotten meanwhile: these requests were sent again" in said
    about = [each for each in actions_of(empty) if each.get("user") == "alice"]
    assert [each.get("forget") for each in about] == [True, None, True], "the action is followed by a request"
    assert sum("forget" in each for each in actions_of(empty)) == 3, "nobody else's"


@pytest.mark.parametrize("word", ["forget", r"f\u006frget", r"\u0066\u006F\u0072\u0067\u0065\u0074"])
def test_a_request_is_found_among_many_actions_without_reading_each(
    word: str, empty: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, num = Topics.under(empty.kafka.prefix).actions, 4000
    place = put(empty, 0, x="alice")
    producer = make_producer(empty.kafka, linger_ms=20)
    for number in range(num):
        if number == num // 2:
            producer.flush(30)
            producer.send(topic, b'{"%b": true, "user": "alice"}' % word.encode(), partition=0)
            producer.flush(30)
        producer.send(topic, json.dumps(action(f"\u00e9{number}")).encode(), partition=0)
    producer.flush(30)
    producer.close()
    letter_of(empty, "alice", 1, 0, place)
    examined, look = list[object](), forgotten.request_of

    def noted(value: bytes | None) -> Any:
        examined.append(value)
        return look(value)

    monkeypatch.setattr(forgotten, "request_of", noted)
    assert resend(empty) == 0
    assert [each for each in actions_of(empty) if each.get("id")] == [], "she was forgotten"
    assert len(examined) < num // 10


def test_the_embedded_broker_says_otherwise_that_nothing_came_later(capsys: pytest.CaptureFixture[str]) -> None:
    broker = EmbeddedBroker(free_port())
    broker.start()
    try:
        config = KafkaConfig(bootstrap=broker.bootstrap, partitions=2)
        ensure_topics(config)
        settings = Settings(kafka=config).model_copy(update={"action": ActionConfig(kinds=("click", "buy"))})
        place = put(settings, 1, x="elsewhere")
        put(settings, 0, forget=True, user="elsewhere")
        letter_of(settings, "elsewhere", 1, 1, place)
        assert resend(settings) == 0
    finally:
        broker.stop()
    said = capsys.readouterr().out
    assert "sent 0 actions again" in said
    assert "not sent: 1 actions whose user or item was to be forgotten after they came" in said


def test_a_letter_older_than_the_actions_topic_is_sent_only_when_asked_for(
    empty: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = Topics.under(empty.kafka.prefix).actions
    put(empty, 0, forget=True, user="alice")
    put(empty, 0, x="the first that is left")
    admin = KafkaAdminClient(bootstrap_servers=empty.kafka.bootstrap)
    admin.delete_records({TopicPartition(topic, 0): 1})
    admin.close()
    letter_of(empty, "alice", 1, 0, 0)
    assert resend(empty) == 0
    said = capsys.readouterr().out
    assert "sent 0 actions again" in said
    assert f"not sent: 1 actions that are older than what {topic} still holds" in said
    assert resend(empty, first=0, despite_retention=True) == 0
    assert "sent 1 actions again" in capsys.readouterr().out


def test_a_bookmark_beyond_the_end_of_the_topic_is_of_another_topic(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = Topics.under(settings.kafka.prefix).dead_letters
    consumer = connect(settings.kafka, group_id=f"{settings.kafka.prefix}-dead-letters")
    consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(99, "", -1)})
    consumer.close()
    assert resend(settings) == 1
    assert "of dead letters 0 to 4" in capsys.readouterr().out
