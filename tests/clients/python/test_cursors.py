"""Cursors that do not fit: each is answered, none is passed over in silence."""

from __future__ import annotations

import asyncio
import time

import pytest

from business import Business
from phone import START, Phone, contents

NO_CURSORS = ["", "garbage", "AAAA", "AQECAAAA=", "AQECAAAA" * 40, "🙂", " AQECAAAA", "AQECAAAAAA", "/////w", "AQ"]


@pytest.mark.parametrize("cursor", NO_CURSORS)
async def test_what_is_no_cursor_closes_the_session(phone: Phone, cursor: str):
    async with await phone.dial() as session:
        await session.send("hello", after=cursor)
        assert await session.closed() == 4505
        assert session.bye and session.bye["code"] == 4505 and session.bye["detail"]


async def test_a_cursor_that_is_too_old_is_answered_with_a_gap_and_what_is_kept(new_server):
    server = new_server("store.stream_ttl_s=3")
    phone = Phone.new(server)
    async with Business(server.url, server.demo_key) as demo:
        await demo.say_all(phone.number, ["first", "second"])
        first, _ = await phone.fetch(2, **START)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            await asyncio.sleep(1)
            kept = await demo.say(phone.number, "kept")
            await demo.message(kept)
            async with await phone.connect(after=first["cursor"]) as session:
                frames = await session.until("caught_up")
            if frames[0]["op"] == "gap":
                break
        gap, *messages, _ = frames
        assert gap["op"] == "gap" and gap["reason"] == "too_old" and gap["oldest"]
        assert messages and all(frame["op"] == "message" for frame in messages)
        assert kept in [message["id"] for message in await phone.fetch(len(messages), after=gap["oldest"])]
        await phone.fetch(0, after=messages[-1]["cursor"])


async def test_a_cursor_that_this_server_never_sent_is_past_its_head(new_server):
    ahead, behind = new_server(), new_server()
    phone = Phone.new(ahead)
    async with Business(ahead.url, ahead.demo_key) as demo:
        await demo.say_all(phone.number, [f"message {n}" for n in range(10)])
    cursor = (await phone.fetch(10, **START))[-1]["cursor"]

    same = Phone(behind.ws_url, phone.number, behind.token(phone.number))
    async with Business(behind.url, behind.demo_key) as demo:
        await demo.say(phone.number, "only one")
        async with await same.connect(after=cursor) as session:
            gap = await session.expect("gap")
            assert gap["reason"] == "past_head"
            assert contents(await session.messages(1)) == ["only one"]
            await demo.say(phone.number, "live again")
            assert contents(await session.messages(1)) == ["live again"]
            await session.nothing_else()


async def test_a_cursor_of_a_log_that_was_replaced_is_of_another_epoch(new_server):
    server = new_server()
    phone = Phone.new(server)
    async with Business(server.url, server.demo_key) as demo:
        ids = await demo.say_all(phone.number, [f"message {n}" for n in range(5)])
        messages = await phone.fetch(5, **START)
        assert [message["id"] for message in messages] == ids
        server.stop()
        for file in server.data_dir.glob("log.db*"):
            file.unlink()
        server.start()
        async with await phone.connect(after=messages[-1]["cursor"]) as session:
            gap = await session.expect("gap")
            assert gap["reason"] == "other_epoch"
            await session.until("caught_up")
            await demo.say(phone.number, "in the new log")
            assert contents(await session.messages(1)) == ["in the new log"]
            await session.silence()


async def test_after_and_from_together_are_refused(phone: Phone):
    async with await phone.dial() as session:
        await session.send("hello", after="AQECAAAA", **{"from": "start"})
        assert await session.closed() == 4505
