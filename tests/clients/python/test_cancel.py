"""What a sender is promised of a message that it takes back: what was not delivered yet is not delivered."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from business import Business
from phone import START, Phone, Session, contents
from server import Server


async def cancel(business: Business, id: str) -> httpx.Response:
    """Asks to take a message back; whatever the answer is."""
    return await business.http.post(f"/v1/messages/{id}/cancel")


async def take_back(business: Business, id: str) -> None:
    """Takes a message back, and waits until history says so: by then every process has read it."""
    answer = await cancel(business, id)
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == id and answer.json()["status"] == "cancelled"
    await business.reaches(id, "cancelled")


async def test_what_was_taken_back_is_not_shown_to_a_phone_that_comes_later(demo: Business, phone: Phone):
    [_, unwanted, _] = await demo.say_all(phone.number, ["first", "unwanted", "second"])
    # It stands in the stream already when it is taken back.
    assert contents(await phone.fetch(3, **START)) == ["first", "unwanted", "second"]
    await take_back(demo, unwanted)
    messages = await phone.fetch(2, **START)
    assert contents(messages) == ["first", "second"]

    stream = httpx.get(f"{demo.url}/v1/stream", headers={"Authorization": f"Bearer {phone.token}"}, trust_env=False)
    assert contents(stream.json()["messages"]) == ["first", "second"] and stream.json()["gap"] is None

    await demo.say(phone.number, "third")
    # A cursor before it, and one behind it, are no gaps, and it comes with neither.
    assert contents(await phone.fetch(2, after=messages[0]["cursor"])) == ["second", "third"]
    assert contents(await phone.fetch(1, after=messages[1]["cursor"])) == ["third"]
    timeline = (await demo.message(unwanted))["timeline"]
    assert [step["step"] for step in timeline] == ["sent", "cancelled"], "a cursor behind it is no receipt for it"


async def test_a_session_goes_on_over_what_was_taken_back(demo: Business, phone: Phone):
    async with await phone.connect_empty() as session:
        await demo.say(phone.number, "first")
        await session.messages(1)
    unwanted = await demo.say(phone.number, "unwanted")
    await take_back(demo, unwanted)
    async with await phone.connect(**START) as session:
        assert contents((await session.until("caught_up"))[:-1]) == ["first"]
        await demo.say(phone.number, "second")
        assert contents(await session.messages(1)) == ["second"]
        await session.nothing_else()


async def test_a_repeat_answers_the_first_time(demo: Business, phone: Phone):
    id = await demo.say(phone.number, "unwanted")
    first = await cancel(demo, id)
    await demo.reaches(id, "cancelled")
    again = await cancel(demo, id)
    assert (again.status_code, again.json()) == (200, first.json())


async def test_what_was_delivered_cannot_be_taken_back(demo: Business, phone: Phone):
    async with await phone.connect_empty() as session:
        id = await demo.say(phone.number, "hello")
        [message] = await session.messages(1)
        await session.send("ack", cursor=message["cursor"])
        await demo.reaches(id, "delivered")
        answer = await cancel(demo, id)
        assert (answer.status_code, answer.json()["code"]) == (409, "already_delivered")
        await session.send("read", ids=[id])
        await demo.reaches(id, "read")
        answer = await cancel(demo, id)
        assert (answer.status_code, answer.json()["code"]) == (409, "already_read")


async def test_only_its_sender_takes_a_message_back(demo: Business, phone: Phone, server: Server):
    id = await demo.say(phone.number, "wanted")
    async with Business(server.url, server.new_key("another-bank", "messages:send")) as other:
        assert (await cancel(other, id)).status_code == 404
    assert contents(await phone.fetch(1, **START)) == ["wanted"]


async def test_taken_back_while_it_is_under_way_it_is_either_cancelled_or_delivered(demo: Business, phone: Phone):
    """However the two race, what the phone has seen and what the sender is told agree."""
    seen: set[str] = set()
    ids, answers = [], []

    async def receive(session: Session) -> None:
        while True:
            frame = await session.frame(limit_s=30)
            if frame["op"] == "message":
                seen.add(frame["id"])
                await session.send("ack", cursor=frame["cursor"])
                if frame["content"] == "the last":
                    await session.nothing_else()
                    return

    async with await phone.connect_empty() as session:
        receiving = asyncio.create_task(receive(session))
        for number in range(60):
            id = await demo.say(phone.number, "maybe")
            # From well before it can have arrived to well after.
            await asyncio.sleep(0.0005 * (number % 20))
            ids.append(id)
            answers.append(await cancel(demo, id))
        await demo.say(phone.number, "the last")
        await receiving
    for id, answer in zip(ids, answers, strict=True):
        assert answer.status_code == 200 or answer.json()["code"] == "already_delivered", answer.text
        assert id in seen or answer.status_code == 200, "neither delivered nor cancelled"
        await demo.reaches(id, "delivered" if id in seen else "cancelled")


@pytest.mark.timeout(120)
async def test_a_cancellation_outlives_the_process(new_server):
    server: Server = new_server()
    phone = Phone.new(server)
    async with Business(server.url, server.demo_key) as business:
        [unwanted, _] = await business.say_all(phone.number, ["unwanted", "wanted"])
        assert (await cancel(business, unwanted)).status_code == 200
    server.kill()
    server.start()
    phone.url = server.ws_url
    async with Business(server.url, server.demo_key) as business:
        await business.reaches(unwanted, "cancelled")
        assert contents(await phone.fetch(1, **START)) == ["wanted"]


async def test_the_sender_is_told_live(demo: Business, phone: Phone, server: Server):
    office = Phone(server.ws_url, "demo", server.demo_key)
    async with await office.connect_empty() as session:
        id = await demo.say(phone.number, "unwanted")
        await take_back(demo, id)
        while (frame := await session.frame())["id"] != id:
            assert frame["op"] == "status"
        assert (frame["op"], frame["status"]) == ("status", "cancelled")
