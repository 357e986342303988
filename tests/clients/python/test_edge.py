"""deploy/nginx/nginx.conf in a real nginx, before two APIs and two gateways of a real cluster."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from business import Business
from cluster import Cluster
from edge import Edge
from phone import Phone, Session
from server import new_business, new_phone

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster") / "data").apply()
    cluster.new_key("acme")
    try:
        yield cluster.start()
        cluster.stop()
    finally:
        cluster.kill()


@pytest.fixture(scope="module")
def edge(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    ports = [[cluster.of(role, number).port for number in range(2)] for role in ("ingest", "gateway")]
    edge = Edge(tmp_path_factory.mktemp("nginx"), *ports).start()
    yield edge
    edge.stop()


@pytest.fixture
def key(cluster: Cluster) -> str:
    return cluster.new_key(new_business())


async def dial(cluster: Cluster, edge: Edge, number: str | None = None, token: str | None = None) -> Session:
    """A phone, through nginx, that has caught up."""
    number = number or new_phone()
    phone = Phone(edge.ws_url, number, token or cluster.token(number))
    session = await phone.dial(ssl=edge.trust)
    await session.send("hello")
    await session.expect("welcome")
    await session.until("caught_up")
    return session


def business(edge: Edge, key: str) -> Business:
    """A business that calls through nginx."""
    made = Business(edge.url, key)
    made.http = httpx.AsyncClient(
        base_url=edge.url, headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False, verify=edge.trust
    )
    return made


def sessions(cluster: Cluster) -> list[int]:
    """How many sockets each gateway holds."""

    def of(number: int) -> int:
        metrics = httpx.get(f"{cluster.of('gateway', number).url}/metrics", timeout=10, trust_env=False).text
        found = re.search(r"^eshaar_gateway_sessions (\d+)", metrics, re.MULTILINE)
        return int(found[1]) if found else 0

    return [of(number) for number in range(2)]


async def holds(cluster: Cluster, wanted: list[int]) -> None:
    """Waits until the gateways hold so many sockets."""
    async with asyncio.timeout(15):
        while sessions(cluster) != wanted:
            await asyncio.sleep(0.05)


def served_by(edge: Edge, path: str) -> Counter[str]:
    """How many requests of a path each process behind nginx got."""
    lines = [line for line in edge.access_log.read_text().splitlines() if f'"path":"{path}"' in line]
    return Counter(found[1] for line in lines if (found := re.search(r'"upstream":"[^"]*?([\d.:]+)"', line)))


async def test_a_message_goes_through_it_both_ways(cluster: Cluster, edge: Edge, key: str):
    number = new_phone()
    async with business(edge, key) as acme, await dial(cluster, edge, number) as session:
        id = await acme.say(number, "through nginx")
        [message] = await session.messages(1)
        assert message["id"] == id
        await session.send("ack", cursor=message["cursor"])
        await acme.reaches(id, "delivered")


async def test_requests_are_spread_over_the_apis(edge: Edge, key: str):
    async with business(edge, key) as acme:
        before = served_by(edge, "/v1/messages")
        await acme.say_all(new_phone(), [str(number) for number in range(40)])
        spread = served_by(edge, "/v1/messages") - before
    assert len(spread) == 2 and min(spread.values()) >= 10, spread


async def test_users_are_spread_and_each_comes_back_to_its_gateway(cluster: Cluster, edge: Edge):
    spread: Counter[str] = Counter()
    for _ in range(12):
        number = new_phone()
        token = cluster.token(number)
        before = served_by(edge, "/v1/ws")
        for _ in range(3):
            session = await dial(cluster, edge, number, token)
            await session.socket.close()
        async with asyncio.timeout(15):
            # nginx writes its line when the socket is closed.
            while (served_by(edge, "/v1/ws") - before).total() < 3:
                await asyncio.sleep(0.02)
        [(gateway, times)] = (served_by(edge, "/v1/ws") - before).items()
        assert times == 3
        spread[gateway] += 1
    assert len(spread) == 2, spread


@pytest.mark.parametrize(("version", "accepted"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_older_than_1_2_is_refused(edge: Edge, version: str, accepted: bool):
    context = edge.trust
    # OpenSSL of our own side must not be what refuses.
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    try:
        with socket.create_connection(("127.0.0.1", edge.port), timeout=10) as plain, context.wrap_socket(plain):
            assert accepted
    except (ssl.SSLError, ConnectionError):
        assert not accepted


async def test_plain_http_is_sent_to_https_and_answers_have_security_headers(edge: Edge, key: str):
    plain = httpx.get(f"http://127.0.0.1:{edge.http_port}/v1/messages?limit=1", trust_env=False)
    assert plain.status_code == 308 and plain.headers["location"].startswith("https://")
    async with business(edge, key) as acme:
        for path, status in [("/v1/messages", 200), ("/nothing", 404), ("/metrics", 404)]:
            answer = await acme.http.get(path)
            assert answer.status_code == status
            assert answer.headers["strict-transport-security"] and answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"


async def test_a_body_past_the_limit_is_refused_at_the_edge_and_a_bulk_request_is_not(edge: Edge, key: str):
    async with business(edge, key) as acme:
        answer = await acme.post(new_phone(), "x" * 140_000)
        assert answer.status_code == 413
        lines = [{"to": new_phone(), "content": "x" * 1_000} for _ in range(200)]
        assert (await acme.bulk(lines))[-1] == {"accepted": 200, "rejected": 0}


async def test_connections_survive_a_reload(cluster: Cluster, edge: Edge, key: str):
    number = new_phone()
    async with business(edge, key) as acme, await dial(cluster, edge, number) as session:
        old = edge.workers()
        edge.reload()
        id = await acme.say(number, "after the reload")
        [message] = await session.messages(1)
        assert message["id"] == id
        assert old & edge.workers(), "the worker that holds the socket sees it through"


async def test_the_users_of_a_gateway_that_drains_are_told_and_find_the_other(cluster: Cluster, edge: Edge, key: str):
    await holds(cluster, [0, 0])
    numbers = [new_phone() for _ in range(12)]
    tokens = {number: cluster.token(number) for number in numbers}
    open_sessions = {number: await dial(cluster, edge, number, tokens[number]) for number in numbers}
    async with asyncio.timeout(15):
        while sum(sessions(cluster)) < len(numbers):
            await asyncio.sleep(0.05)
    on_first, on_second = sessions(cluster)
    assert on_first > 0 and on_second > 0
    first = cluster.of("gateway", 0)
    code = await asyncio.to_thread(first.end, signal.SIGTERM)
    assert code == 0
    told: list[str] = []
    async with business(edge, key) as acme:
        for number, session in open_sessions.items():
            try:
                await session.send("ping")
                await session.expect("pong")
            except Exception:  # it was on the first: the bye is the frame, or the close came before
                assert await closing(session) == 4001
                told.append(number)
                await session.socket.close()
                session = await dial(cluster, edge, number, tokens[number])
                open_sessions[number] = session
            await acme.say(number, "to the other")
            [message] = await session.messages(1)
            assert message["content"] == "to the other"
    assert len(told) == on_first
    for session in open_sessions.values():
        await session.socket.close()
    await asyncio.to_thread(lambda: first.launch().wait())
    # It is back: so are its users, once nginx asks it again.
    before = served_by(edge, "/v1/ws")
    async with asyncio.timeout(15):
        while not (served_by(edge, "/v1/ws") - before)[f"127.0.0.1:{first.port}"]:
            session = await dial(cluster, edge, told[0], tokens[told[0]])
            await session.socket.close()


async def closing(session: Session) -> int:
    """The code that a session was closed with; the bye before it says when to come back."""
    code = await session.closed() if session.socket.close_code is None else session.socket.close_code
    assert code == 4001 and (session.bye is None or 0 <= session.bye["reconnect_after_ms"] <= 5_000)
    return code


async def test_requests_and_users_of_what_is_killed_go_to_the_other(cluster: Cluster, edge: Edge, key: str):
    for role in ("ingest", "gateway"):
        await asyncio.to_thread(cluster.of(role, 1).end, signal.SIGKILL)
    try:
        async with business(edge, key) as acme:
            for _ in range(10):
                number = new_phone()
                async with await dial(cluster, edge, number) as session:
                    id = await acme.say(number, "still here")
                    [message] = await session.messages(1)
                    assert message["id"] == id
    finally:
        for role in ("ingest", "gateway"):
            await asyncio.to_thread(lambda role=role: cluster.of(role, 1).launch().wait())
