"""Clients that hold connections and never read, beside those that want to be served; and what is logged of credentials."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from phone import Phone
from server import Server

PLACES = 40
PIPELINED = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 500


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with few places, that logs everything there is."""
    settings = [f"http.max_unauthenticated_connections={PLACES}", "http.write_timeout_s=2", 'logging.filter="trace"']
    server = Server(tmp_path_factory.mktemp("loud") / "data", *settings).start()
    yield server
    assert server.stop() == 0


def hold(server: Server, first: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.setblocking(False)
    try:
        connection.send(first)
    except BlockingIOError:
        pass
    return connection


async def test_health_answers_whatever_strangers_hold(loud: Server):
    phone = Phone.new(loud)
    async with await phone.dial() as session:
        await session.send("hello")
        await session.until("caught_up")
        held = []
        for number in range(PLACES * 3):
            held.append(hold(loud, [PIPELINED, b"GET /health HT", b""][number % 3]))
            if number % 10 == 0:
                assert httpx.get(f"{loud.url}/health/live", timeout=10, trust_env=False).status_code == 200
        # Sockets and callers with a credential are not strangers.
        await session.send("ping")
        await session.expect("pong")
        key = {"Authorization": f"Bearer {loud.demo_key}"}
        assert httpx.get(f"{loud.url}/v1/messages", headers=key, timeout=10, trust_env=False).status_code == 200
        metrics = httpx.get(f"{loud.url}/metrics", timeout=10, trust_env=False).text
        closed = re.search(r'eshaar_http_connections_closed_total\{reason="room"\} (\d+)', metrics)
        assert closed and int(closed[1]) >= PLACES
        for connection in held:
            connection.close()


async def test_no_credential_is_logged_even_where_everything_is(loud: Server):
    phone = Phone.new(loud)
    encoded = base64.urlsafe_b64encode(phone.token.encode()).decode().rstrip("=")
    ways = [
        {},
        {"additional_headers": {}, "url": f"{phone.url}?access_token={phone.token}"},
        {"additional_headers": {}, "subprotocols": ["eshaar.v1.json", f"eshaar.token.{encoded}"]},
    ]
    for options in ways:
        async with await phone.dial(**options) as session:
            await session.send("hello")
            await session.until("caught_up")
            await session.send("renew", access_token=phone.token)
            await session.expect("renewed")
    log = loud.log_path.read_text(errors="replace")
    assert "DEBUG" in log
    for secret in (phone.token, encoded, loud.demo_key):
        assert secret not in log
