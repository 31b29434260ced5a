"""The files in deploy/, against the options and metrics of the service."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from segformer.serving.options import ServeOptions

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))


def words(instruction: str) -> list[str]:
    """The list of an instruction in JSON form."""
    (found,) = re.findall(rf"^{instruction} (\[.*\])$", INSTRUCTIONS, re.MULTILINE)
    return list(yaml.safe_load(found))


def manifest(kind: str) -> Any:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def container() -> Any:
    (only,) = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    return only


def known_options(capsys: pytest.CaptureFixture[str]) -> set[str]:
    from segformer.cli import main

    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    return set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))


def test_the_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    given = [*words("ENTRYPOINT"), *container()["args"]]
    command = compose()["services"]["segformer"]["command"]
    (default,) = re.findall(r"\$\{SERVE:-(.*)\}", command)
    given += shlex.split(default)
    assert words("ENTRYPOINT")[:2] == ["segformer", "serve"]
    options = [word for word in given if word.startswith("--")]
    assert len(options) >= 6
    assert set(options) <= known_options(capsys)


def test_the_ports_are_the_same() -> None:
    entry = words("ENTRYPOINT")
    port = int(entry[entry.index("--port") + 1])
    assert port == ServeOptions().port
    assert re.search(rf"^EXPOSE {port}$", INSTRUCTIONS, re.MULTILINE)
    assert f"http://127.0.0.1:{port}/readyz" in INSTRUCTIONS
    (published,) = compose()["services"]["segformer"]["ports"]
    assert published.split(":")[-1] == str(port)
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = scrape["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"segformer:{port}"]}]
    (declared,) = container()["ports"]
    assert declared == {"name": "http", "containerPort": port}
    annotations = manifest("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)
    (service,) = manifest("Service")["spec"]["ports"]
    assert service["targetPort"] == "http"


def test_the_paths_and_the_metric_exist(live: Any) -> None:
    probes = [container()[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe")]
    for path in {probe["httpGet"]["path"] for probe in probes}:
        assert live.ask("GET", path).status == 200
    annotations = manifest("Deployment")["spec"]["template"]["metadata"]["annotations"]
    metrics = live.ask("GET", annotations["prometheus.io/path"]).body.decode()
    (scaled,) = manifest("HorizontalPodAutoscaler")["spec"]["metrics"]
    name = scaled["pods"]["metric"]["name"]
    assert re.search(rf"^{name} [0-9.]+$", metrics, re.MULTILINE)
    adapter = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = adapter["rules"]["custom"]
    assert rule["seriesQuery"].startswith(name + "{")
    assert rule["name"]["as"] == name
    assert re.match(rule["name"]["matches"], name)


def test_objects_refer_to_each_other() -> None:
    deployment = manifest("Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    target = manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # the autoscaler's
    pod = deployment["spec"]["template"]["spec"]
    mounted = {mount["name"] for mount in container()["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_requests_are_finished_before_the_service_is_killed() -> None:
    arguments = container()["args"]
    deadline = float(arguments[arguments.index("--deadline") + 1])
    assert (
        manifest("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        > deadline + 5
    )
    grace = compose()["services"]["segformer"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > ServeOptions().deadline


def test_nothing_runs_as_root_or_writes_elsewhere() -> None:
    (user,) = re.findall(r"^USER (\d+):(\d+)$", INSTRUCTIONS, re.MULTILINE)
    assert f"--uid {user[0]} " in INSTRUCTIONS
    context = manifest("Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
    assert context["runAsNonRoot"]
    assert container()["securityContext"]["readOnlyRootFilesystem"]
    service = compose()["services"]["segformer"]
    assert service["read_only"]
    writable = {mount["mountPath"] for mount in container()["volumeMounts"]}
    assert writable == {"/cache", "/tmp"}
    assert service["tmpfs"] == ["/tmp"]
    assert "cache:/cache" in service["volumes"]
    cached = re.findall(r"\b(?:HOME|HF_HOME|SEGFORMER_CACHE)=(\S+)", INSTRUCTIONS)
    assert len(cached) == 3
    assert all(path.startswith("/cache") for path in cached)


def test_what_is_copied_and_installed_exists() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", INSTRUCTIONS, re.MULTILINE)
        for word in line.split()
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", INSTRUCTIONS, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert compose()["services"]["segformer"]["build"]["args"].keys() == {"DEVICE"}
    assert "ARG DEVICE=cpu" in INSTRUCTIONS
