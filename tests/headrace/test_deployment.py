"""Kubernetes manifests and the systemd unit match their schemas, and name only what exists here."""

import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from headrace.command import COMMANDS
from headrace.config import Settings, read_settings
from wire.holding import partitions_held

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "ops" / "kubernetes"
SHARDS = ROOT / "ops" / "kubernetes-shards"
UNIT = ROOT / "ops" / "systemd" / "headrace@.service"
KUBERNETES = "1.31"
WORKLOADS = {"topics": "topics", "worker": "worker", "trainer": "train", "server": "serve"}


def manifests() -> list[dict[str, Any]]:
    names = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    return [each for name in names for each in yaml.safe_load_all((FOLDER / name).read_text())]


def shares() -> list[dict[str, Any]]:
    """The Deployments of servers of some users."""
    found = list(yaml.safe_load_all((SHARDS / "servers.yaml").read_text()))
    assert {each["kind"] for each in found} == {"Deployment"}
    return found


def container(name: str) -> dict[str, Any]:
    (workload,) = [
        each for each in manifests() if each["metadata"]["name"] == name and "template" in each.get("spec", {})
    ]
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    monkeypatch.chdir(tmp_path)
    return read_settings(FOLDER / "headrace.toml")


@pytest.mark.parametrize(
    "manifest", [*manifests(), *shares()], ids=lambda each: f"{each['kind']} {each['metadata']['name']}"
)
def test_each_manifest_matches_its_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_misspelt_key_does_not_match() -> None:
    (deployment,) = [each for each in manifests() if each["kind"] == "Deployment"]
    deployment["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


@pytest.mark.parametrize(("folder", "more"), [(FOLDER, 0), (SHARDS, 1)], ids=["whole", "shares"])
def test_kustomize_itself_builds_them_where_it_is_present(folder: Path, more: int) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == len(manifests()) + more + 1, "the configuration's map beside them"
    names = {each["metadata"]["name"] for each in built if each["kind"] == "Deployment"}
    assert names == ({"server"} if folder == FOLDER else {"server-1", "server-2"})


def test_the_shares_together_hold_all_users_and_are_reached_by_their_pods_addresses(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[frozenset[int]] = []
    for each in shares():
        (found,) = each["spec"]["template"]["spec"]["containers"]
        names = [entry["name"] for entry in found["env"]]
        assert names.index("POD_IP") < names.index("HEADRACE_SERVING__ADDRESS"), "$(…) names what is before it"
        told = {entry["name"]: entry.get("value") for entry in found["env"]}
        monkeypatch.setenv("HEADRACE_SERVING__PARTITIONS", told["HEADRACE_SERVING__PARTITIONS"])
        monkeypatch.setenv(
            "HEADRACE_SERVING__ADDRESS", told["HEADRACE_SERVING__ADDRESS"].replace("$(POD_IP)", "10.1.2.3")
        )
        mine = read_settings(FOLDER / "headrace.toml").serving
        assert mine.address == f"http://10.1.2.3:{settings.serving.port}"
        held.append(partitions_held(mine.partitions, settings.kafka.partitions))
        assert each["spec"]["replicas"] >= 2, "the loss of one pod is no loss of users"
    assert frozenset().union(*held) == frozenset(range(settings.kafka.partitions))
    assert sum(map(len, held)) == settings.kafka.partitions, "nobody is held twice"


def test_each_share_is_the_server_but_for_its_share() -> None:
    (whole,) = [each for each in manifests() if each["kind"] == "Deployment"]
    (service,) = [each for each in manifests() if each["kind"] == "Service" and each["metadata"]["name"] == "server"]
    selectors = [each["spec"]["selector"]["matchLabels"] for each in shares()]
    assert selectors[0] != selectors[1], "else each Deployment would count the other's pods"
    for each in shares():
        template = each["spec"]["template"]
        assert each["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        (found,) = template["spec"]["containers"]
        found["env"] = [entry for entry in found["env"] if entry["name"] == "HEADRACE_CONFIG"]
        assert template["spec"] == whole["spec"]["template"]["spec"]
        assert each["spec"]["strategy"] == whole["spec"]["strategy"]


def test_the_shares_replace_the_server_of_all_users() -> None:
    built = yaml.safe_load((SHARDS / "kustomization.yaml").read_text())
    assert built["resources"] == ["../kubernetes", "servers.yaml"]
    assert built["images"] == yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["images"]
    (patch,) = built["patches"]
    (whole,) = [each for each in manifests() if each["kind"] == "Deployment"]
    assert re.fullmatch(patch["target"]["name"], whole["metadata"]["name"])
    assert not any(re.fullmatch(patch["target"]["name"], each["metadata"]["name"]) for each in shares())
    removal = yaml.safe_load(patch["patch"])
    assert (removal["$patch"], removal["kind"], removal["metadata"]["name"]) == ("delete", "Deployment", "server")


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_pod_runs_a_command_of_ours_unprivileged(name: str, settings: Settings) -> None:
    found = container(name)
    assert found["args"][:2] == ["headrace", WORKLOADS[name]]
    assert WORKLOADS[name] in COMMANDS
    assert found["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert found["image"] == "headrace"
    ports = {
        "worker": settings.stream.metrics_port, "trainer": settings.trainer.metrics_port,
        "server": settings.serving.port,
    }  # fmt: skip
    assert [port["containerPort"] for port in found.get("ports", [])] == [
        ports[each] for each in (name,) if name in ports
    ]
    paths = {probe["httpGet"]["path"] for key, probe in found.items() if key.endswith("Probe")}
    assert paths <= {"/metrics", "/healthz", "/readyz"}


def test_processes_listen_where_the_cluster_reaches_them(settings: Settings) -> None:
    assert {settings.stream.metrics_host, settings.trainer.metrics_host, settings.serving.host} == {"0.0.0.0"}
    assert str(settings.store.path).startswith("/data/")
    assert settings.trainer.checkpoint_dir.startswith("/data/")
    for name in ("worker", "trainer"):
        assert {"name": "data", "mountPath": "/data"} in container(name)["volumeMounts"]


def test_an_orderly_end_has_the_time_that_it_takes() -> None:
    longest_s = max(Settings().stream.stop_timeout_s, Settings().serving.drain_timeout_s)
    for name in ("worker", "trainer", "server"):
        (workload,) = [
            each for each in manifests() if each["metadata"]["name"] == name and "template" in each.get("spec", {})
        ]
        assert workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= longest_s + 10
    assert float(unit()["Service"]["TimeoutStopSec"]) >= longest_s + 10


def unit() -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser


def test_the_unit_runs_each_process_by_its_command() -> None:
    assert unit()["Service"]["ExecStart"].endswith("/headrace %i")
    named = re.findall(r"headrace@(\w+)", UNIT.read_text())
    assert {"worker", "train", "serve"} == set(named) & set(COMMANDS)


def test_the_unit_sets_what_the_configuration_accepts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in re.findall(r"^Environment=(\w+)=(\S+)", UNIT.read_text(), flags=re.MULTILINE):
        if name != "HEADRACE_CONFIG":
            monkeypatch.setenv(name, value)
    settings = read_settings()
    assert str(settings.store.path).startswith("/var/lib/headrace/")
    assert settings.trainer.checkpoint_dir.startswith("/var/lib/headrace/")


def test_systemd_itself_accepts_the_unit_where_it_is_present(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze")
    here = UNIT.read_text().replace("/opt/headrace/.venv/bin/headrace", shutil.which("true") or "/bin/true")
    (tmp_path / UNIT.name).write_text(here)
    done = subprocess.run([analyze, "verify", tmp_path / UNIT.name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / UNIT.name).write_text(here.replace("Restart=always", "Restart=allways"))
    done = subprocess.run([analyze, "verify", tmp_path / UNIT.name], capture_output=True, text=True, check=False)
    assert "allways" in done.stderr
