"""Everything that docker-compose.yml, the Dockerfile, Prometheus and Grafana name exists in the code."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from headrace.command import COMMANDS
from headrace.config import Settings, read_settings
from tests.headrace.registries import metric_names

ROOT = Path(__file__).resolve().parents[2]
# Located without importing the package: it needs a different version of click than Faust, and only its file matters.
_package = importlib.util.find_spec("check_jsonschema")
assert _package is not None
assert _package.origin is not None
SCHEMA = Path(_package.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
OURS = ("topics", "stream", "trainer", "server", "produce")


def specification() -> Any:
    schema = json.loads(SCHEMA.read_text())
    return jsonschema.validators.validator_for(schema)(schema)


def load(path: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    return content


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load("docker-compose.yml")


@pytest.mark.parametrize("path", ["docker-compose.yml", "ops/docker-compose.gpu.yml", "ops/docker-compose.shards.yml"])
def test_the_file_matches_the_compose_specification(path: str) -> None:
    specification().validate(load(path))


def test_a_wrong_file_does_not_match_it(compose: dict[str, Any]) -> None:
    wrong = {**compose, "services": {**compose["services"], "trainer": {"comand": ["trainer"]}}}
    assert not specification().is_valid(wrong)


def test_docker_itself_accepts_it_where_its_client_is_present(tmp_path: Path) -> None:
    import subprocess

    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker compose client")
    for extra in ([], ["-f", "ops/docker-compose.gpu.yml"], ["-f", "ops/docker-compose.shards.yml"]):
        command = [docker, "compose", "-f", "docker-compose.yml", *extra, "--profile", "*", "config", "--quiet"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("service", OURS)
def test_every_command_of_ours_exists(service: str, compose: dict[str, Any]) -> None:
    room, command, *arguments = compose["services"][service]["command"]
    assert room == "headrace"
    app = typer.Typer()
    app.command()(COMMANDS[command])
    options = {name for parameter in typer.main.get_command(app).params for name in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= options


@pytest.mark.parametrize("service", OURS)
def test_every_variable_of_ours_is_one_that_the_configuration_accepts(
    service: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**image_environment(), **compose["services"][service]["environment"]}
    for name, value in filled(environment, {}).items():
        assert isinstance(value, str), f"{name}: a container's environment holds strings"
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.kafka.bootstrap == "kafka:9092"
    assert settings.store.path == Path("/data/store")
    assert settings.trainer.checkpoint_dir == "/data/checkpoints"


VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def filled(values: dict[str, str], given: dict[str, str]) -> dict[str, str]:
    """The value of ``${NAME:-default}`` in Compose, with ``given`` as its environment."""
    return {
        key: VARIABLE.sub(lambda found: given.get(found[1], found[3] or ""), value) for key, value in values.items()
    }


def test_live_actions_are_accepted_by_default_and_ratings_on_request(compose: dict[str, Any]) -> None:
    environment = compose["services"]["stream"]["environment"]
    live = filled(environment, {})
    assert live["HEADRACE_ACTION__KINDS"].split(",") == list(Settings().action.kinds)
    assert float(live["HEADRACE_SEQUENCE__JOIN_WINDOW_S"]) == Settings().sequence.join_window_s
    lines = (ROOT / "ops" / "ratings.env").read_text().splitlines()
    ratings = filled(environment, dict(line.split("=", 1) for line in lines if line[0] != "#"))
    assert ratings["HEADRACE_ACTION__KINDS"] == "rate,like,love"
    assert ratings["HEADRACE_SEQUENCE__JOIN_WINDOW_S"] == "0"


def test_nothing_listens_beyond_this_machine_unless_requested(compose: dict[str, Any]) -> None:
    ports = {port for service in compose["services"].values() for port in service.get("ports", [])}
    assert ports
    for port in filled({each: each for each in ports}, {}).values():
        assert port.startswith("127.0.0.1:"), port
    broker = compose["services"]["kafka"]
    elsewhere = {"BROKER_ADDRESS": "192.0.2.7"}
    assert filled({"": broker["ports"][0]}, elsewhere)[""] == "192.0.2.7:29092:29092"
    assert "OUTSIDE://192.0.2.7:29092" in filled(broker["environment"], elsewhere)["KAFKA_ADVERTISED_LISTENERS"]


def test_grafana_starts_without_a_well_known_password(compose: dict[str, Any]) -> None:
    environment = compose["services"]["grafana"]["environment"]
    assert VARIABLE.fullmatch(environment["GF_SECURITY_ADMIN_PASSWORD"]).group(1, 2) == ("GRAFANA_PASSWORD", "?")  # type: ignore[union-attr]
    assert "GF_AUTH_ANONYMOUS_ENABLED" not in environment


def image_environment() -> dict[str, str]:
    text = (ROOT / "Dockerfile").read_text()
    return dict(re.findall(r"(HEADRACE_\w+)=(\S+)", text))


def test_the_gpu_variant_asks_for_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    service = load("ops/docker-compose.gpu.yml")["services"]["trainer"]
    for name, value in service["environment"].items():
        monkeypatch.setenv(name, value)
    assert read_settings().trainer.device == "cuda"
    assert list(service["build"]["args"]) == ["GPU"]
    assert "ARG GPU=0" in (ROOT / "Dockerfile").read_text()


def test_the_two_servers_of_the_shards_variant_hold_all_users_and_differ_in_nothing_else(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from serving.users.addresses import EVERY_INTERFACE
    from wire.holding import partitions_held

    monkeypatch.chdir(tmp_path)
    services = load("ops/docker-compose.shards.yml")["services"]
    first = {**compose["services"]["server"]["environment"], **services["server"]["environment"]}
    second = services["server-2"]["environment"]
    held = [partitions_held(each["HEADRACE_SERVING__PARTITIONS"], 4) for each in (first, second)]
    assert sorted([*held[0], *held[1]]) == [0, 1, 2, 3]
    assert {key: first[key] for key in second if "PARTITIONS" not in key} == {
        key: value for key, value in second.items() if "PARTITIONS" not in key
    }
    monkeypatch.setenv("HEADRACE_SERVING__PARTITIONS", second["HEADRACE_SERVING__PARTITIONS"])
    monkeypatch.setenv("HEADRACE_SERVING__HOST", second["HEADRACE_SERVING__HOST"])
    serving = read_settings().serving
    assert (serving.partitions, serving.address, serving.host in EVERY_INTERFACE) == ("2/2", "", True)


def test_every_process_has_a_health_check_on_a_port_that_it_listens_on(compose: dict[str, Any]) -> None:
    ports = {
        "stream": ("HEADRACE_STREAM__METRICS_PORT", "/metrics"),
        "trainer": ("HEADRACE_TRAINER__METRICS_PORT", "/metrics"),
        "server": ("HEADRACE_SERVING__PORT", "/healthz"),
    }
    for name, (variable, path) in ports.items():
        service = compose["services"][name]
        *command, url = service["healthcheck"]["test"]
        assert command == ["CMD", "python", "-m", "headrace.health"]
        assert url == f"http://127.0.0.1:{service['environment'][variable]}{path}"
    for name, service in compose["services"].items():
        if name not in {"topics", "produce"}:
            assert "healthcheck" in service, name


def test_every_process_gets_the_time_that_it_takes_for_an_orderly_end(compose: dict[str, Any]) -> None:
    settings = Settings()
    longest_s = max(settings.stream.stop_timeout_s, settings.serving.drain_timeout_s)
    for name in OURS:
        grace = compose["services"][name]["stop_grace_period"]
        assert int(grace.removesuffix("s")) >= longest_s + 10, name


def test_the_servers_paths_exist() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "serving").rglob("*.py"))
    for path in ("/healthz", "/readyz", "/metrics", "/version", "/recommend", "/rank"):
        assert f'"{path}"' in source


def test_state_that_must_outlive_a_container_is_in_named_volumes(compose: dict[str, Any]) -> None:
    for name, folder in {
        "kafka": "/var/lib/kafka/data",
        "trainer": "/data",
        "prometheus": "/prometheus",
        "grafana": "/var/lib/grafana",
    }.items():
        mounts = dict(reversed(mount.split(":")[:2]) for mount in compose["services"][name]["volumes"])
        assert mounts[folder] in compose["volumes"], name
    assert compose["services"]["kafka"]["environment"]["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"
    # An anonymous volume: each of several workers has its own, so two never share a folder of databases.
    assert compose["services"]["stream"]["volumes"] == ["/data"]


def test_files_that_are_mounted_or_copied_exist(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source


def test_the_image_holds_every_room_and_nothing_else() -> None:
    import tomllib

    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    dockerfile = (ROOT / "Dockerfile").read_text()
    rooms = {each for each in packages if "." not in each}
    assert rooms == set(re.findall(r"^COPY (\w+) \1$", dockerfile, flags=re.MULTILINE)) - {"schema"}
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in dockerfile.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert f"!{source}" in ignored, source


def test_the_image_holds_what_the_lock_file_names_and_no_test_tools() -> None:
    def pins(path: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / path).read_text(), flags=re.MULTILINE))

    run, everything = pins("constraints-run.txt"), pins("constraints.txt")
    assert run.items() <= everything.items()
    assert not run.keys() & {"pytest", "hypothesis", "ruff", "mypy", "schemathesis", "uv", "check-jsonschema"}
    import tomllib

    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[^a-z0-9-]", each.lower(), maxsplit=1)[0] for each in needed}
    assert names <= run.keys()


def test_every_alert_is_of_metrics_that_exist_and_is_seen_to_fire() -> None:
    (group,) = load("ops/alerts.yml")["groups"]
    known = metric_names()
    tested = (ROOT / "ops" / "alerts.test.yml").read_text()
    for rule in group["rules"]:
        asked = set(re.findall(r"headrace_[a-z0-9_]+", rule["expr"]))
        assert asked <= known, (rule["alert"], sorted(asked - known))
        assert re.search(rf'"{rule["alert"]}",.*exp_samples: \[{{value: [1-9]', tested), rule["alert"]
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_prometheus_itself_finds_nothing_wrong_with_the_alerts() -> None:
    import subprocess

    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool (Debian's package prometheus has it)")
    for command in (["check", "rules", "ops/alerts.yml"], ["test", "rules", "ops/alerts.test.yml"]):
        done = subprocess.run([promtool, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_broker_is_the_one_that_the_tests_run_on(compose: dict[str, Any]) -> None:
    version = re.search(r"<kafka.version>(.+)</kafka.version>", (ROOT / "tests" / "pom.xml").read_text())
    assert version
    assert compose["services"]["kafka"]["image"] == f"apache/kafka:{version[1]}"


def test_prometheus_scrapes_the_ports_that_the_processes_listen_on(compose: dict[str, Any]) -> None:
    listening = {
        "stream": compose["services"]["stream"]["environment"]["HEADRACE_STREAM__METRICS_PORT"],
        "trainer": compose["services"]["trainer"]["environment"]["HEADRACE_TRAINER__METRICS_PORT"],
        "server": compose["services"]["server"]["environment"]["HEADRACE_SERVING__PORT"],
    }
    jobs = {job["job_name"]: job for job in load("ops/prometheus.yml")["scrape_configs"]}
    assert jobs.keys() == listening.keys()
    for name, port in listening.items():
        if "static_configs" in jobs[name]:
            assert jobs[name]["static_configs"] == [{"targets": [f"{name}:{port}"]}]
        else:
            (found,) = jobs[name]["dns_sd_configs"]
            assert set(found["names"]) <= set(compose["services"])
            assert str(found["port"]) == port


def test_every_container_behind_a_name_is_scraped(compose: dict[str, Any]) -> None:
    (server,) = (job for job in load("ops/prometheus.yml")["scrape_configs"] if job["job_name"] == "server")
    (name,) = server["dns_sd_configs"][0]["names"]
    second = load("ops/docker-compose.shards.yml")["services"]["server-2"]
    assert name in second["networks"]["default"]["aliases"]


def test_jobs_have_the_names_that_the_alerts_select_on_kubernetes_too() -> None:
    selected = set(re.findall(r'job=~?"([a-z|]+)"', (ROOT / "ops" / "alerts.yml").read_text()))
    jobs = {name for each in selected for name in each.split("|")}
    (scraped,) = load("ops/prometheus-kubernetes.yml")["scrape_configs"]
    renamed = [each for each in scraped["relabel_configs"] if each.get("target_label") == "job"]
    label = "__meta_kubernetes_pod_label_app_kubernetes_io_component"
    assert [each["source_labels"] for each in renamed] == [[label]] * len(renamed)
    found = set()
    for path in ("worker.yaml", "trainer.yaml", "server.yaml"):
        manifests = yaml.safe_load_all((ROOT / "ops" / "kubernetes" / path).read_text())
        pods = [each["spec"]["template"]["metadata"] for each in manifests if "template" in each.get("spec", {})]
        (pod,) = (each for each in pods if "prometheus.io/scrape" in each.get("annotations", {}))
        job = component = pod["labels"]["app.kubernetes.io/component"]
        for rule in renamed:
            job = rule.get("replacement", component) if re.fullmatch(rule.get("regex", ".*"), component) else job
        found.add(job)
    assert found == jobs


def test_grafana_finds_its_data_source_and_its_dashboard(compose: dict[str, Any]) -> None:
    (source,) = load("ops/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = load("ops/grafana/provisioning/dashboards/headrace.yml")["providers"]
    mounts = dict(reversed(mount.split(":")[:2]) for mount in compose["services"]["grafana"]["volumes"])
    folder = ROOT / mounts[provider["options"]["path"]]
    assert (folder / "headrace.json").is_file()
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == provider["options"]["path"] + "/headrace.json"
    dashboard = json.loads((folder / "headrace.json").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"] if panel["type"] != "row"} == {source["uid"]}


def test_every_metric_on_the_dashboard_exists_in_the_code() -> None:
    asked = {name for query in queries() for name in re.findall(r"(?:headrace|process)_[a-z0-9_]+", query)}
    known = metric_names()
    assert asked
    assert asked <= known, sorted(asked - known)


def test_every_metric_is_where_an_operator_looks() -> None:
    """On the dashboard, or behind an alert; a metric that is neither is one that nobody uses."""
    asked = " ".join([*queries(), (ROOT / "ops" / "alerts.yml").read_text()])
    used = set(re.findall(r"(?:headrace|process|python)_[a-z0-9_]+", asked))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in metric_names() if name.startswith("headrace_")}
    unused = {name for name in families if not {name, f"{name}_bucket", f"{name}_count", f"{name}_sum"} & used}
    assert not unused, sorted(unused)


def test_prometheus_itself_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    import subprocess

    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool (Debian's package prometheus has it)")
    rules = [{"record": f"query{number}", "expr": query} for number, query in enumerate(queries())]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    command = [promtool, "check", "rules", "--lint=none", str(tmp_path / "queries.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def queries() -> list[str]:
    """Every PromQL expression of the dashboard, annotations included."""
    dashboard = json.loads((ROOT / "ops/grafana/dashboards/headrace.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return asked + [each["expr"] for each in dashboard["annotations"]["list"]]
