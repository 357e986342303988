"""What a mobile app is promised: every message once, in order, online or not, on every device."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from business import Business
from phone import START, Phone, contents


async def test_a_message_to_a_connected_phone_arrives_at_once(demo: Business, phone: Phone):
    async with await phone.connect_empty() as session:
        answer = await demo.post(phone.number, "Your card was used.", priority="high", reference="tx-81")
        assert answer.status_code == 202
        accepted = answer.json()
        assert accepted["status"] == "sent" and accepted["to"] == phone.number
        assert accepted["type"] == "one_way" and accepted["conversation_id"] is None

        message = await session.expect("message", limit_s=2)
        assert message["id"] == accepted["id"] and message["sent_at"] == accepted["sent_at"]
        assert message["content"] == "Your card was used."
        assert message["from"] == "demo" and message["type"] == "one_way"
        assert message["priority"] == "high" and message["reference"] == "tx-81"
        assert message["conversation_id"] is None and message["media"] == [] and message["collapse_key"] is None


async def test_messages_to_a_phone_that_is_away_wait_and_arrive_in_order(demo: Business, phone: Phone):
    texts = [f"message {n}" for n in range(25)]
    await demo.say_all(phone.number, texts)
    assert contents(await phone.fetch(25, **START)) == texts


async def test_a_phone_gets_what_came_while_it_was_away_and_then_what_is_live(demo: Business, phone: Phone):
    async with await phone.connect_empty() as session:
        await demo.say(phone.number, "first")
        [first] = await session.messages(1)
    await demo.say_all(phone.number, ["second", "third"])
    await phone.fetch(3, **START)
    async with await phone.connect(after=first["cursor"]) as session:
        frames = await session.until("caught_up")
        assert contents(frames[:-1]) == ["second", "third"]
        assert frames[-1]["cursor"] == frames[-2]["cursor"], "caught up to the last message sent"
        await demo.say(phone.number, "fourth")
        assert contents(await session.messages(1)) == ["fourth"]


async def test_a_phone_that_reconnects_all_the_time_gets_every_message_once_in_order(demo: Business, phone: Phone):
    texts = [f"message {n}" for n in range(120)]
    received, hello = [], START

    async def send() -> None:
        await demo.say_all(phone.number, texts)

    sending = asyncio.create_task(send())
    while len(received) < len(texts):
        async with await phone.connect(**hello) as session:
            # Goes away again in the middle of whatever comes: replay, live, or both.
            for _ in range(7):
                if len(received) == len(texts):
                    break
                frame = await session.frame()
                if frame["op"] == "message":
                    received.append(frame)
                    hello = {"after": frame["cursor"]}
    await sending
    assert contents(received) == texts


async def test_a_cursor_stands_for_the_message_it_came_with_and_all_before_it(demo: Business, phone: Phone):
    texts = [f"message {n}" for n in range(10)]
    await demo.say_all(phone.number, texts)
    messages = await phone.fetch(10, **START)
    for place, message in enumerate(messages):
        rest = await phone.fetch(len(texts) - place - 1, after=message["cursor"])
        assert contents(rest) == texts[place + 1 :]


async def test_order_holds_within_each_priority(demo: Business, phone: Phone):
    priorities = ["low", "normal", "high"] * 10
    for place, priority in enumerate(priorities):
        await demo.say(phone.number, f"{priority} {place}", priority=priority)
    messages = await phone.fetch(len(priorities), **START)
    for priority in ("low", "normal", "high"):
        expected = [f"{priority} {place}" for place, wanted in enumerate(priorities) if wanted == priority]
        assert contents([message for message in messages if message["priority"] == priority]) == expected


async def test_from_head_begins_with_what_is_new(demo: Business, phone: Phone):
    old = await demo.say(phone.number, "old")
    assert contents(await phone.fetch(1, **START)) == ["old"]
    async with await phone.connect_empty(**{"from": "head"}) as session:
        await demo.say(phone.number, "new")
        assert contents(await session.messages(1)) == ["new"]
    assert (await demo.message(old))["status"] == "sent", "skipping is no receipt"


async def test_every_device_of_a_user_gets_every_message(demo: Business, phone: Phone):
    async with await phone.connect_empty(device="phone") as first, await phone.connect_empty(device="tablet") as second:
        texts = [f"message {n}" for n in range(20)]
        await demo.say_all(phone.number, texts)
        assert contents(await first.messages(20)) == texts
        assert contents(await second.messages(20)) == texts
        await first.silence()


async def test_a_device_that_acknowledged_does_not_take_messages_from_another(demo: Business, phone: Phone):
    ids = await demo.say_all(phone.number, ["one", "two"])
    async with await phone.connect(**START) as first:
        messages = await first.messages(2)
        await first.send("ack", cursor=messages[-1]["cursor"])
        await demo.reaches(ids[-1], "delivered")
    assert contents(await phone.fetch(1, after=messages[0]["cursor"])) == ["two"], "resumed by its own cursor"


async def test_a_phone_gets_only_its_own_messages(demo: Business, phone: Phone, server):
    other = Phone.new(server)
    async with await phone.connect_empty() as mine, await other.connect_empty() as theirs:
        await demo.say(other.number, "for the other")
        assert contents(await theirs.messages(1)) == ["for the other"]
        await mine.silence()


async def test_content_arrives_as_it_was_written(demo: Business, phone: Phone):
    texts = ["رسالة من البنك ١٢٣", '👩‍👩‍👧‍👦 \u200f "quoted" \\ slash', "line\nline\ttab", "a" * 10_000, "٪" * 10_000]
    async with await phone.connect_empty() as session:
        for text in texts:
            await demo.say(phone.number, text)
            assert contents(await session.messages(1)) == [text]


async def test_a_message_that_expired_is_not_delivered_and_its_sender_can_see_it(demo: Business, phone: Phone):
    expiring = await demo.say(phone.number, "only now", ttl_s=1)
    await demo.say(phone.number, "later too")
    await demo.reaches(expiring, "expired")
    assert contents(await phone.fetch(1, **START)) == ["later too"]


@pytest.mark.parametrize("times", [2, 5])
async def test_a_request_repeated_with_its_idempotency_key_is_one_message(demo: Business, phone: Phone, times: int):
    key = str(uuid.uuid4())
    answers = [await demo.post(phone.number, "pay 5", key=key) for _ in range(times)]
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.text for answer in answers}) == 1, "the same answer, with the same id"
    assert contents(await phone.fetch(1, **START)) == ["pay 5"]


async def test_requests_that_race_with_one_key_are_one_message(demo: Business, phone: Phone):
    key = str(uuid.uuid4())
    answers = await asyncio.gather(*(demo.post(phone.number, "pay 5", key=key) for _ in range(20)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    final = await demo.post(phone.number, "pay 5", key=key)
    assert final.status_code == 202
    messages = await phone.fetch(1, **START)
    assert [message["id"] for message in messages] == [final.json()["id"]]
