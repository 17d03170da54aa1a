"""One TOML file and the environment over it; what is wrong is refused in one line that says what would be right."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.config import ConfigError, read_settings
from headrace.environment import CLIENT, unset_settings
from stream.app import build_app
from wire.config import MAX_TOPIC, KafkaConfig
from wire.topics import topics_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("HEADRACE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text(text)
    return path


def test_without_a_file_every_key_has_a_default() -> None:
    settings = read_settings()
    assert settings.kafka.bootstrap == "localhost:9092"
    assert settings.model.kinds == settings.action.kinds


def test_the_file_in_the_current_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path, "[kafka]\npartitions = 7\n")
    assert read_settings().kafka.partitions == 7


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "[kafka]\npartitions = 7\nprefix = 'a'\n")
    monkeypatch.setenv("HEADRACE_KAFKA__PARTITIONS", "3")
    settings = read_settings(path)
    assert (settings.kafka.partitions, settings.kafka.prefix) == (3, "a")


def test_a_file_can_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[kafka]\nprefix = 'other'\n")
    monkeypatch.setenv("HEADRACE_CONFIG", str(other))
    assert read_settings().kafka.prefix == "other"


@pytest.mark.parametrize("text", ["rate,like,love", "rate, like ,love", '["rate", "like", "love"]'])
def test_a_list_in_the_environment_is_written_with_commas_or_as_json(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_ACTION__KINDS", text)
    settings = read_settings()
    assert settings.action.kinds == ("rate", "like", "love")
    assert settings.model.kinds == ("rate", "like", "love")


def test_client_options_pass_verbatim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "[kafka.client]\nsecurity_protocol = 'SSL'\nmetadata_max_age_ms = 3\n")
    monkeypatch.setenv("HEADRACE_KAFKA__CLIENT__CLIENT_ID", "0012")
    monkeypatch.setenv("HEADRACE_KAFKA__CLIENT__REQUEST_TIMEOUT_MS", "5000")
    client = dict(read_settings(path).kafka.client)
    assert client == {
        "security_protocol": "SSL",
        "metadata_max_age_ms": 3,
        "client_id": "0012",
        "request_timeout_ms": 5000,
    }


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[kafak]\nprefix = 'a'\n", ["[kafak]", "did you mean kafka?"]),
        ("[kafka]\npartition = 4\n", ["[kafka] partition: there is no such key", "did you mean partitions?"]),
        ("[trainer]\non_hole = 'skip'\n", ["[trainer] on_hole: there is no such key any more; it is on_gap now"]),
        ("[stream]\nstart_timeout_s = 3\n", ["[stream] start_timeout_s: there is no such key any more; remove it"]),
        ("[kafka]\npartitions = 'many'\n", ["[kafka] partitions", "expected a whole number", "'many'"]),
        ("[kafka]\npartitions = 0\n", ["kafka.partitions: expected a whole number, 1 to 100000, got 0"]),
        ("[trainer]\ndropout = 1.5\n", ["trainer.dropout: expected", "got 1.5"]),
        ("kafka = 5\n", ["kafka", "expected a table of keys", "got a number"]),
        ("[kafka\n", ["expected TOML"]),
        (
            "[action]\nkinds = ['a']\n[model]\nkinds = ['b']\n",
            ["model.kinds: expected ('a',)", "leave model.kinds out"],
        ),
        (
            "[action]\npropensity = true\n[trainer]\nshards = 2\n",
            ["trainer.shards: expected 1 with action.propensity", "got 2"],
        ),
        (
            "[model]\npredict_value = true\n[trainer]\nshards = 2\n",
            ["trainer.shards: expected 1 with model.predict_value", "got 2"],
        ),
        ("[sequence]\nsegment_len = 100000\n", ["segment_len: expected a whole number, 1 to 4096", "16 is usual"]),
        ("[stream]\nmax_wait_s = inf\n", ["[stream] max_wait_s", "expected a finite number, got inf"]),
        ("[kafka]\nbootstrap = 'localhost'\n", ["kafka.bootstrap: expected host:port", "got 'localhost'"]),
        ("[store]\npath = ''\n", ["store.path: expected a path, got ''", "leave it out to get the default"]),
        ("[serving]\nhost = ''\n", ["serving.host: expected an address", "0.0.0.0"]),
        ("partitions = 3\n", ["partitions: expected every key in its section", "write it under [kafka]"]),
        ("[kafka.client]\nsecurity_protocl = 'SSL'\n", ["kafka.client.security_protocl", "mean security_protocol?"]),
        ("[kafka.client]\nsasl_password = 'x'\n", ["kafka.client.sasl_password", "mean sasl_plain_password?"]),
        ("[kafka.client]\nsasl_username = 'x'\n", ["kafka.client.sasl_username", "mean sasl_plain_username?"]),
        ("[kafka.client]\n'sasl.password' = 'x'\n", ["mean sasl_plain_password?"]),
        ("[kafka.client]\npassword = 'x'\n", ["kafka.client.password", "mean sasl_plain_password?"]),
        ("[kafka.client]\nssl_key_password = 'x'\n", ["mean ssl_password?"]),
        ("[kafka.client]\n'ssl.ca.location' = 'x'\n", ["mean ssl_cafile?"]),
        (
            "[kafka.client]\nsecurity_protocol = 'SSL'\nssl_password = 'x'\n",
            ["kafka.client.ssl_certfile: expected the certificate whose key ssl_password opens", "sasl_plain_password"],
        ),
        ("[kafka.client]\nsecurity_protocol = 'TLS'\n", ["kafka.client.security_protocol: expected one of", "'TLS'"]),
        ("[kafka.client]\nsecurity_protocol = 'SASL_SSL'\n", ["kafka.client.sasl_mechanism", "got None; add it"]),
        ("[kafka.client]\nssl_cafile = '/no.pem'\n", ["kafka.client.ssl_cafile: expected a file", "'/no.pem'"]),
        (
            "[kafka.client]\nreconnect_backoff_ms = 5\n",
            ["kafka.client.reconnect_backoff_ms: expected an option that every"],
        ),
        ("[kafka.client]\nsocks5_proxy = 'x'\n", ["kafka.client.socks5_proxy: expected an option that every Kafka"]),
        ("[kafka.client]\nclient_id = 5\n", ["kafka.client.client_id: expected a string", "got 5"]),
        ("[kafka.client]\nrequest_timeout_ms = 1.5\n", ["kafka.client.request_timeout_ms: expected a whole number"]),
        ("[kafka.client]\nssl_check_hostname = 1\n", ["kafka.client.ssl_check_hostname: expected true or false"]),
        (
            "[kafka.client]\nssl_check_hostname = false\n",
            ["kafka.client.security_protocol: expected SASL_SSL or SSL", "nothing would use"],
        ),
        (
            "[kafka.client]\nsasl_mechanism = 'PLAIN'\n",
            ["kafka.client.security_protocol: expected SASL_SSL or SASL_PL"],
        ),
        (
            "[kafka.client]\nsecurity_protocol='SASL_SSL'\nsasl_mechanism='PLAIN'\nsasl_plain_username='x'\n",
            ["kafka.client.sasl_plain_password: expected text, for PLAIN"],
        ),
        ("[Kafka]\npartitions = true\n", ["[Kafka]: there is no such section; write it as [kafka]"]),
        ("[KAFKA]\npartitions = 3\n[kafka]\npartitions = 4\n", ["[KAFKA]: there is no such section"]),
        (
            "[kafka]\nbootstrap = 'http://broker:9092'\n",
            ["kafka.bootstrap: expected host:port", "'http://broker:9092'"],
        ),
        ("[kafka]\nbootstrap = '::1:9092'\n", ["kafka.bootstrap: expected host:port"]),
        ("[kafka]\nbootstrap = 'one:9092;two:9092'\n", ["kafka.bootstrap: expected host:port"]),
        ("[kafka]\nbootstrap = 'broker:\u0669'\n", ["kafka.bootstrap: expected host:port"]),
        ("[action]\nkinds = ['click ']\n", ["action.kinds: expected names without spaces around them"]),
        ("[store]\npath = '~/state'\n", ["store.path: expected a path, in which nothing is expanded, got '~/state'"]),
        ("[trainer]\ncheckpoint_dir = '$HOME/c'\n", ["trainer.checkpoint_dir: expected a path, in which nothing is"]),
        (
            "[model]\nnum_time_buckets = 128\n",
            ["model.num_time_buckets: expected at most 123", "(time_unit_ms = 1000), got 128; lower it"],
        ),
        ("[kafka]\ncompression = 'brotli'\n", ["kafka.compression: expected one of ('none', 'gzip'", "got 'brotli'"]),
    ],
)
def test_a_wrong_key_or_value_is_refused_in_one_line(text: str, parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(write(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    assert "headrace.toml" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("HEADRACE_KAFKA__PARTITIONS", "many", ["HEADRACE_KAFKA__PARTITIONS", "expected a whole number"]),
        ("HEADRACE_KAFKA__BOOTSRAP", "x", ["HEADRACE_KAFKA__BOOTSRAP", "did you mean bootstrap?"]),
        ("HEADRACE_KAFAK__BOOTSTRAP", "x", ["HEADRACE_KAFAK__BOOTSTRAP", "did you mean kafka?"]),
        ("HEADRACE_KAFKA_BOOTSTRAP", "x:1", ["write HEADRACE_KAFKA__BOOTSTRAP, with two underscores"]),
        ("HEADRACE_TRAINER", "x", ["HEADRACE_TRAINER names no key", "write HEADRACE_TRAINER__KEY"]),
        ("HEADRACE_MODEL__MAX_CONTEXT", "9", ["HEADRACE_MODEL__MAX_CONTEXT: model.max_context: expected 200"]),
        ("HEADRACE_KAFKA__CLIENT__REQUEST_TIMEOUT_MS", "abc", ["HEADRACE_KAFKA__CLIENT__REQUEST_TIMEOUT_MS: kafka.cl"]),
        ("HEADRACE_STORE__PATH", "", ["store.path: expected a path, got ''"]),
        ("HEADRACE_TRAINER__DEVICE", "gpu", ["HEADRACE_TRAINER__DEVICE", "trainer.device: expected one of"]),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        read_settings()
    for part in parts:
        assert part in str(caught.value)


def test_a_key_that_the_environment_has_in_two_spellings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__PARTITIONS", "4")
    monkeypatch.setenv("headrace_kafka__partitions", "5")
    with pytest.raises(ConfigError, match="HEADRACE_KAFKA__PARTITIONS and headrace_kafka__partitions are the same key"):
        read_settings()


@pytest.mark.parametrize("address", ["[::1]:9092", "a-b.example:9092, 10.0.0.1:19092", " broker_1:9092 "])
def test_addresses_of_brokers_are_names_or_numbers(address: str, tmp_path: Path) -> None:
    assert read_settings(write(tmp_path, f"[kafka]\nbootstrap = '{address}'\n")).kafka.bootstrap == address


@pytest.mark.parametrize("kept", [(), CLIENT])
def test_a_deployments_settings_can_be_taken_out_of_the_environment(
    kept: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["HEADRACE_KAFKA__CLIENT__CLIENT_ID", "HEADRACE_SERVING", "headrace_kafka__prefix"]
    others = ["HEADRACE_CONFIG", "HEADRACE_SERVING_PORT", "HEADRACE_TANSU"]
    for name in (*settings, *others):
        monkeypatch.setenv(name, "x")
    left = settings[:1] if kept else []
    assert set(unset_settings(*kept)) == set(settings) - set(left)
    assert [name for name in (*settings, *others) if name in os.environ] == left + others


def test_a_password_of_digits_stays_text(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "PLAIN", "SASL_PLAIN_USERNAME": "007",
               "SASL_PLAIN_PASSWORD": "12345", "SSL_CHECK_HOSTNAME": "false"}  # fmt: skip
    for name, value in options.items():
        monkeypatch.setenv(f"HEADRACE_KAFKA__CLIENT__{name}", value)
    client = read_settings().kafka.client
    assert (client["sasl_plain_username"], client["sasl_plain_password"]) == ("007", "12345")
    assert client["ssl_check_hostname"] is False


SASL = "security_protocol = 'SASL_SSL'\nsasl_mechanism = 'PLAIN'\nsasl_plain_username = 'u'\n"


@pytest.mark.parametrize(
    "text",
    [
        f"[kafka.client]\n{SASL}sasl_plain_passwort = 'hunter2'\n",
        f"[kafka.client]\n{SASL}sasl_password = 'hunter2'\n",
        f"[kafka.client]\n{SASL}sasl_plain_password = 87654321\n",
        f"[kafka.client]\n{SASL}sasl_plain_password = ['hunter2']\n",
        f'[kafka.client]\n{SASL}sasl_plain_password = "hunter2\\u0000"\n',
        "[kafka.client]\nssl_keyfile_password = 'hunter2'\n",
        "[kafka]\nclients = { sasl_plain_password = 'hunter2' }\n",
        "[kafka]\nclient = [{ sasl_plain_password = 'hunter2' }]\n",
        "[kafka]\nsasl_plain_password = 'hunter2'\n",
        "[serving]\ntoken = 'hunter2'\n",
        "[kafka_client]\nsasl_plain_password = 'hunter2'\n",
        "kafka = 'sasl_plain_password=hunter2'\n",
        "sasl_plain_password = 'hunter2'\n",
        "[kafka]\nbootstrap = 'u:hunter2@localhost:9092'\n",
        "[kafka]\nbootstrap = 'a:9092,u:hunter2,x@localhost:9092'\n",
        "[kafka]\nbootstrap = ['u:hunter2@localhost:9092']\n",
        "[serving]\npeers = ['http://u:hunter2@localhost:8080']\n",
        "[serving]\naddress = 'http://u:hunter2@localhost:8080'\n",
        b"[kafka.client]\nsasl_plain_password = 'hunter2\xe9'\n",
        "[kafka.client]\nsasl_plain_password = hunter2\n",
        "[kafka.client]\nsasl_plain_password = 'hunter2\n",
        "[kafka.client]\nsasl_plain_password = 'hunter2'\nsasl_plain_password = 'hunter2'\n",
    ],
)
def test_no_secret_is_in_an_error(text: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "headrace.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    said = refusal_of(path)
    assert said
    assert "hunter2" not in said
    assert "87654321" not in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KAFKA__CLIENT__SASL_PASSWORD", "hunter2"),
        ("KAFKA__CLIENT__SASL_PLAIN_PASSWORD", "hunter2\x07"),
        ("KAFKA__CLIENT", '{"sasl_plain_password": "hunter2"'),
        ("KAFKA__CLIENT", '{"sasl_password": "hunter2"}'),
        ("KAFKA__CLIENT", '["hunter2"]'),
        ("KAFKA__SASL_PLAIN_PASSWORD", "hunter2"),
        ("KAFKA_CLIENT__SASL_PLAIN_PASSWORD", "hunter2"),
        ("KAFKA", '{"client": {"sasl_plain_password": "hunter2"}}'),
        ("KAFKA__BOOTSTRAP", "sasl://u:hunter2@localhost:9092"),
    ],
)
def test_no_secret_of_the_environment_is_in_an_error(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"HEADRACE_{name}", value)
    with pytest.raises(ConfigError) as refused:
        read_settings()
    assert "hunter2" not in str(refused.value)


def test_no_password_is_in_the_text_of_the_settings(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, f"[kafka.client]\n{SASL}sasl_plain_password = 'hunter2'\n"))
    assert settings.kafka.client["sasl_plain_password"] == "hunter2"
    assert "hunter2" not in repr(settings)


def test_variables_that_kubernetes_sets_for_a_service_are_not_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_SERVING_PORT", "tcp://10.0.0.1:8080")
    assert read_settings().serving.port == 8080


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[kafka]\nprefix = "a"\n'.encode("utf-16"), "wrong.toml: expected UTF-8, got UTF-16; save it as UTF-8"),
        (
            '[trainer]\nmodel_id = "modèle"\n'.encode("latin-1"),
            r"wrong.toml:2: expected UTF-8, got the byte b'\xe8'",
        ),
        (b'[kafka]\nprefix = "a\0"\n', "wrong.toml: expected TOML, got Illegal character"),
        (b"a = " + b"[" * 5000, "wrong.toml: expected TOML, got"),
        (b"\x1f\x8b\0\0\xff", "wrong.toml:1: expected UTF-8"),
    ],
)
def test_a_file_in_another_encoding_is_refused_in_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "wrong.toml")
    assert said in str(caught.value)
    assert str(caught.value).count("wrong.toml") == 1
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_bytes(b"\xef\xbb\xbf[kafka]\r\nprefix = 'a'\r\n")
    assert read_settings().kafka.prefix == "a"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[action]\nkinds = 5\n", "[action] kinds: expected a list, got 5"),
        ("[action]\nfeatures = true\n", "[action] features: expected a list, got True"),
        ("[sequence]\nmax_context = inf\n", "[sequence] max_context: expected a "),
        ("[sequence]\nmax_context = 4294967296\n", "sequence.max_context: expected a whole number, 1 to 1000000"),
        ("[sequence]\nmax_context = [1]\n", "[sequence] max_context: expected a whole number, got [1]"),
        ("[kafka]\npartitions = true\n", "kafka.partitions: expected a number, got True"),
        ("[trainer]\ndense_lr = false\n", "trainer.dense_lr: expected a number, got False"),
        ("[kafka]\npartitions = 9223372036854775807\n", "kafka.partitions: expected a whole number, 1 to 100000"),
        ("[kafka]\nprefix = 'zoë'\n", "kafka.prefix: expected 1 to 200 of A-Z, a-z, 0-9"),
        (f"[kafka]\nprefix = '{'a' * 201}'\n", "kafka.prefix: expected 1 to 200 of"),
        ("[trainer]\nnum_threads = 100000\n", "trainer.num_threads: expected a whole number, 0 to 1024, got 100000"),
        ("[serving]\nnum_threads = 100000\n", "serving.num_threads: expected a whole number, 1 to 1024, got 100000"),
        ("[serving]\nnum_workers = 100000\n", "serving.num_workers: expected a whole number, 1 to 1024, got 100000"),
        ("[model]\ntemperature = 1e-40\n", "model.temperature: expected 0 or at least 1.2e-38"),
        ("[stream]\nsession_timeout_s = 1e9\n", "stream.session_timeout_s: expected a number, above 0 to 2000000"),
        ("[stream]\nmax_outbox = 99999999999999999\n", "stream.max_outbox: expected at most 9007199254740992"),
        ("[trainer]\npublish_every_s = 1e300\n", "trainer.publish_every_s: expected at most 1e+09, got 1e+300"),
        ("[trainer]\nevict_after_days = 1e30\n", "trainer.evict_after_days: expected at most 100000"),
        ("[trainer]\nadam_eps = 1e300\n", "trainer.adam_eps: expected at most 3.4e+38"),
        ('[store]\npath = "a\\u0000b"\n', "store.path: expected at most 4000 characters, none of them a control"),
        ('[stream]\ncomponent = "a\\nb"\n', "stream.component: expected at most 4000 characters, none of them"),
        ("[serving]\nhost = 'a..b'\n", "serving.host: expected a host name or an address, got 'a..b'"),
        ("[serving]\nhost = 'a b'\n", "serving.host: expected a host name or an address, got 'a b'"),
        ("[serving]\nhost = 'localhost:8080'\n", "serving.host: expected a host name or an address"),
        ("[serving]\nhost = '[::1]'\n", "serving.host: expected a host name or an address, got '[::1]'"),
        ("[serving]\nhost = ':::1'\n", "serving.host: expected a host name or an address, got ':::1'"),
        ("[serving]\nhost = '-a'\n", "serving.host: expected a host name or an address, got '-a'"),
        ("[serving]\nhost = '127.0.0.256'\n", "serving.host: expected a host name or an address"),
        ("[trainer]\nmetrics_host = 'http://a'\n", "trainer.metrics_host: expected a host name or an address"),
        ("[stream]\nmetrics_host = 'a/b'\n", "stream.metrics_host: expected a host name or an address"),
        ("[serving]\naddress = 'http://a b:80'\n", "serving.address: expected http://HOST:PORT, or nothing"),
        ("[serving]\naddress = 'http://a:65536'\n", "serving.address: expected http://HOST:PORT, or nothing"),
        ("[serving]\npeers = ['http://a:0']\n", "serving.peers: expected a list of http://HOST:PORT"),
        ("[kafka]\nbootstrap = 'a..b:9092'\n", "kafka.bootstrap: expected host:port"),
        ("[kafka]\nbootstrap = '[zz]:9092'\n", "kafka.bootstrap: expected host:port"),
        ("[kafka]\nbootstrap = 'a:9092,'\n", "kafka.bootstrap: expected host:port"),
        ("[kafka]\nbootstrap = '10.0.0.999:9092'\n", "kafka.bootstrap: expected host:port"),
        ("[store]\npath = ' data'\n", "store.path: expected text without spaces around it, got ' data'; remove them"),
        ("[trainer]\ntables_folder = ' '\n", "trainer.tables_folder: expected text without spaces around it"),
        ("[serving]\ntokens_file = 'a '\n", "serving.tokens_file: expected text without spaces around it"),
        ("[serving]\nname = ' '\n", "serving.name: expected text without spaces around it"),
        ("[stream]\ngroup = ' a'\n", "stream.group: expected text without spaces around it"),
        ("[stream]\ncomponent = '   '\n", "stream.component: expected text without spaces around it"),
        ("[trainer]\nmodel_id = 'a '\n", "trainer.model_id: expected text without spaces around it"),
        ("[kafka.client]\nclient_id = 'a '\n", "kafka.client.client_id: expected text without spaces around it"),
        ("[kafka.client]\nclient_id = ''\n", "kafka.client.client_id: expected a string that is not empty"),
        ('[kafka.client]\nclient_id = "a\\u0000"\n', "kafka.client.client_id: expected at most 4000 characters, none"),
        ('[kafka]\nprefix = "a\\n"\n', "kafka.prefix: expected 1 to 200 of"),
        ('[serving]\npin = "3/17\\n"\n', "serving.pin: expected EPOCH/NUMBER"),
        ('[serving]\npin = "\u0663/17"\n', "serving.pin: expected EPOCH/NUMBER"),
        (
            f"[kafka]\nprefix = '{'a' * 200}'\nline = '{'b' * 40}'\n",
            "kafka.line: expected at most 33 characters behind this kafka.prefix",
        ),
        (
            "[trainer]\nfeedback = 'wait'\nfeedback_window_s = 86400\n",
            "trainer.feedback_window_s: expected at most 43200 with feedback = 'wait', half of",
        ),
        ("[stream]\nmetrics_host = ''\n", "stream.metrics_host: expected a host name or an address, got ''"),
    ],
)
def test_what_no_key_can_hold_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(write(tmp_path, text))
    assert said in str(caught.value)


NAMES = ("localhost", "broker_1", "a-b.example.", "zoë.example", "10.0.0.1", "::1", "fe80::1%eth0", "0123456789ab")


@pytest.mark.parametrize("host", NAMES)
def test_what_a_machine_may_be_called_is_a_host(host: str, tmp_path: Path) -> None:
    place = f"[{host}]" if ":" in host else host
    text = f"[serving]\nhost = '{host}'\naddress = 'http://{place}:80'\npeers = ['http://{place}']\n"
    settings = read_settings(write(tmp_path, f"{text}[kafka]\nbootstrap = '{place}:9092, {place}:9093'\n"))
    assert (settings.serving.host, settings.serving.peers) == (host, (f"http://{place}",))


def test_names_and_paths_may_have_spaces_and_any_letters_and_passwords_anything(tmp_path: Path) -> None:
    path = tmp_path / "a {b} zoë"
    text = f"[store]\npath = '{path}'\n[serving]\nname = 'server zoë 1'\n[kafka.client]\nsasl_mechanism = 'PLAIN'\n"
    text += "security_protocol = 'SASL_PLAINTEXT'\nsasl_plain_username = ' u '\nsasl_plain_password = ' p '\n"
    settings = read_settings(write(tmp_path, text))
    assert (settings.store.path, settings.serving.name) == (path, "server zoë 1")
    assert settings.kafka.client["sasl_plain_password"] == " p "
    router: Any = None
    app = build_app(settings.kafka, settings.stream, router, path)
    assert Path(app.conf.datadir) == path


def test_the_longest_topic_is_the_one_that_bounds_the_line() -> None:
    kafka = KafkaConfig(prefix="a" * 200, line="b" * 33)
    assert max(len(each.name) for each in topics_of(kafka)) == MAX_TOPIC


def test_a_long_wait_for_feedback_is_taken_where_the_topic_keeps_what_waits(tmp_path: Path) -> None:
    text = "[trainer]\nfeedback_window_s = 604800\n{}[kafka]\nmin_compaction_lag_s = {}\n"
    assert not refusal_of(write(tmp_path, text.format("feedback = 'wait'\n", 1_209_600)))
    assert "give kafka.min_compaction_lag_s 1209600" in refusal_of(
        write(tmp_path, text.format("feedback = 'wait'\n", 86_400))
    )
    assert not refusal_of(write(tmp_path, text.format("", 86_400)))  # nothing waits


def refusal_of(path: Path) -> str:
    """The error for a file; empty if it is accepted."""
    try:
        read_settings(path)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("section", ["kafka", "trainer", "serving", "stream", "model", "action", "sequence", "store"])
def test_a_long_value_makes_no_long_line(section: str, tmp_path: Path) -> None:
    names = [field.name for field in dataclasses.fields(getattr(read_settings(), section))]
    for name in names:
        for value in ("x" * 5_000, ["x" * 5_000] * 40):
            said = refusal_of(write(tmp_path, f"[{section}]\n{name} = {json.dumps(value)}\n"))
            assert len(said) < 600, said


NO_NUMBERS = ("nan", "inf", "-inf", "1e-320", "1e308", "-1e308", "1" + "0" * 39, "{ click = nan }", "[nan]")


@pytest.mark.parametrize("section", ["kafka", "trainer", "serving", "stream", "model", "action", "sequence", "store"])
def test_no_key_takes_a_number_that_32_bits_do_not_hold(section: str, tmp_path: Path) -> None:
    names = [field.name for field in dataclasses.fields(getattr(read_settings(), section))]
    for name in names:
        for value in NO_NUMBERS:
            assert refusal_of(write(tmp_path, f"[{section}]\n{name} = {value}\n")), f"{section}.{name} = {value}"


@pytest.mark.parametrize("path", ["a\0b", "x" * 5_000])
def test_an_impossible_path_is_one_line(path: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot read it: .*; name another with --config"):
        read_settings(path)


def test_a_named_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot read it"):
        read_settings(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    "command",
    [
        ["headrace", "topics", "--config", "wrong.toml"],
        ["stream", "worker", "--config", "wrong.toml"],
        ["trainer", "--config", "wrong.toml"],
        ["serving", "--config", "wrong.toml"],
    ],
    ids=lambda command: command[0],
)
def test_every_front_door_ends_with_one_line_and_status_2(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "wrong.toml").write_text("[kafka]\npartitions = 'many'\n")
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip() == "headrace: wrong.toml: [kafka] partitions: expected a whole number, got 'many'"


def test_the_example_file_holds_the_defaults() -> None:
    import re

    text = (ROOT / "headrace.example.toml").read_text()
    shown = re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE)
    import tomllib

    from headrace.config import Settings

    defaults = Settings()
    for section, entries in tomllib.loads(shown).items():
        for key, value in entries.items():
            if (section, key) == ("kafka", "client"):
                continue
            expected = getattr(getattr(defaults, section), key)
            given = tuple(value) if isinstance(value, list) else value
            assert given == (str(expected) if isinstance(expected, Path) else expected), f"{section}.{key}"


def test_the_page_of_the_configuration_names_every_key_its_default_and_its_limits() -> None:
    import json
    import re

    from headrace.config import Settings
    from headrace.unusual import LIMITS
    from wire.checks import Number

    page, defaults = (ROOT / "docs" / "configuration.md").read_text(), Settings()
    sections = dict(re.findall(r"^## \[(\w+)\]\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL))
    assert sections.keys() == Settings.model_fields.keys()
    for section, text in sections.items():
        rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.+?) \| .+ \|$", text, flags=re.MULTILINE)
        owner = getattr(defaults, section)
        assert [key for key, _, _ in rows] == [each.name for each in dataclasses.fields(owner)], section
        for key, default, must_be in rows:
            value = getattr(owner, key)
            shown = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            assert json.loads(default) == shown, f"{section}.{key}"
            limit = LIMITS[section].get(key)
            if isinstance(limit, Number):
                usual = f"; as a rule {limit.usual_words}" if limit.usual_words else ""
                assert must_be == limit._expected() + usual, f"{section}.{key}"


def test_values_in_another_unit_are_allowed_and_doubted(tmp_path: Path) -> None:
    from headrace.unusual import unusual

    path = write(
        tmp_path,
        "[kafka]\nactions_retention_s = 7\n[action]\nmin_timestamp_ms = 631152000\n"
        "[trainer]\npublish_every_s = 1250\nevict_after_days = 86400\n"
        "[serving]\ncache_bytes = 256\nguard_ne_rise = 25\n",
    )
    found = dict(unusual(read_settings(path)))
    assert found == {
        "kafka.actions_retention_s: expected 3600 or more seconds as a rule, got 7":
            "write 25200 if hours are meant, 604800 if days are meant",
        "action.min_timestamp_ms: expected 100000000000 or more milliseconds as a rule, got 631152000":
            "write 631152000000 if seconds are meant",
        "trainer.publish_every_s: expected 0.02 to 300 seconds as a rule, got 1250":
            "write 1.25 if milliseconds are meant",
        "trainer.evict_after_days: expected 0.001 to 3650 days as a rule, got 86400":
            "write 3600 if hours are meant, 1 if seconds are meant",
        "serving.cache_bytes: expected 1000000 or more bytes as a rule, got 256":
            "write 256000000 if megabytes are meant, 256000000000 if gigabytes are meant",
        "serving.guard_ne_rise: expected 0.001 to 10 as a rule, got 25": "correct it, unless it is meant",
    }  # fmt: skip


def test_whatever_has_usual_bounds_is_doubted_a_thousandfold_away_and_not_as_it_comes() -> None:
    from headrace.config import Settings
    from headrace.unusual import LIMITS, unusual
    from wire.checks import Number

    defaults = Settings()
    assert unusual(defaults) == []
    num_bounded = 0
    for section, limits in LIMITS.items():
        for key, limit in limits.items():
            value = getattr(getattr(defaults, section), key)
            if isinstance(limit, Number) and limit.usual_words and value:
                num_bounded += 1
                assert limit.is_unusual(value * 1000) or limit.is_unusual(value / 1000), f"{section}.{key}"
                assert not limit.is_unusual(0)
    assert num_bounded > 30


# Keys in seconds whose large values have a use, or that Kafka's own clients bound.
HARMLESS = {
    "max_future_s",
    "join_window_s",
    "feedback_window_s",
    "guard_patience_s",
    "guard_new_line_s",
    "freshness_objective_s",
}


def test_every_key_with_a_unit_has_usual_bounds_or_a_use_for_any_value() -> None:
    from headrace.unusual import LIMITS
    from wire.checks import Number

    for section, limits in LIMITS.items():
        for key, limit in limits.items():
            if isinstance(limit, Number) and key.endswith(("_s", "_days")) and not limit.usual_words:
                assert key in HARMLESS, f"{section}.{key}: give it usual bounds, or say here that any value has a use"


@pytest.mark.parametrize("command", ["worker", "train", "serve"])
def test_a_process_says_at_its_start_which_values_are_unusual(command: str, tmp_path: Path) -> None:
    path = write(tmp_path, '[trainer]\npublish_every_s = 1250\n[kafka]\nbootstrap = "127.0.0.1:1"\n')
    arguments = [sys.executable, "-m", "headrace", command, "--config", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        told = list(itertools.takewhile(lambda line: "broker" not in line, process.stderr))
        process.kill()
    [doubt] = [line for line in told if "publish_every_s" in line]
    assert "expected 0.02 to 300 seconds as a rule, got 1250; write 1.25 if milliseconds are meant" in doubt
