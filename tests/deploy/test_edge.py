"""deploy/nginx/nginx.conf in a real nginx, before stand-ins for the roles."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copy

import pytest

from tools import DEPLOY, http_server, passes, program

Seen = list[dict[str, str]]


@dataclass
class Edge:
    """A running nginx, and what arrived behind it."""

    http: int
    https: int
    ingest: Seen
    gateway: Seen
    log: Path

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        """A request over TLS."""
        trusting = ssl._create_unverified_context()  # the certificate is made for this test
        connection = http.client.HTTPSConnection("127.0.0.1", self.https, timeout=10, context=trusting)
        connection.request("GET", path, headers=headers)
        return connection.getresponse()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    dir = tmp_path_factory.mktemp("nginx")
    copy(DEPLOY / "make-secrets", dir)
    passes(dir / "make-secrets")
    ingest: Seen = []
    gateway: Seen = []
    with http_server(200, ingest) as ingest_port, http_server(200, gateway) as gateway_port:
        edge = Edge(free_port(), free_port(), ingest, gateway, dir / "access.log")
        config = here(dir, edge, ingest_port, gateway_port)
        nginx = program("nginx")
        passes(nginx, "-t", "-e", "stderr", "-c", config)
        process = subprocess.Popen([nginx, "-e", "stderr", "-c", config, "-g", "daemon off;"])
        try:
            wait_until_listening(edge.https)
            yield edge
        finally:
            process.terminate()
            assert process.wait(timeout=10) == 0


def here(dir: Path, edge: Edge, ingest_port: int, gateway_port: int) -> Path:
    """The configuration with the names, ports and paths of a container replaced by those of this machine, no more."""
    text = (DEPLOY / "nginx/nginx.conf").read_text()
    for old, new in {
        "server ingest:8080": f"server 127.0.0.1:{ingest_port}",
        "server gateway:8080": f"server 127.0.0.1:{gateway_port}",
        "listen 8080": f"listen 127.0.0.1:{edge.http}",
        "listen 8443": f"listen 127.0.0.1:{edge.https}",
        "/run/secrets": f"{dir}/secrets",
        "/tmp/nginx.pid": f"{dir}/nginx.pid",
        "/dev/stdout": str(edge.log),
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    config = dir / "nginx.conf"
    config.write_text(text)
    return config


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until_listening(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"nginx does not listen on {port}")


def test_plain_http_is_sent_to_https(edge: Edge) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", edge.http, timeout=10)
    connection.request("GET", "/v1/messages?limit=1", headers={"Host": "api.example"})
    answer = connection.getresponse()
    assert answer.status == 308
    assert answer.headers["Location"] == "https://api.example:8443/v1/messages?limit=1"


def test_the_api_goes_to_ingest_with_what_it_needs_to_know_of_the_client(edge: Edge) -> None:
    answer = edge.get("/v1/messages", Host="api.example", **{"X-Forwarded-For": "9.9.9.9"})
    assert answer.status == 200
    request = edge.ingest[-1]
    assert (request["path"], request["host"], request["x-forwarded-proto"]) == ("/v1/messages", "api.example", "https")
    assert request["x-forwarded-for"] == "127.0.0.1", "a client must not be able to say who it is"
    for header in ["Strict-Transport-Security", "X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy"]:
        assert answer.headers[header], header
    assert not re.search(r"\d", answer.headers["Server"]), "no version"


def test_a_websocket_goes_to_a_gateway_as_an_upgrade(edge: Edge) -> None:
    edge.get("/v1/ws", Upgrade="websocket", Connection="Upgrade")
    request = edge.gateway[-1]
    assert (request["path"], request["upgrade"], request["connection"]) == ("/v1/ws", "websocket", "upgrade")


def test_an_access_token_in_the_query_is_not_logged(edge: Edge) -> None:
    edge.get("/v1/ws?access_token=s3cret", Upgrade="websocket", Connection="Upgrade")
    assert edge.gateway[-1]["path"] == "/v1/ws?access_token=s3cret"
    log = edge.log.read_text()
    assert "/v1/ws" in log
    assert "s3cret" not in log


@pytest.mark.parametrize("path", ["/metrics", "/health/details"])
def test_what_is_for_operators_is_not_for_the_world(edge: Edge, path: str) -> None:
    before = len(edge.ingest)
    assert edge.get(path).status == 404
    assert len(edge.ingest) == before


@pytest.mark.parametrize(("version", "accepted"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_older_than_1_2_is_refused(edge: Edge, version: str, accepted: bool) -> None:
    context = ssl._create_unverified_context()
    # OpenSSL of our own side must not be what refuses.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    try:
        with socket.create_connection(("127.0.0.1", edge.https), timeout=10) as plain, context.wrap_socket(plain):
            assert accepted
    except (ssl.SSLError, ConnectionError):
        assert not accepted
