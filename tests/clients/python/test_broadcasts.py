"""R1.10: one message to many. Each gets it at most once, whatever dies meanwhile, and nobody once it was taken back."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from business import Business
from cluster import Cluster
from phone import START, Phone, contents
from server import Server, new_business, new_phone

# A measured run has a million (load-tests/RESULTS.md).
RECIPIENTS = int(os.environ.get("BROADCAST_RECIPIENTS", "20000"))
MEASURED = "BROADCAST_RECIPIENTS" in os.environ
# Long enough to be interrupted; a measured run goes as fast as it can.
RATE = None if MEASURED else 2_000
LIMIT_S = 1_500 if MEASURED else 150
SAMPLE = 300
PERMISSIONS = ("broadcasts:send", "messages:send")


def numbers(count: int) -> list[str]:
    """So many phones, the same ones each time."""
    return [f"+9665{number:08d}" for number in range(count)]


async def upload(business: Business, name: str, lines: list[str]) -> dict:
    """Uploads an audience as CSV; the answer."""
    body = ("name,to\n" + "".join(f"x,{line}\n" for line in lines)).encode()
    answer = await business.http.put(
        f"/v1/audiences/{name}", content=body, headers={"Content-Type": "text/csv"}, timeout=600
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def broadcast(business: Business, key: str | None = None, **fields: Any) -> httpx.Response:
    """Asks for a broadcast; whatever the answer is."""
    headers = {"Idempotency-Key": key} if key else {}
    body = {"content": "hello all"} | {name: value for name, value in fields.items() if value is not None}
    return await business.http.post("/v1/broadcasts", json=body, headers=headers)


async def seen(business: Business, id: str) -> dict:
    answer = await business.http.get(f"/v1/broadcasts/{id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def until(business: Business, id: str, wanted: Callable[[dict], bool]) -> dict:
    """The broadcast, once it is as wanted."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            answer = await business.http.get(f"/v1/broadcasts/{id}")
        except httpx.TransportError:
            answer = None
        # Right after it was accepted the store may not have it yet; while a process starts again nobody answers.
        if answer is not None and answer.status_code == 200 and wanted(answer.json()):
            return answer.json()
        told = "nothing" if answer is None else answer.text
        assert time.monotonic() < deadline, f"not so after {LIMIT_S} s: {told}"
        await asyncio.sleep(0.05)


@dataclass
class Place:
    """Where broadcasts are sent, how whatever sends them dies and comes back, and whose memory counts."""

    url: str
    ws_url: str
    new_key: Callable[..., str]
    token: Callable[[str], str]
    crash: Callable[[], None]
    pids: Callable[[], list[int]]

    def phone(self, number: str) -> Phone:
        return Phone(self.ws_url, number, self.token(number))

    async def shown(self, number: str) -> list[str]:
        """What a phone that comes now is shown."""
        async with await self.phone(number).connect(**START) as session:
            frames = await session.until("caught_up")
        return [frame["content"] for frame in frames if frame["op"] == "message"]

    def resident_mib(self) -> float:
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids())
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture
def one_process(new_server: Callable[..., Server]) -> Place:
    server = new_server("limits.user=1000000/s", "limits.whole=1000000/s")

    def crash() -> None:
        server.kill()
        server.start()

    return Place(server.url, server.ws_url, server.new_key, server.token, crash, lambda: [server.process.pid])


@pytest.fixture
def six_processes(tmp_path: Path) -> Iterator[Place]:
    cluster = Cluster(tmp_path / "data", "limits.user=1000000/s", "limits.whole=1000000/s").apply()
    cluster.new_key("acme")
    try:
        cluster.start()
        processors = [cluster.of("processors", number) for number in range(2)]

        def crash() -> None:
            for process in processors:
                process.end(9)
            for process in processors:
                process.launch()
            for process in processors:
                process.wait()

        def pids() -> list[int]:
            return [process.process.pid for process in processors]

        ingest, gateway = cluster.of("ingest"), cluster.of("gateway")
        yield Place(ingest.url, gateway.ws_url, cluster.new_key, cluster.token, crash, pids)
        cluster.stop()
    finally:
        cluster.kill()


@pytest.mark.timeout(2 * LIMIT_S)
async def test_each_recipient_gets_it_once_though_the_process_dies_in_the_midst(one_process: Place):
    await sends_through_a_crash(one_process)


@pytest.mark.engines
@pytest.mark.timeout(2 * LIMIT_S)
async def test_so_it_does_on_a_cluster(six_processes: Place):
    await sends_through_a_crash(six_processes)


async def sends_through_a_crash(place: Place) -> None:
    phones = numbers(RECIPIENTS)
    async with Business(place.url, place.new_key(new_business(), *PERMISSIONS)) as business:
        # The first ten come twice, and two lines are no phones.
        uploaded = await upload(business, "all", phones + phones[:10] + ["nobody", ""])
        assert (uploaded["recipients"], uploaded["duplicates"], uploaded["rejected"]) == (RECIPIENTS, 10, 2)
        answer = await broadcast(business, key="spring", audience="all", rate=RATE, reference="spring")
        assert answer.status_code == 202, answer.text
        id, begun = answer.json()["id"], time.monotonic()

        half_way = await until(business, id, lambda broadcast: broadcast["progress"]["accepted"] > RECIPIENTS * 0.3)
        assert half_way["status"] == "sending", "it must be under way still: raise the number of recipients"
        place.crash()
        done = await until(business, id, lambda broadcast: broadcast["status"] == "sent")
        print(f"\n{RECIPIENTS} recipients in {time.monotonic() - begun:.1f} s, a crash in between")
        assert done["progress"]["accepted"] == done["progress"]["total"] == RECIPIENTS
        again = await broadcast(business, key="spring", audience="all", rate=RATE, reference="spring")
        assert (again.status_code, again.json()["id"]) == (202, id)
        assert again.headers["Idempotency-Replayed"] == "true"

        sample = random.sample(phones, min(SAMPLE, len(phones)))
        for phone in sample:
            assert await until_shown(place, phone) == ["hello all"]
        async with await place.phone(phones[7]).connect(**START) as session:
            [message] = await session.messages(1)
            await session.send("read", ids=[message["id"]])
            done = await until(business, id, lambda broadcast: broadcast["progress"]["read"] == 1)
        assert done["progress"]["delivered"] >= 1 and done["progress"]["cancelled"] == 0


async def until_shown(place: Place, phone: str) -> list[str]:
    """What a phone is shown, once it is shown something."""
    deadline = time.monotonic() + LIMIT_S
    while not (shown := await place.shown(phone)):
        assert time.monotonic() < deadline, "a recipient gets nothing"
        await asyncio.sleep(0.2)
    return shown


@pytest.mark.timeout(2 * LIMIT_S)
async def test_nobody_gets_it_once_it_was_taken_back(one_process: Place):
    await is_taken_back(one_process)


@pytest.mark.engines
@pytest.mark.timeout(2 * LIMIT_S)
async def test_nor_does_anybody_on_a_cluster(six_processes: Place):
    await is_taken_back(six_processes)


async def is_taken_back(place: Place) -> None:
    phones = numbers(RECIPIENTS)
    got: dict[str, list[float]] = {}
    async with Business(place.url, place.new_key(new_business(), *PERMISSIONS)) as business:
        await upload(business, "all", phones)
        watched = random.sample(phones, 100)
        sessions = [await place.phone(phone).connect_empty() for phone in watched]

        async def receive(phone: str, session: Any) -> None:
            while True:
                frame = await session.frame(limit_s=2 * LIMIT_S)
                if frame["op"] == "message":
                    got.setdefault(phone, []).append(time.monotonic())
                    await session.send("ack", cursor=frame["cursor"])

        receiving = [asyncio.create_task(receive(*pair)) for pair in zip(watched, sessions, strict=True)]
        before_mib = place.resident_mib()
        id = (await broadcast(business, audience="all", rate=RATE)).json()["id"]
        most_mib = 0.0

        def is_half_way(broadcast: dict) -> bool:
            nonlocal most_mib
            most_mib = max(most_mib, place.resident_mib())
            return broadcast["progress"]["accepted"] >= RECIPIENTS / 2

        await until(business, id, is_half_way)
        answer = await business.http.post(f"/v1/broadcasts/{id}/cancel")
        cancelled = time.monotonic()
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert (await business.http.post(f"/v1/broadcasts/{id}/cancel")).status_code == 200

        progress = await settled(business, id)
        assert progress["accepted"] < RECIPIENTS, "it must be under way still: raise the number of recipients"
        late = [at - cancelled for times in got.values() for at in times if at > cancelled]
        print(
            f"\ntaken back at {progress['accepted']} of {RECIPIENTS}: {len(late)} of {len(watched)} watched phones got it "
            f"later, the last after {max(late, default=0) * 1000:.0f} ms; memory: {before_mib:.0f} MiB before, {most_mib:.0f} at most"
        )
        assert max(late, default=0) < 5
        assert all(len(times) == 1 for times in got.values()), "twice"
        total = progress["delivered"] + progress["failed"] + progress["expired"] + progress["cancelled"]
        assert (progress["total"], progress["delivered"]) == (total, len(got))
        # Those who come later are shown nothing of it, but for those who had it.
        for phone in random.sample([phone for phone in phones if phone not in got], 50):
            assert await place.shown(phone) == []
        for task in receiving:
            task.cancel()
        for session in sessions:
            await session.socket.close()
        if MEASURED:
            # 50 MB.
            assert most_mib - before_mib <= 47


async def settled(business: Business, id: str) -> dict:
    """The progress of a broadcast that changes no more."""
    last: dict = {}
    for _ in range(60):
        now = (await seen(business, id))["progress"]
        if now == last:
            return now
        last = now
        await asyncio.sleep(2.5)
    raise AssertionError(f"it goes on: {last}")


async def test_a_list_of_recipients_needs_no_audience(server: Server):
    phones = [Phone.new(server) for _ in range(3)]
    async with Business(server.url, server.new_key(new_business(), *PERMISSIONS)) as business:
        listed = [phone.number for phone in phones]
        answer = await broadcast(business, to=[*listed, listed[0]], content="to three", priority="high", ttl_s=600)
        assert (answer.status_code, answer.json()["total"]) == (202, 3)
        id = answer.json()["id"]
        done = await until(business, id, lambda broadcast: broadcast["status"] == "sent")
        assert (done["audience"], done["priority"], done["progress"]["accepted"]) == (None, "high", 3)
        for phone in phones:
            async with await phone.connect(**START) as session:
                assert contents(await session.messages(1)) == ["to three"]
        page = (await business.http.get("/v1/broadcasts")).json()
        assert ([one["id"] for one in page["broadcasts"]], page["next_cursor"]) == ([id], None)


async def test_what_is_wrong_is_named(server: Server):
    async with Business(server.url, server.new_key(new_business(), *PERMISSIONS)) as business:
        for fields, code in [
            ({}, "missing_field"),
            ({"to": []}, "recipients_count"),
            ({"to": [new_phone()] * 10_001}, "recipients_count"),
            ({"to": [new_phone(), "nobody"]}, "invalid_phone"),
            ({"to": [new_phone()], "audience": "all"}, "two_recipients"),
            ({"to": [new_phone()], "rate": 0}, "invalid_rate"),
            ({"to": [new_phone()], "content": ""}, "content_empty"),
            ({"audience": "nobody-has-it"}, "audience_not_found"),
        ]:
            answer = await broadcast(business, **fields)
            assert answer.status_code in (400, 404, 422) and answer.json()["code"] == code, (fields, answer.text)
        answer = await business.http.put("/v1/audiences/a b", content=b"to\n", headers={"Content-Type": "text/csv"})
        assert answer.json()["code"] == "invalid_audience_name"
        answer = await business.http.put("/v1/audiences/a", content=b"phone\n1\n", headers={"Content-Type": "text/csv"})
        assert answer.json()["code"] == "missing_column"


async def test_a_broadcast_and_an_audience_are_their_businesss_alone(server: Server):
    phone = Phone.new(server)
    async with (
        Business(server.url, server.new_key(new_business(), *PERMISSIONS)) as one,
        Business(server.url, server.new_key(new_business(), *PERMISSIONS)) as other,
        Business(server.url, server.new_key(new_business(), "messages:send")) as without,
    ):
        await upload(one, "cards", [phone.number])
        id = (await broadcast(one, audience="cards")).json()["id"]
        await until(one, id, lambda broadcast: broadcast["status"] == "sent")
        for path in (f"/v1/broadcasts/{id}", "/v1/audiences/cards"):
            assert (await other.http.get(path)).status_code == 404
            assert (await without.http.get(path)).status_code == 403
        assert (await other.http.post(f"/v1/broadcasts/{id}/cancel")).status_code == 404
        assert (await other.http.delete("/v1/audiences/cards")).status_code == 404
        assert (await broadcast(other, audience="cards")).status_code == 404
        assert (await other.http.get("/v1/broadcasts")).json()["broadcasts"] == []
        assert (await one.http.delete("/v1/audiences/cards")).status_code == 204
        assert (await one.http.get("/v1/audiences/cards")).status_code == 404
        assert contents(await phone.fetch(1, **START)) == ["hello all"]
