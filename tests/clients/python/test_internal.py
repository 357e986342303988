"""A server with a listener for operators beside the public one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from phone import Phone
from server import Server, free_port

INTERNAL = [
    "/metrics",
    "/health/details",
    "/registry",
    "/registry/subjects",
    "/registry/schemas/types",
    "/v1/admin/audit",
    "/v1/admin/dead-letters",
    "/console",
    "/console/console.css",
]


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """The server, and the address of its operators."""
    port = free_port()
    settings = [f'internal_listen="127.0.0.1:{port}"', 'http.cors_origins=["https://app.example.com"]']
    server = Server(tmp_path_factory.mktemp("apart") / "data", *settings).start()
    yield server, f"http://127.0.0.1:{port}"
    assert server.stop() == 0


def test_what_operators_need_is_answered_on_their_listener_alone(apart: tuple[Server, str]):
    server, operators = apart
    key = {"Authorization": f"Bearer {(server.data_dir / 'operator-key').read_text().strip()}"}
    with httpx.Client(headers=key, trust_env=False) as client:
        for path in INTERNAL:
            answer = client.get(server.url + path)
            assert (answer.status_code, answer.json()["code"]) == (404, "no_such_path"), path
            assert client.get(operators + path).status_code in (200, 401), path
        for path in ["/health", "/health/live", "/health/ready", "/", "/openapi.json", "/docs/"]:
            assert client.get(server.url + path).status_code == 200, path
            assert client.get(operators + path).status_code == 200, path


async def test_sockets_are_served_by_both(apart: tuple[Server, str]):
    server, operators = apart
    for url in (server.ws_url, operators.replace("http", "ws") + "/v1/ws"):
        phone = Phone.new(server)
        async with await phone.dial(url=url) as session:
            await session.send("hello")
            await session.expect("welcome")


def test_pages_of_a_configured_origin_may_call_the_api(apart: tuple[Server, str]):
    server, _ = apart
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for origin, allowed in (("https://app.example.com", "https://app.example.com"), ("https://evil.example", None)):
        preflight = httpx.options(f"{server.url}/v1/messages", headers=asked | {"Origin": origin}, trust_env=False)
        assert preflight.status_code == 200
        assert preflight.headers.get("access-control-allow-origin") == allowed
        answer = httpx.get(f"{server.url}/v1/messages", headers={"Origin": origin}, trust_env=False)
        assert answer.status_code == 401 and answer.headers.get("access-control-allow-origin") == allowed


def test_the_link_of_the_console_leads_to_the_operators(apart: tuple[Server, str]):
    server, operators = apart
    assert operators in server.log_path.read_text()
