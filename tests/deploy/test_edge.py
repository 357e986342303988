"""deploy/nginx/nginx.conf in a real nginx, before stand-ins for the roles."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import subprocess
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copy

import pytest

from tools import DEPLOY, PROJECT, http_server, passes, program

Seen = list[dict[str, str]]


@dataclass
class Edge:
    """A running nginx, and what arrived behind it."""

    http: int
    https: int
    ingest: Seen
    gateway: Seen
    log: Path
    errors: Path

    def logs(self) -> str:
        """Everything that nginx has written."""
        return self.log.read_text() + self.errors.read_text()

    def get(self, path: str, **headers: str) -> http.client.HTTPResponse:
        """A request over TLS."""
        trusting = ssl._create_unverified_context()  # the certificate is made for this test
        connection = http.client.HTTPSConnection("127.0.0.1", self.https, timeout=10, context=trusting)
        connection.request("GET", path, headers=headers)
        return connection.getresponse()

    def send(self, method: str, path: str, announced: int, sent: int) -> http.client.HTTPResponse | None:
        """A request that announces so many bytes, and sends so many. `None`: no answer came within a second."""
        trusting = ssl._create_unverified_context()
        patience = 60 if sent else 1
        connection = http.client.HTTPSConnection("127.0.0.1", self.https, timeout=patience, context=trusting)
        connection.putrequest(method, path)
        connection.putheader("Content-Length", str(announced))
        connection.putheader("Content-Type", "application/x-ndjson")
        connection.endheaders()
        try:
            for _ in range(sent >> 20):
                connection.send(b"x" * (1 << 20))
            connection.send(b"x" * (sent & ((1 << 20) - 1)))
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            pass  # it was refused before it was read
        try:
            return connection.getresponse()
        except TimeoutError:
            return None


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    dir = tmp_path_factory.mktemp("nginx")
    ingest: Seen = []
    gateway: Seen = []
    with http_server(200, ingest) as ingest_port, http_server(200, gateway) as gateway_port:
        yield from running(dir, ingest_port, gateway_port, ingest, gateway)


def running(
    dir: Path, ingest_port: int, gateway_port: int, ingest: Seen | None = None, gateway: Seen | None = None
) -> Iterator[Edge]:
    copy(DEPLOY / "make-secrets", dir)
    passes(dir / "make-secrets")
    edge = Edge(free_port(), free_port(), ingest or [], gateway or [], dir / "access.log", dir / "error.log")
    if ingest is not None and gateway is not None:
        edge.ingest, edge.gateway = ingest, gateway
    config = here(dir, edge, ingest_port, gateway_port)
    nginx = program("nginx")
    passes(nginx, "-t", "-e", "stderr", "-c", config)
    process = subprocess.Popen([nginx, "-e", edge.errors, "-c", config, "-g", "daemon off;"])
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
        "/dev/stderr": str(edge.errors),
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


SECRET = "s3cret"
# What clients may do with a token, rightly or wrongly.
WITH_TOKEN = [
    f"/v1/ws?access_token={SECRET}",
    f"/v1/ws?x=1&access_token={SECRET}",
    f"/v1/ws?access%5Ftoken={SECRET}",
    f"/v1/ws?a%63cess_t%6Fken={SECRET}",
    f"/v1/ws?ACCESS_TOKEN={SECRET}",
    f"/v1/ws/?access_token={SECRET}",
    f"//v1/ws?access_token={SECRET}",
    f"/v1/ws%3Faccess_token={SECRET}",
    f"/v1/ws%3Faccess_token%3D{SECRET}",
    f"/v1/messages?access_token={SECRET}",
    f"/v1/messages/bulk?access_token={SECRET}",
    f"/v1/audiences/a?access_token={SECRET}",
    f"/v1/broadcasts?access_token={SECRET}",
    f"/console?token={SECRET}",
    f"/metrics?access_token={SECRET}",
]


@pytest.mark.parametrize("path", WITH_TOKEN)
def test_a_token_in_an_address_is_in_no_log_and_in_no_redirect(edge: Edge, path: str) -> None:
    edge.get(path, Upgrade="websocket", Connection="Upgrade")
    connection = http.client.HTTPConnection("127.0.0.1", edge.http, timeout=10)
    connection.request("GET", path, headers={"Host": "api.example"})
    answer = connection.getresponse()
    assert answer.status == 308 and answer.headers["Location"].startswith("https://api.example:8443/")
    assert SECRET not in str(answer.headers) + answer.read().decode()
    assert SECRET not in edge.logs()


def test_a_token_in_the_query_of_a_websocket_still_arrives(edge: Edge) -> None:
    edge.get(f"/v1/ws?access_token={SECRET}", Upgrade="websocket", Connection="Upgrade")
    assert edge.gateway[-1]["path"] == f"/v1/ws?access_token={SECRET}"
    assert edge.gateway[-1]["upgrade"] == "websocket"
    assert '"path":"/v1/ws"' in edge.log.read_text()


def test_a_token_in_a_subprotocol_arrives_and_is_in_no_log(edge: Edge) -> None:
    offered = f"eshaar.v1.json, eshaar.token.{SECRET}"
    edge.get("/v1/ws", Upgrade="websocket", Connection="Upgrade", **{"Sec-WebSocket-Protocol": offered})
    assert edge.gateway[-1]["sec-websocket-protocol"] == offered
    assert SECRET not in edge.logs()


@pytest.mark.parametrize("path", WITH_TOKEN)
def test_a_token_is_in_no_log_either_when_nothing_answers(broken: Edge, path: str) -> None:
    offered = {"Sec-WebSocket-Protocol": f"eshaar.v1.json, eshaar.token.{SECRET}"}
    for headers in [{}, offered, {"Authorization": f"Bearer {SECRET}"}]:
        answer = broken.get(path, Upgrade="websocket", Connection="Upgrade", **headers)
        assert answer.status in (400, 404, 502, 503)
        assert answer.headers["Content-Type"] == "application/problem+json"
    assert SECRET not in broken.logs()


def test_what_does_not_answer_is_logged_and_answered_as_a_problem(broken: Edge) -> None:
    for path in ["/v1/messages", "/v1/ws"]:
        answer = broken.get(path)
        problem = json.loads(answer.read())
        assert (answer.status, problem["status"], answer.headers["Retry-After"]) == (502, 502, "1")
        assert answer.headers["Content-Type"] == "application/problem+json" and problem["code"] == "outcome_unknown"
        assert answer.headers["Strict-Transport-Security"]
        assert f"GET {path}" in broken.errors.read_text()


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """nginx before nothing."""
    yield from running(tmp_path_factory.mktemp("broken"), free_port(), free_port())


# What the API takes, by the constants of its code: path, method, bytes.
def limits() -> list[tuple[str, str, int]]:
    defaults = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", (PROJECT / "eshaar.default.toml").read_text(), flags=re.M))
    body = defaults["ingest"]["body_limit_bytes"]
    bulk = defaults["ingest"]["bulk"]["max_bytes"]
    return [
        ("/v1/messages", "POST", body),
        ("/v1/conversations", "POST", body),
        ("/v1/webhooks", "POST", body),
        ("/v1/admin/dead-letters/redrive", "POST", body),
        ("/v1/broadcasts", "POST", broadcast_bytes(body)),
        ("/v1/messages/bulk", "POST", bulk),
        ("/v1/audiences/card-holders", "PUT", bulk),
    ]


def broadcast_bytes(body: int) -> int:
    """The limit that ingest/src/broadcasts.rs names: a constant of its own, or one of model/src/limits.rs."""
    code = (PROJECT / "ingest/src/broadcasts.rs").read_text()
    name = re.search(r"body::json_within\((\w+),", code)
    assert name, "say here where the limit of broadcasts is"
    declared = re.findall(r"const (\w+): usize =\s*([^;]+);", (PROJECT / "model/src/limits.rs").read_text() + code)
    values: dict[str, int] = {}
    for constant, expression in declared:
        with contextlib.suppress(NameError, SyntaxError):
            values[constant] = int(eval(f"({expression})", {}, values))
    return max(body, values[name[1]])


def passed_by_nginx(path: str) -> int:
    """`client_max_body_size` of the location that a path is answered by, in bytes."""
    text = (DEPLOY / "nginx/nginx.conf").read_text()
    blocks = re.findall(r"location (=|~)? ?(\S+) \{(.*?)\n        \}", text, re.DOTALL)
    for how, pattern, block in blocks:
        size = re.search(r"client_max_body_size (\w+);", block)
        if size and (path == pattern if how == "=" else bool(how) and re.search(pattern, path)):
            return bytes_of(size[1])
    default = re.search(r"^        client_max_body_size (\w+);", text, re.MULTILINE)
    assert default
    return bytes_of(default[1])


def bytes_of(size: str) -> int:
    return int(size[:-1]) << {"k": 10, "m": 20, "g": 30}[size[-1]]


@pytest.mark.parametrize(("path", "method", "largest"), limits())
def test_the_largest_body_of_every_path_goes_through_and_what_is_far_larger_does_not(
    edge: Edge, path: str, method: str, largest: int
) -> None:
    assert largest <= passed_by_nginx(path) <= 4 * largest
    # A GiB takes too long: what nginx says of one byte more than it passes shows that it passes that much.
    size = min(largest, 64 << 20)
    before = len(edge.ingest)
    answer = edge.send(method, path, size, size)
    assert answer.status == 200, answer.read()
    assert len(edge.ingest) == before + 1 and int(edge.ingest[-1]["received"]) == size
    if largest > size:
        announced = edge.send(method, path, largest, 0)
        assert announced is None or announced.status != 413
    answer = edge.send(method, path, passed_by_nginx(path) + 1, 1 << 10)
    assert answer is not None and answer.status == 413
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert json.loads(answer.read())["code"] == "body_too_large"


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
