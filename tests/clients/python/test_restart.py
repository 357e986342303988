"""kill -9 at any time: what was accepted is delivered, once and in order, to a client that resumes by its cursor."""

from __future__ import annotations

import asyncio
import uuid

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, WebSocketException

from business import Business
from phone import START, Phone
from server import Server

KILLS = 4
PHONES = 12
MESSAGES = 150


async def send_until_accepted(business: Business, phone: Phone, count: int) -> list[str]:
    """Sends in sequence; repeats each with its key until it is accepted. The ids, in order."""
    ids = []
    for number in range(count):
        key = str(uuid.uuid4())
        while True:
            try:
                answer = await business.post(phone.number, f"message {number}", key=key)
                if answer.status_code == 202:
                    ids.append(answer.json()["id"])
                    break
                assert answer.status_code in (409, 429, 503), answer.text
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.01)
    return ids


async def receive_all(phone: Phone, count: int) -> list[str]:
    """Receives until there are so many, acking at once, resuming by the newest cursor after each loss."""
    ids, hello = [], START
    while len(ids) < count:
        try:
            async with await phone.connect(**hello) as session:
                while len(ids) < count:
                    frame = await session.frame(limit_s=60)
                    assert frame["op"] in ("message", "caught_up", "bye"), frame
                    if frame["op"] == "message":
                        ids.append(frame["id"])
                        hello = {"after": frame["cursor"]}
                        await session.send("ack", cursor=frame["cursor"])
        except (OSError, ConnectionClosed, WebSocketException):
            await asyncio.sleep(0.05)
    return ids


@pytest.mark.timeout(240)
async def test_killed_again_and_again_nothing_is_lost_doubled_or_out_of_order(new_server):
    server: Server = new_server()
    phones = [Phone.new(server) for _ in range(PHONES)]
    online = [asyncio.create_task(receive_all(phone, MESSAGES)) for phone in phones[: PHONES // 2]]
    async with Business(server.url, server.demo_key) as demo:
        sending = [asyncio.create_task(send_until_accepted(demo, phone, MESSAGES)) for phone in phones]
        for _ in range(KILLS):
            await asyncio.sleep(0.7)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        accepted = await asyncio.gather(*sending)
        received = await asyncio.gather(*online, *(receive_all(phone, MESSAGES) for phone in phones[PHONES // 2 :]))
        assert received == accepted
        for phone, ids in zip(phones, accepted, strict=True):
            assert [message["id"] for message in await phone.fetch(MESSAGES, **START)] == ids, "once in history"
        for ids in accepted:
            await demo.reaches(ids[-1], "delivered")


async def test_what_was_accepted_right_before_a_kill_is_delivered_after_it(new_server):
    server: Server = new_server()
    phone = Phone.new(server)
    async with Business(server.url, server.demo_key) as demo:
        for round in range(5):
            id = await demo.say(phone.number, f"round {round}")
            server.kill()
            server.start()
            assert (await phone.fetch(round + 1, **START))[-1]["id"] == id


async def test_an_idempotency_key_outlives_a_kill(new_server):
    server: Server = new_server()
    phone = Phone.new(server)
    async with Business(server.url, server.demo_key) as demo:
        first = await demo.post(phone.number, "pay 5", key="invoice-9")
        server.kill()
        server.start()
        second = await demo.post(phone.number, "pay 5", key="invoice-9")
        assert second.status_code == 202 and second.json() == first.json()
        after = await demo.say(phone.number, "done")
        assert [message["id"] for message in await phone.fetch(2, **START)] == [first.json()["id"], after]


async def test_a_clean_stop_hands_everything_on(new_server):
    server: Server = new_server()
    phone = Phone.new(server)
    async with Business(server.url, server.demo_key) as demo:
        ids = await demo.say_all(phone.number, [f"message {n}" for n in range(20)])
        assert server.stop() == 0
        server.start()
        assert [message["id"] for message in await phone.fetch(20, **START)] == ids
