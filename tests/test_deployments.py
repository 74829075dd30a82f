"""Every file of deployments/ is what Ray Serve, our settings, KubeRay and Docker take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from ppd_serve.launch import ENVIRONMENT, IMPORT_PATH, read_config
from ppd_serve.settings import Settings

PLACE = Path(__file__).parents[1] / "deployments"
CONFIGS = {file.stem: file for file in sorted(PLACE.glob("*.yaml"))}
SERVICES = {file.stem: file for file in sorted((PLACE / "kuberay").glob("*.yaml"))}


def settings(name: str) -> Settings:
    return Settings.load(read_config(CONFIGS[name]))


def test_there_is_one_for_every_set_up() -> None:
    assert set(CONFIGS) == {"studio", "sd15", "sdxl", "stable-cascade"}
    assert set(SERVICES) == set(CONFIGS) - {"studio"}


@pytest.mark.parametrize("name", CONFIGS)
def test_ray_and_our_settings_take_it(name: str) -> None:
    config = yaml.safe_load(CONFIGS[name].read_text())
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == IMPORT_PATH
    Settings.model_validate(application.args)  # nothing that we do not know
    assert set(config) <= set(ServeDeploySchema.model_fields)  # Ray lets pass what it does not know
    assert settings(name).port == config["http_options"]["port"] == 8000


@pytest.mark.parametrize("name", SERVICES)
def test_models_run_on_the_gpus_they_reserve(name: str) -> None:
    chosen = settings(name)
    for part in (chosen.encoder, chosen.diffuser):
        assert part.device == "cuda" and part.gpus > 0 and part.dtype != "float32"
    for part in (chosen.gateway, chosen.index):
        assert part.gpus == 0
    assert chosen.release == Path.cwd() / "releases" / name


@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_default_is_open_without_keys(name: str) -> None:
    assert settings(name).host == ("127.0.0.1" if name == "studio" else "0.0.0.0")
    assert not settings(name).allow_unauthenticated and not settings(name).api_keys


# Kubernetes. The fields are those of KubeRay's definition of ray.io/v1 RayService.


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(SERVICES[request.param].read_text())
    return found


def pods(service: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (found,) = group["template"]["spec"]["containers"]
    return dict(found)


def test_a_service_serves_the_same_file(service: dict[str, Any]) -> None:
    name = service["metadata"]["name"].removeprefix("ppd-")
    inside = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert inside == yaml.safe_load(CONFIGS[name].read_text())
    assert inside["http_options"]["host"] == "0.0.0.0"  # a pod's loopback is nobody else's


def test_a_service_has_what_kuberay_needs(service: dict[str, Any]) -> None:
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert set(service["spec"]) == {"serveConfigV2", "rayClusterConfig"}
    constraints = (PLACE.parent / "constraints.txt").read_text().splitlines()
    assert f"ray=={service['spec']['rayClusterConfig']['rayVersion']}" in constraints
    head, *workers = pods(service)
    ports = {port["name"]: port["containerPort"] for port in container(head)["ports"]}
    assert ports == {"gcs": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}
    for worker in workers:
        assert worker["groupName"]
        assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    for group in pods(service):
        assert isinstance(group["rayStartParams"], dict)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        one = container(group)
        told = {each["name"]: each["value"] for each in one["env"]}
        assert told.items() <= ENVIRONMENT.items()
        assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" in told
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in one["volumeMounts"]} == volumes
        assert one["workingDir"] in {mount["mountPath"] for mount in one["volumeMounts"]}
        assert one["resources"]["limits"] == one["resources"]["requests"]


def test_a_cluster_has_room_for_every_part(service: dict[str, Any]) -> None:
    name = service["metadata"]["name"].removeprefix("ppd-")
    chosen = settings(name)
    parts = [chosen.gateway, chosen.index, chosen.encoder, chosen.diffuser]
    head, *workers = pods(service)
    limits = [container(head)["resources"]["limits"]]
    for worker in workers:
        limits += [container(worker)["resources"]["limits"]] * worker["replicas"]
    assert sum(part.cpus for part in parts) <= sum(int(limit["cpu"]) for limit in limits)
    assert sum(part.gpus for part in parts) == sum(
        limit.get("nvidia.com/gpu", 0) for limit in limits
    )


def test_the_image_is_of_this_version() -> None:
    lines = (PLACE / "Dockerfile").read_text().splitlines()
    (torch,) = [line for line in lines if "torch==" in line and line.startswith("RUN")]
    pin = torch.partition("torch==")[2]
    assert f"torch=={pin}" in (PLACE.parent / "constraints.txt").read_text().splitlines()
    kept = (PLACE / "Dockerfile.dockerignore").read_text()
    for line in lines:
        if line.startswith("COPY"):
            assert all(f"!{name}" in kept for name in line.split()[1:-1])


def test_volumes_belong_to_the_server() -> None:
    """Docker gives a fresh one the owner of the image's directory there, or root."""
    mounted = set(re.findall(r"-v ppd-data:(\S+)", (PLACE / "README.md").read_text()))
    (made,) = re.findall(r"install -d -o ppd (.+)", (PLACE / "Dockerfile").read_text())
    assert mounted == {"/data", "/srv/ppd/data"} and mounted <= set(made.split())
