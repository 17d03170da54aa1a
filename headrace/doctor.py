"""`headrace doctor`: checks this machine and the deployment, and says what to do about each fault."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise, takewhile
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from headrace import machine
from headrace.config import Settings
from headrace.findings import Finding, note, ok, problem
from headrace.findings import show as show_findings
from headrace.lines import followed_line
from headrace.unusual import unusual
from headrace.versions import duration
from serving.open_files import REMEDY
from wire.cluster import SILENT_MS, ClusterState
from wire.dead_letter import read_headers
from wire.errors import HeadraceError, brief
from wire.holding import as_ranges
from wire.kafka.admin import config_drift, make_admin, mismatch, partition_counts, untold
from wire.kafka.beginning import removed
from wire.kafka.consumer import Span, connect, follow, read, spans
from wire.lag import decode_lag
from wire.status import ServerStatus, Status, WorkerStatus, role_of, status_of
from wire.topics import Topics, topics_of

LISTEN_S = 3.5
"""Every process reports once a second, so in this time each live one is heard at least twice."""
SKEW_S = 2.0
NUM_LETTERS = 1000
STALE_S = 10.0
FULL_SHARE = 0.9
MORE_RECALL = 'it makes its lists anew every ten minutes; if that does not help, raise serving.search_probes, or set \
serving.search = "exact"'
REMEDIES = {
    "wrong_partition": "the producer partitions differently from Kafka's Java client: in librdkafka's clients set "
    "partitioner=murmur2 (examples/ has one for each language)",
    "bad_time": "timestamps are milliseconds since 1970, as a whole number",
    "future": "the producer's clock is ahead, or its timestamps are not milliseconds",
    "unknown_action": "add the kind to action.kinds, in every process",
}


def show(settings: Settings, *, as_json: bool = False) -> int:
    """Print what was found; exit status 1 if anything is a problem."""
    return show_findings(findings(settings), as_json=as_json)


def findings(settings: Settings) -> Iterator[Finding]:
    """First this machine, then the broker and, if it answers, the deployment on it."""
    yield from machine.findings(settings)
    yield from (note("configuration", each.words, each.remedy) for each in unusual(settings))
    try:
        consumer = connect(settings.kafka)
    except HeadraceError as error:
        yield problem("broker", str(error), "")
        return
    try:
        yield broker(settings)
        missing = [topic.name for topic in topics_of(settings.kafka) if topic.name not in consumer.topics()]
        if missing:
            yield problem("topics", f"missing: {', '.join(missing)}", "headrace topics --create")
            return
        yield topics(settings)
        yield from beginnings(settings, consumer)
        line = followed_line(settings)
        state, behind_s, lag, under = heard(settings, line, consumer)
        yield from processes(settings, line, state, behind_s, lag)
        yield from namesakes(under)
        yield dead_letters(settings, consumer)
    except (HeadraceError, KafkaError) as error:
        told = error if isinstance(error, HeadraceError) else brief(error)
        yield problem("broker", f"it stopped answering: {told}", "see the broker's log")
    finally:
        consumer.close()


def broker(settings: Settings) -> Finding:
    """How many brokers there are, and whether they are enough for the topics' replicas."""
    admin = make_admin(settings.kafka)
    try:
        num_brokers = len(admin.describe_cluster()["brokers"])
    finally:
        admin.close()
    copies = settings.kafka.replication_factor
    words = f"{num_brokers} at {settings.kafka.bootstrap}; kafka.replication_factor = {copies}"
    if copies > num_brokers:
        return problem("broker", words, "start more brokers, or lower kafka.replication_factor before the topics exist")
    if num_brokers > 1 and copies == 1:
        return note("broker", words, "with one copy, losing a broker loses records; 3 is usual on a cluster")
    return ok("broker", words)


def topics(settings: Settings) -> Finding:
    """Whether the topics match the configuration."""
    admin = make_admin(settings.kafka)
    try:
        counts = partition_counts(admin)
    finally:
        admin.close()
    for topic in topics_of(settings.kafka):
        if counts[topic.name] != topic.num_partitions:
            words, remedy = str(mismatch(settings.kafka, topic, counts)).split("; ", 1)
            return problem("topics", words, remedy)
    if drift := config_drift(settings.kafka):
        words = "; ".join(f"{name}: {key} = {value}" for name, keys in drift.items() for key, value in keys.items())
        return note("topics", f"settings differ from the configuration: {words}", "headrace topics shows both")
    if hidden := untold(settings.kafka):
        words = f"the broker does not say how {', '.join(hidden)} are set"
        return note("topics", words, "give this user the right to describe their settings")
    return ok("topics", f"{len(counts)} on the broker, those of {settings.kafka.prefix!r} as configured")


def beginnings(settings: Settings, consumer: KafkaConsumer) -> Iterator[Finding]:
    """Whether the sequences topic still has all that compaction leaves."""
    topic = Topics.under(settings.kafka.prefix).sequences
    if why := removed(topic, {number: span.first for number, span in spans(consumer, topic).items()}):
        words, _, remedy = why.partition(". See ")
        yield problem("sequences", words, f"see {remedy}")


def heard(
    settings: Settings, line: str, consumer: KafkaConsumer
) -> tuple[ClusterState, dict[str, list[float]], dict[str, Any], dict[str, list[str]]]:
    """Listen for a while: the last report of every process; by role and name how far each clock is behind ours, and
    from where reports came, in their order; and the newest lag message.

    The measured offset includes the report's way through Kafka, a few hundredths of a second.
    """
    names = Topics.under(settings.kafka.prefix, line)
    state, behind_s, lag = ClusterState(), dict[str, list[float]](), dict[str, Any]()
    under = dict[str, list[str]]()
    earlier = spans(consumer, names.status)
    for record in read(consumer, names.status, earlier):
        state.note(record.value)
    deadline = time.monotonic() + LISTEN_S
    for record in takewhile(lambda _: time.monotonic() < deadline, follow(consumer, names.status, names.lag)):
        if record is None:
            continue
        if record.topic == names.lag:
            lag = decode_lag(record.value) or lag
            continue
        if record.offset < earlier[record.partition].end:
            continue
        state.hear(record.value, time.time_ns() // 1_000_000)
        if (status := status_of(record.value)) is not None:
            named = f"{role_of(status)} {status.component}"  # a worker and a server may well have one name
            behind_s.setdefault(named, []).append(time.time() - status.time_ms / 1000)
            under.setdefault(named, []).append(sender_of(status))
    return state, behind_s, lag, under


def sender_of(status: Status) -> str:
    """What tells processes of one role and name apart, as far as they say it."""
    if isinstance(status, ServerStatus):
        return status.address
    return status.process if isinstance(status, WorkerStatus) else status.claimant


def namesakes(under: dict[str, list[str]]) -> Iterator[Finding]:
    """Roles and names under which several processes report in turns. (One that is started again takes over, and that is
    all.)"""
    for name, senders in under.items():
        if sum(before != after for before, after in pairwise(senders)) > 1:
            words = f"{len(set(senders))} processes report as {name}: only one of them counts at a time"
            yield problem("names", words, "give each server its own serving.name, each worker its own stream.component")


def processes(
    settings: Settings, line: str, state: ClusterState, behind_s: dict[str, list[float]], lag: dict[str, Any]
) -> Iterator[Finding]:
    """Which processes run, whose clock is off, and how fresh the answers are."""
    now_ms = time.time_ns() // 1_000_000
    found = state.processes(now_ms)
    live = Counter(each["role"] for each in found if each["silent_s"] * 1000 < SILENT_MS)
    words = ", ".join(f"{num} {role}{'s' if num > 1 else ''}" for role, num in live.items()) or "none"
    needed = {"worker": "headrace worker", "trainer": "headrace train", "server": "headrace serve"}
    if absent := [command for role, command in needed.items() if not live[role]]:
        yield problem("processes", f"live: {words}", f"start: {', '.join(absent)}")
    else:
        yield ok("processes", f"live: {words}")
    for each in found:
        if each["silent_s"] * 1000 >= SILENT_MS:
            words = f"{each['role']} {each['component']} has been silent for {duration(each['silent_s'])}"
            yield note("processes", words, "unless it was stopped, see its log; forgotten after an hour")
    unowned = settings.kafka.partitions - len(state.workers)
    if unowned > 0 and live["worker"]:
        yield note(
            "partitions", f"{unowned} of {settings.kafka.partitions} have never had a worker", "see the workers' logs"
        )
    servers = state.live_servers(now_ms)
    if servers and all(each.epoch < 0 for each in servers):
        words = "none has a version of the weights yet: requests are answered 503"
        yield note("servers", words, "headrace lag says what is missing")
    if unheld := state.unheld(now_ms, line):
        words = f"none holds the users of partitions {as_ranges(unheld)}: requests for them are answered 503"
        yield problem("servers", words, "start one whose serving.partitions has them")
    yield from short_of_files(servers)
    yield from short_of_recall(servers)
    yield clocks(behind_s)
    if lag:
        yield freshness(lag, now_ms)
        yield from lost(lag)


def short_of_files(servers: Sequence[ServerStatus]) -> Iterator[Finding]:
    """The servers that have nearly as many files and sockets open as they may."""
    for each in servers:
        if each.open_files > FULL_SHARE * each.most_files:
            words = f"{each.open_files} of at most {each.most_files} files and connections are open"
            yield problem("open files", f"server {each.component}: {words}", REMEDY)


def short_of_recall(servers: Sequence[ServerStatus]) -> Iterator[Finding]:
    """The servers whose search by lists finds less of the exact answers than `ServingConfig.search_recall`."""
    for each in servers:
        if each.is_recall_low:
            words = f"server {each.component} finds {each.recall or 0.0:.3f} of the exact answers' items"
            yield problem("search", f"{words}, less than its serving.search_recall", MORE_RECALL)


def clocks(behind_s: dict[str, list[float]]) -> Finding:
    """Whether the processes' clocks agree with this one's."""
    off = {name: min(times, key=abs) for name, times in behind_s.items()}
    wrong = {name: seconds for name, seconds in off.items() if abs(seconds) > SKEW_S}
    if not off:
        return note("clocks", f"no process reported within {LISTEN_S:g} s, so there is nothing to compare", "start one")
    if not wrong:
        return ok("clocks", f"{len(off)} processes within {max(map(abs, off.values())):.2f} s of this machine")
    words = ", ".join(f"{name} {abs(s):.1f} s {'behind' if s > 0 else 'ahead'}" for name, s in sorted(wrong.items()))
    return problem("clocks", words, "let the machines keep time by NTP: ages and freshness are measured by them")


def freshness(lag: dict[str, Any], now_ms: int) -> Finding:
    """The state of the whole loop, from the trainer's last message."""
    silent_s = (now_ms - lag["time_ms"]) / 1000
    if silent_s > STALE_S:
        return problem("freshness", f"the trainer last reported {duration(silent_s)} ago", "see the trainer's log")
    behind = {name: stage["lag_records"] for name, stage in lag["stages"].items() if stage.get("lag_records")}
    words = ", ".join(f"{name} {num:,}" for name, num in behind.items()) or "none"
    pace = lag["throughput"]
    if pace.get("catch_up_s", 0) is None:
        return problem(
            "freshness", f"records waiting: {words}; the trainer falls behind", "see docs/operations.md, Sizing"
        )
    return ok("freshness", f"records waiting: {words}")


def lost(lag: dict[str, Any]) -> Iterator[Finding]:
    """What retention or compaction removed before the present workers and trainer had read it."""
    if num := lag.get("num_gone"):
        words = f"{num:,} records of actions were removed before a worker read them"
        yield problem(
            "lost", words, "raise kafka.actions_retention_s and the topic's retention.ms; see the workers' logs"
        )
    if num := lag.get("num_lost"):
        words = f"{num:,} examples were removed before the trainer read them"
        yield problem("lost", words, "raise kafka.min_compaction_lag_s and the topic's own; see the trainer's log")


def dead_letters(settings: Settings, consumer: KafkaConsumer) -> Finding:
    """Why actions were refused, according to the newest dead letters."""
    topic = Topics.under(settings.kafka.prefix).dead_letters
    held = spans(consumer, topic)
    newest = {number: Span(max(span.first, span.end - NUM_LETTERS), span.end) for number, span in held.items()}
    num_all = sum(span.end - span.first for span in held.values())
    reasons = Counter(read_headers(record.headers).reason for record in read(consumer, topic, newest))
    if not reasons:
        return ok("dead letters", "none")
    words = f"{num_all:,}; of the newest {reasons.total():,}: " + ", ".join(
        f"{n:,} {r}" for r, n in reasons.most_common()
    )
    remedies = [REMEDIES[reason] for reason, _ in reasons.most_common() if reason in REMEDIES]
    return note("dead letters", words, remedies[0] if remedies else "headrace dead-letters shows them")
