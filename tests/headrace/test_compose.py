"""Whatever docker-compose.yml, the Dockerfile, Prometheus and Grafana name has to exist in the code."""

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

from headrace.__main__ import app
from headrace.config import Settings, read_settings

ROOT = Path(__file__).resolve().parents[2]
# Found without importing the package: it wants another version of click than Faust does, and only its file matters.
_package = importlib.util.find_spec("check_jsonschema")
assert _package is not None
assert _package.origin is not None
SCHEMA = Path(_package.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
OURS = ("topics", "stream", "stream-2", "trainer", "server", "replay")


def specification() -> Any:
    schema = json.loads(SCHEMA.read_text())
    return jsonschema.validators.validator_for(schema)(schema)


def load(path: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    return content


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load("docker-compose.yml")


@pytest.mark.parametrize("path", ["docker-compose.yml", "ops/docker-compose.gpu.yml"])
def test_the_file_fits_the_compose_specification(path: str) -> None:
    specification().validate(load(path))


def test_a_wrong_file_does_not_fit_it(compose: dict[str, Any]) -> None:
    wrong = {**compose, "services": {**compose["services"], "trainer": {"comand": ["trainer"]}}}
    assert not specification().is_valid(wrong)


def test_docker_itself_accepts_it_where_its_client_is_present(tmp_path: Path) -> None:
    import subprocess

    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker compose client")
    for extra in ([], ["-f", "ops/docker-compose.gpu.yml"]):
        command = [docker, "compose", "-f", "docker-compose.yml", *extra, "--profile", "*", "config", "--quiet"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("service", OURS)
def test_every_command_of_ours_exists(service: str, compose: dict[str, Any]) -> None:
    room, *arguments = compose["services"][service]["command"]
    assert importlib.util.find_spec(f"{room}.__main__") is not None
    if room == "headrace":
        group = typer.main.get_command(app)
        assert arguments[0] in group.commands  # type: ignore[attr-defined]
        options = {name for parameter in group.commands[arguments[0]].params for name in parameter.opts}  # type: ignore[attr-defined]
        assert {argument for argument in arguments[1:] if argument.startswith("--")} <= options
    elif room == "stream":
        from stream.__main__ import _parser

        assert _parser().parse_args(arguments).command == "worker"
    else:
        assert arguments == []


@pytest.mark.parametrize("service", OURS)
def test_every_variable_of_ours_is_one_that_the_configuration_accepts(
    service: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**image_environment(), **compose["services"][service]["environment"]}
    for name, value in environment.items():
        assert isinstance(value, str), f"{name}: a container's environment holds strings"
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.kafka.bootstrap == "kafka:9092"
    assert settings.store.path == Path("/data/store")
    assert settings.trainer.checkpoint_dir == "/data/checkpoints"


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
        if name not in {"topics", "replay"}:
            assert "healthcheck" in service, name


def test_every_process_gets_the_time_that_it_takes_for_an_orderly_end(compose: dict[str, Any]) -> None:
    settings = Settings()
    longest_s = max(settings.stream.stop_timeout_s, settings.serving.drain_timeout_s)
    for name in OURS:
        grace = compose["services"][name]["stop_grace_period"]
        assert int(grace.removesuffix("s")) >= longest_s + 10, name


def test_the_servers_paths_exist() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "serving").glob("*.py"))
    for path in ("/healthz", "/readyz", "/metrics", "/version", "/recommend", "/rank"):
        assert f'"{path}"' in source


def test_state_that_must_outlive_a_container_is_in_named_volumes(compose: dict[str, Any]) -> None:
    for name, folder in {
        "kafka": "/var/lib/kafka/data",
        "stream": "/data",
        "stream-2": "/data",
        "trainer": "/data",
        "prometheus": "/prometheus",
        "grafana": "/var/lib/grafana",
    }.items():
        mounts = dict(reversed(mount.split(":")[:2]) for mount in compose["services"][name]["volumes"])
        assert mounts[folder] in compose["volumes"], name
    assert compose["services"]["kafka"]["environment"]["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"
    first, second = (compose["services"][name]["volumes"] for name in ("stream", "stream-2"))
    assert first != second, "two workers never share a folder of databases"


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
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}


def test_every_metric_on_the_dashboard_exists_in_the_code() -> None:
    dashboard = json.loads((ROOT / "ops/grafana/dashboards/headrace.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"headrace_[a-z0-9_]+", target["expr"])
    }
    known = metric_names()
    assert asked
    assert asked <= known, sorted(asked - known)


def metric_names() -> set[str]:
    """Every name that the processes expose, from their registries themselves."""
    from tests.headrace.registries import registries

    names: set[str] = set()
    for registry in registries():
        for family in registry.collect():
            kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
            names |= {family.name + ending for ending in kinds.get(family.type, ("",))}
    return names
