"""R5.4 and R5.5 on one process: what is beyond a rate or too much for the queue is told when to come back, and let in then."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable

import httpx
import pytest

from business import Business
from obedience import retry_after, send_obediently, standings
from phone import START, Phone, contents
from server import Server, new_business, new_phone
from test_http import line, problem


async def receive(phone: Phone, count: int) -> list[str]:
    """So many messages from the start of the phone's stream, and not one more."""
    received: list[dict] = []
    async with await phone.connect(**START) as session:
        while len(received) < count:
            received += await session.messages(min(100, count - len(received)))
            await session.send("ack", cursor=received[-1]["cursor"])
        await session.nothing_else()
    return contents(received)


@pytest.mark.timeout(150)
async def test_the_101st_message_of_a_minute_waits_as_long_as_it_is_told_and_no_longer(server: Server, phone: Phone):
    async with Business(server.url, server.new_key(new_business(), rate="100/min")) as business:
        begun = time.monotonic()
        for number in range(100):
            answer = await business.post(phone.number, f"message {number}")
            assert answer.status_code == 202, answer.text
            key, service = standings(answer)["key"], standings(answer)["service"]
            assert (key.quota, key.window_s, key.remaining) == (100, 60, 99 - number)
            assert (service.quota, service.window_s) == (10_000, 1)
            assert 0 < key.effective_s <= 61 and service.remaining < 10_000
        used_up = time.monotonic()
        refused = await business.post(phone.number, "message 100", key="the-101st")
        told = time.monotonic()
        assert problem(refused, 429, "rate_limited")["detail"].startswith("the limit `key` of 100/min is reached")
        wait, key = retry_after(refused), standings(refused)["key"]
        assert (key.remaining, key.effective_s) == (0, wait), "both say the same"
        # The oldest of the hundred leaves the window a minute after it came, with the others of its second.
        assert 60 - (told - begun) <= wait <= 62 - (told - begun), (wait, told - begun)
        assert used_up - begun < 30
        # Another key of the same business is another limit.
        await asyncio.sleep(wait - 1.5 - (time.monotonic() - told))
        early = await business.post(phone.number, "message 100", key="the-101st")
        assert early.status_code == 429 and retry_after(early) <= 2, "not earlier than told"
        await asyncio.sleep(wait - (time.monotonic() - told))
        answer = await business.post(phone.number, "message 100", key="the-101st")
        assert answer.status_code == 202, "and not later"
        assert await receive(phone, 101) == [f"message {number}" for number in range(101)]


async def test_keys_are_limited_apart_and_repeats_of_what_was_accepted_are_free(server: Server, phone: Phone):
    name = new_business()
    async with (
        Business(server.url, server.new_key(name, rate="2/min")) as one,
        Business(server.url, server.new_key(name, rate="3/min")) as other,
        Business(server.url, server.new_key(name)) as free,
    ):
        first = await one.post(phone.number, "a", key="a")
        for _ in range(5):
            repeat = await one.post(phone.number, "a", key="a")
            assert repeat.status_code == 202 and repeat.json() == first.json()
        assert [(await one.post(phone.number, "b")).status_code for _ in range(2)] == [202, 429]
        assert [(await other.post(phone.number, "c")).status_code for _ in range(4)] == [202, 202, 202, 429]
        assert [(await free.post(phone.number, "d")).status_code for _ in range(10)] == [202] * 10
        # A repeat is answered also where nothing new would be.
        assert (await one.post(phone.number, "a", key="a")).json() == first.json()
        # What is no message is not limited.
        assert (await one.http.get("/v1/messages")).status_code == 200


async def test_what_is_refused_for_another_reason_is_not_counted(server: Server, phone: Phone):
    async with Business(server.url, server.new_key(new_business(), rate="2/min")) as business:
        for _ in range(5):
            problem(await business.post("0512345678", "hello"), 400, "invalid_phone")
        assert [(await business.post(phone.number, "hello")).status_code for _ in range(3)] == [202, 202, 429]


async def test_an_upload_is_read_as_fast_as_its_key_may_send(server: Server, phone: Phone):
    async with Business(server.url, server.new_key(new_business(), rate="40/s")) as business:
        texts = [f"message {number}" for number in range(200)]
        body = "".join(json.dumps(line(phone.number, text)) + "\n" for text in texts)
        begun, arrivals = time.monotonic(), []
        headers = {"Content-Type": "application/x-ndjson"}
        async with business.http.stream("POST", "/v1/messages/bulk", content=body, headers=headers) as answer:
            assert answer.status_code == 200
            key = standings(answer)["key"]
            assert (key.quota, key.window_s, key.remaining) == (40, 1, 40)
            async for text in answer.aiter_lines():
                result = json.loads(text)
                arrivals += [time.monotonic()] if "id" in result else []
        assert result == {"accepted": 200, "rejected": 0}
        assert 4 <= time.monotonic() - begun < 12
        assert await receive(phone, 200) == texts


async def test_lines_that_find_no_room_in_time_are_refused_one_by_one(new_server: Callable[..., Server]):
    server = new_server("ingest.bulk.patience_s=1")
    phone = Phone.new(server)
    async with Business(server.url, server.new_key(new_business(), rate="10/min")) as business:
        *results, total = await business.bulk(line(phone.number, f"message {number}") for number in range(15))
        assert total == {"accepted": 10, "rejected": 5}
        assert [result["line"] for result in results] == list(range(1, 16))
        assert {result["error"]["code"] for result in results[10:]} == {"rate_limited"}
        assert await receive(phone, 10) == [f"message {number}" for number in range(10)]


async def test_everybody_together_may_send_so_much_and_in_bulk_a_part_of_it(new_server: Callable[..., Server]):
    server = new_server("limits.whole=20/s", "limits.bulk_percent=50")
    phones = [Phone.new(server) for _ in range(3)]
    keys = [server.new_key(new_business()) for _ in range(3)]
    sent = [0, 0]

    async def fire(business: Business, phone: Phone) -> list[httpx.Response]:
        return await asyncio.gather(*(business.post(phone.number, f"shot {number}") for number in range(30)))

    async with (
        Business(server.url, keys[0]) as one,
        Business(server.url, keys[1]) as two,
        Business(server.url, keys[2]) as three,
    ):
        # All at once.
        begun = time.monotonic()
        answers = [*await fire(one, phones[0]), *await fire(two, phones[1])]
        took = time.monotonic() - begun
        accepted = [answer for answer in answers if answer.status_code == 202]
        assert 20 <= len(accepted) <= 20 * (int(took) + 1)
        for answer in answers:
            [(name, standing)] = standings(answer).items()
            assert (name, standing.quota, standing.window_s) == ("service", 20, 1)
            if answer.status_code != 202:
                assert "`service`" in problem(answer, 429, "rate_limited")["detail"]
                assert retry_after(answer) <= 2
        # Room is left for those who send singly, however much is under way in bulk.
        await asyncio.sleep(1.1)
        upload = asyncio.create_task(three.bulk(line(phones[2].number, f"line {number}") for number in range(50)))
        while not upload.done():
            sent[(await one.post(phones[0].number, "meanwhile")).status_code != 202] += 1
            await asyncio.sleep(0.2)
        assert upload.result()[-1] == {"accepted": 50, "rejected": 0}
    assert sent[0] >= 15 and sent[1] == 0, sent


async def test_clients_that_obey_get_everything_through(new_server: Callable[..., Server]):
    server = new_server("limits.whole=25/s")
    phones = [Phone.new(server) for _ in range(4)]
    texts = [f"message {number}" for number in range(30)]
    keys = [server.new_key(new_business(), rate=rate) for rate in ("5/s", "20/s", "10000/s")] + [server.demo_key]
    senders = [Business(server.url, key) for key in keys]
    answers = await asyncio.gather(
        *(send_obediently(sender, phone.number, texts) for sender, phone in zip(senders, phones, strict=True))
    )
    for sender in senders:
        await sender.http.aclose()
    assert any(answer.status_code == 429 for all_of_one in answers for answer in all_of_one)
    for phone in phones:
        assert await receive(phone, 30) == texts


async def test_without_a_limit_nothing_is_said_of_one(new_server: Callable[..., Server]):
    server = new_server("limits.whole=")
    async with Business(server.url, server.demo_key) as business:
        answer = await business.post(new_phone(), "hello")
        assert answer.status_code == 202
        assert "RateLimit" not in answer.headers and "RateLimit-Policy" not in answer.headers
    async with Business(server.url, server.new_key(new_business(), rate="7/h")) as business:
        [(name, standing)] = standings(await business.post(new_phone(), "hello")).items()
        assert (name, standing.quota, standing.window_s, standing.remaining) == ("key", 7, 3600, 6)


class SlowStore:
    """While it is entered, the server's store takes no writes: another program has the file."""

    def __init__(self, server: Server) -> None:
        self.file = sqlite3.connect(server.data_dir / "store.db", isolation_level=None, timeout=30)

    def __enter__(self) -> None:
        self.file.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self.file.execute("ROLLBACK")
        self.file.close()


@pytest.mark.timeout(180)
async def test_a_full_queue_refuses_lets_in_when_a_fifth_is_gone_and_loses_nothing(new_server: Callable[..., Server]):
    server = new_server("ingest.queue.interactive=100", "ingest.queue.bulk=100", "ingest.bulk.patience_s=60")
    phone, in_bulk = Phone.new(server), Phone.new(server)
    async with Business(server.url, server.demo_key) as business:
        sent: list[str] = []
        with SlowStore(server):
            refused = None
            while refused is None:
                text = f"message {len(sent)}"
                answer = await business.post(phone.number, text)
                if answer.status_code == 202:
                    sent.append(text)
                else:
                    refused = answer
                assert len(sent) < 10_000
                await asyncio.sleep(0.01)
            assert "more than 100 interactive messages wait" in problem(refused, 503, "queue_full")["detail"]
            assert retry_after(refused) <= 5
            assert len(sent) > 100
            # It stays so while nothing moves; what is sent in bulk has a queue of its own.
            await asyncio.sleep(2.5)
            problem(await business.post(phone.number, "refused"), 503, "queue_full")
            upload = asyncio.create_task(
                business.bulk(line(in_bulk.number, f"line {number}") for number in range(1_500))
            )
            await asyncio.sleep(3)
        # Those who come back as they are told get in.
        more = [f"late {number}" for number in range(20)]
        answers = await send_obediently(business, phone.number, more)
        assert answers[-1].status_code == 202
        sent += more
        assert (await upload)[-1] == {"accepted": 1_500, "rejected": 0}
        assert await receive(phone, len(sent)) == sent
        assert await receive(in_bulk, 1_500) == [f"line {number}" for number in range(1_500)]
