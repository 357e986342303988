"""R5.2, R5.8: a sender's bulk is under way, and others' messages arrive as if it were not."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from business import Business
from cluster import Cluster
from phone import Phone
from server import Server, binary, environment, new_business, new_phone

EVERY_S = 0.1
MEASURED = "FAIRNESS_LINES" in os.environ


@dataclass
class Place:
    """Where messages are sent to and received from, and how many lines the bulk has there: `FAIRNESS_LINES`, or few enough
    for every day; a measured run has a million (load-tests/RESULTS.md)."""

    url: str
    ws_url: str
    new_key: Callable[[str], str]
    token: Callable[[str], str]
    lines: int

    def phone(self, number: str) -> Phone:
        return Phone(self.ws_url, number, self.token(number))


@pytest.fixture
def one_process(new_server: Callable[..., Server]) -> Place:
    server = new_server()
    lines = int(os.environ.get("FAIRNESS_LINES", "100000"))
    return Place(server.url, server.ws_url, server.new_key, server.token, lines)


@pytest.fixture
def six_processes(tmp_path: Path) -> Iterator[Place]:
    cluster = Cluster(tmp_path / "data").apply()
    cluster.new_key("acme")
    try:
        cluster.start()
        ingest, gateway = cluster.of("ingest"), cluster.of("gateway")
        lines = int(os.environ.get("FAIRNESS_LINES", "20000"))
        yield Place(ingest.url, gateway.ws_url, cluster.new_key, cluster.token, lines)
        cluster.stop()
    finally:
        cluster.kill()


def percentile(sorted_values: list[float], of: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * of))]


async def send_steadily(business: Business, phone: Phone, priority: str, over: asyncio.Event) -> list[float]:
    """Ten messages a second to one phone until the bulk is over; from when each was due to when it arrived, in seconds."""
    due: dict[str, float] = {}
    took: list[float] = []
    async with await phone.connect_empty() as session:

        async def receive() -> None:
            while True:
                frame = await session.frame(limit_s=60)
                if frame["op"] == "message":
                    took.append(time.monotonic() - due[frame["content"]])
                    await session.send("ack", cursor=frame["cursor"])

        receiving = asyncio.create_task(receive())
        sending: list[asyncio.Task[str]] = []
        begun, number = time.monotonic(), 0
        while not over.is_set():
            # By the timetable, whether those before were answered or not.
            await asyncio.sleep(max(0.0, begun + number * EVERY_S - time.monotonic()))
            content = f"{priority} {number}"
            due[content] = begun + number * EVERY_S
            sending.append(asyncio.create_task(business.say(phone.number, content, priority=priority)))
            number += 1
        await asyncio.gather(*sending)
        async with asyncio.timeout(120):
            while len(took) < number:
                await asyncio.sleep(0.02)
        receiving.cancel()
    return took


@pytest.mark.timeout(300)
async def test_a_bulk_of_one_sender_does_not_delay_the_messages_of_another(one_process: Place, tmp_path: Path):
    await send_beside_a_bulk(one_process, tmp_path)


@pytest.mark.engines
@pytest.mark.timeout(300)
async def test_nor_does_it_on_a_cluster(six_processes: Place, tmp_path: Path):
    await send_beside_a_bulk(six_processes, tmp_path)


async def send_beside_a_bulk(place: Place, dir: Path) -> None:
    """One sends a bulk; three others ten messages a second, each at another priority."""
    lines = dir / "lines.ndjson"
    with lines.open("w") as file:
        for number in range(place.lines):
            to = f"+9665{number % 50_000:08d}"
            file.write(json.dumps({"to": to, "type": "one_way", "content": f"line {number}"}) + "\n")
    bulk_key = place.new_key(new_business())
    over = asyncio.Event()
    started = time.monotonic()

    async def bulk() -> float:
        await asyncio.sleep(1)
        words = [str(binary()), "send", "--url", place.url, "--api-key", bulk_key, "--file", str(lines)]
        process = await asyncio.create_subprocess_exec(
            *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment()
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        took = time.monotonic() - started - 1
        # Until the last line has reached its recipient's stream.
        last = place.phone(f"+9665{(place.lines - 1) % 50_000:08d}")
        async with asyncio.timeout(250):
            while not await has(last, f"line {place.lines - 1}"):
                await asyncio.sleep(0.2)
        over.set()
        return took

    async with (
        Business(place.url, place.new_key(new_business())) as high,
        Business(place.url, place.new_key(new_business())) as normal,
        Business(place.url, place.new_key(new_business())) as low,
    ):
        senders = [(high, "high"), (normal, "normal"), (low, "low")]
        steady = [send_steadily(sender, place.phone(new_phone()), name, over) for sender, name in senders]
        accepted_s, *latencies = await asyncio.gather(bulk(), *steady)
    whole_s = time.monotonic() - started - 1
    print(f"\n{place.lines} lines: accepted in {accepted_s:.1f} s, delivered in {whole_s:.1f} s")
    p99 = {}
    for (_, name), took in zip(senders, latencies, strict=True):
        took.sort()
        p99[name] = percentile(took, 0.99)
        print(f"{name}: {len(took)} messages, p50 {percentile(took, 0.5) * 1000:.0f} ms, p99 {p99[name] * 1000:.0f} ms, "
              f"most {took[-1] * 1000:.0f} ms")
    # How fast depends on what else the machine does: judged only where it is measured.
    if MEASURED:
        assert p99["high"] < 0.2 and p99["normal"] < 0.5, p99
        # It waits behind the others, and moves.
        assert p99["low"] < 5, p99


async def has(phone: Phone, content: str) -> bool:
    async with await phone.connect(**{"from": "start"}) as session:
        frames = await session.until("caught_up")
    return any(frame.get("content") == content for frame in frames)
