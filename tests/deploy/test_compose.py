"""docker-compose.yml, the Dockerfile and what they mount: read by what will read them, and held against each other."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tools import DEPLOY, PROJECT, compose_loader, http_server, passes, program, run

ROLES = ["ingest", "processors", "gateway"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file as `docker compose` understands it: merged, with what is not set filled in, checked against itself."""
    return json.loads(passes(*compose_loader()))


def test_three_of_each_role_run_the_command_of_that_name(compose: dict[str, Any]) -> None:
    for role in ROLES:
        service = compose["services"][role]
        assert service["command"] == [role]
        assert service["deploy"]["replicas"] == 3


def test_the_commands_of_roles_and_jobs_are_commands_of_eshaar(compose: dict[str, Any]) -> None:
    cli = "\n".join(file.read_text() for file in (PROJECT / "src/cli").glob("*.rs"))
    for name, service in compose["services"].items():
        if service["image"].startswith("eshaar:"):
            for word in service["command"]:
                assert re.search(rf"^    {word.capitalize()}\b", cli, re.MULTILINE), f"{name}: no command {word}"


def test_roles_start_once_tables_and_topics_are_there(compose: dict[str, Any]) -> None:
    for role in ROLES:
        needs = compose["services"][role]["depends_on"]
        for job in ["store-apply", "topics-apply"]:
            assert needs[job]["condition"] == "service_completed_successfully"


def test_a_role_is_given_the_time_that_a_drain_may_take(compose: dict[str, Any]) -> None:
    for role in ROLES:
        assert seconds(compose["services"][role]["stop_grace_period"]) >= 35


def test_everything_has_limits_and_what_runs_on_has_a_health_check(compose: dict[str, Any]) -> None:
    dockerfile = (PROJECT / "Dockerfile").read_text()
    for name, service in compose["services"].items():
        limits = service["deploy"]["resources"]["limits"]
        assert limits["cpus"] and limits["memory"], name
        assert service["restart"] in ("unless-stopped", "on-failure:3"), name
        if service["image"].startswith("eshaar:"):
            assert "HEALTHCHECK" in dockerfile
        else:
            assert service["healthcheck"]["test"], name


def test_only_nginx_is_reached_from_outside_this_machine(compose: dict[str, Any]) -> None:
    open_to_all = {
        name
        for name, service in compose["services"].items()
        for port in service.get("ports", [])
        if port.get("host_ip") != "127.0.0.1"
    }
    assert open_to_all == {"nginx"}
    assert compose["networks"]["engines"]["internal"] is True


def test_every_secret_is_made_by_make_secrets_and_in_no_environment(compose: dict[str, Any], tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "make-secrets", tmp_path)
    passes(tmp_path / "make-secrets")
    made = {path.name: path.read_bytes() for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == compose["secrets"].keys()
    assert all(len(content) >= 32 for content in made.values())
    passes(tmp_path / "make-secrets")
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "secrets").iterdir()}, "made again"
    for name, service in compose["services"].items():
        for key in service.get("environment", {}):
            assert not re.search(r"PASSWORD$|SECRET", key), f"{name}: {key}"


def test_every_file_that_is_mounted_is_there(compose: dict[str, Any]) -> None:
    mounted = [Path(config["file"]) for config in compose["configs"].values()]
    for service in compose["services"].values():
        mounted += [Path(volume["source"]) for volume in service.get("volumes", []) if volume["type"] == "bind"]
    assert len(mounted) >= 5
    for path in mounted:
        assert path.exists(), path


def test_the_configuration_has_only_keys_that_exist_and_hosts_that_are_services(compose: dict[str, Any]) -> None:
    # A key without a default is there as a comment: "# slot = 0".
    documented = re.sub(r"^# (\w+ = )", r"\1", (PROJECT / "eshaar.default.toml").read_text(), flags=re.MULTILINE)
    defaults = tomllib.loads(documented)
    ours = tomllib.loads((DEPLOY / "eshaar.toml").read_text())
    unknown = [key for key in keys(ours) if key not in set(keys(defaults))]
    assert not unknown
    assert ours["engines"] == "distributed"
    hosts = re.findall(r"\"(?:http://)?([a-z0-9]+):\d+", (DEPLOY / "eshaar.toml").read_text())
    assert set(hosts) == {"kafka", "scylla", "redis", "registry"} <= compose["services"].keys()
    for file in re.findall(r"/run/secrets/(\w+)", (DEPLOY / "eshaar.toml").read_text()):
        for role in ROLES:
            assert file in [secret["source"] for secret in compose["services"][role]["secrets"]]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    passes(program("hadolint"), PROJECT / "Dockerfile")


def test_the_image_is_built_with_the_compiler_of_the_project_and_run_without_root() -> None:
    toolchain = tomllib.loads((PROJECT / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
    dockerfile = (PROJECT / "Dockerfile").read_text()
    assert f"FROM rust:{toolchain}-" in dockerfile
    assert re.search(r"^USER [1-9]\d+$", dockerfile, re.MULTILINE)


def test_the_builder_is_sent_every_crate_and_nothing_private() -> None:
    sent = [line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    members = tomllib.loads((PROJECT / "Cargo.toml").read_text())["workspace"]["members"]
    assert {member.split("/")[0] for member in members} <= set(sent)
    assert {"Cargo.toml", "Cargo.lock", "src", "eshaar.default.toml"} <= set(sent)
    assert all((PROJECT / path).exists() for path in sent)
    assert not {"deploy", "data", "target", ".git", ".engines"} & set(sent)


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_of_the_image_tells_ready_from_not_ready(status: int, healthy: bool) -> None:
    seen: list[dict[str, str]] = []
    with http_server(status, seen) as port:
        assert (run(*health_check(port)).returncode == 0) is healthy
    assert [request["path"] for request in seen] == ["/health/ready"]


def test_the_health_check_of_the_image_fails_when_nothing_listens() -> None:
    with http_server(200) as port:
        pass
    assert run(*health_check(port)).returncode != 0


def health_check(port: int) -> list[str]:
    """The command of the Dockerfile's HEALTHCHECK, on another port."""
    line = re.search(r"^HEALTHCHECK .*\\\n    CMD (\[.*\])$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE)
    assert line
    return [part.replace("/8080", f"/{port}") for part in json.loads(line[1])]


def keys(table: dict[str, Any], prefix: str = "") -> list[str]:
    """Every key of a TOML document, with those of its tables."""
    return [
        key
        for name, value in table.items()
        for key in (keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name])
    ]


def seconds(duration: str) -> int:
    """A duration as compose writes it: 40s, 1m0s."""
    minutes, rest = re.fullmatch(r"(?:(\d+)m)?(\d+)s", duration).groups()
    return int(minutes or 0) * 60 + int(rest)
