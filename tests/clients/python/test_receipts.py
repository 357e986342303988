"""Acks and reads, and what the sender is told of them."""

from __future__ import annotations

from business import Business
from phone import START, Phone, Session, contents
from server import new_business


def business_session(business: Business, server) -> Phone:
    """A business connects as a phone does, with its API key."""
    return Phone(server.ws_url, "demo", business.key)


async def status_of(session: Session, id: str) -> dict:
    """The next status frame about this message; other tests' messages are passed over."""
    while (frame := await session.expect("status"))["id"] != id:
        pass
    return frame


async def test_an_ack_of_a_cursor_delivers_everything_up_to_it(demo: Business, phone: Phone):
    ids = await demo.say_all(phone.number, ["one", "two", "three"])
    async with await phone.connect(**START) as session:
        messages = await session.messages(3)
        await session.send("ack", cursor=messages[1]["cursor"])
        for id in ids[:2]:
            message = await demo.reaches(id, "delivered")
            assert [step["step"] for step in message["timeline"]] == ["sent", "delivered"]
        assert (await demo.message(ids[2]))["status"] == "sent"


async def test_an_ack_of_ids_delivers_those(demo: Business, phone: Phone):
    ids = await demo.say_all(phone.number, ["one", "two", "three"])
    async with await phone.connect(**START) as session:
        await session.messages(3)
        await session.send("ack", ids=[ids[1]])
        await demo.reaches(ids[1], "delivered")
        assert (await demo.message(ids[0]))["status"] == "sent"
        assert (await demo.message(ids[2]))["status"] == "sent"


async def test_delivery_goes_on_behind_what_was_acknowledged(demo: Business, phone: Phone):
    ids = await demo.say_all(phone.number, ["one", "two", "three"])
    async with await phone.connect(**START) as session:
        messages = await session.messages(3)
        await session.send("ack", cursor=messages[1]["cursor"])
        await demo.reaches(ids[1], "delivered")
    assert contents(await phone.fetch(1)) == ["three"]


async def test_an_ack_out_of_order_does_not_skip_what_was_not_acknowledged(demo: Business, phone: Phone):
    ids = await demo.say_all(phone.number, ["one", "two", "three"])
    async with await phone.connect(**START) as session:
        await session.messages(3)
        await session.send("ack", ids=[ids[2]])
        await demo.reaches(ids[2], "delivered")
    async with await phone.connect() as session:
        assert contents(await session.messages(2)) == ["one", "two"]
        await session.send("ack", ids=ids[:2])
        await demo.reaches(ids[1], "delivered")


async def test_a_cursor_in_hello_is_a_receipt(demo: Business, phone: Phone):
    ids = await demo.say_all(phone.number, ["one", "two"])
    messages = await phone.fetch(2, **START)
    assert (await demo.message(ids[0]))["status"] == "sent", "no ack yet"
    await phone.fetch(1, after=messages[0]["cursor"])
    await demo.reaches(ids[0], "delivered")
    assert (await demo.message(ids[1]))["status"] == "sent"


async def test_a_read_makes_a_message_read_and_delivered(demo: Business, phone: Phone):
    async with await phone.connect_empty() as session:
        id = await demo.say(phone.number, "read me")
        await session.messages(1)
        await session.send("read", ids=[id])
        message = await demo.reaches(id, "read")
        assert {step["step"] for step in message["timeline"]} >= {"sent", "read"}


async def test_a_phone_may_read_over_http(demo: Business, phone: Phone):
    id = await demo.say(phone.number, "read me")
    await demo.message(id)
    async with Business(demo.url, phone.token) as user:
        answer = await user.http.post(f"/v1/messages/{id}/read")
        assert answer.is_success, answer.text
        again = await user.http.post(f"/v1/messages/{id}/read")
        assert again.status_code == answer.status_code
    await demo.reaches(id, "read")


async def test_repeated_and_foreign_receipts_change_nothing(demo: Business, phone: Phone, server):
    other = Phone.new(server)
    foreign = await demo.say(other.number, "not yours")
    async with await phone.connect_empty() as session:
        id = await demo.say(phone.number, "yours")
        [message] = await session.messages(1)
        for _ in range(3):
            await session.send("ack", cursor=message["cursor"])
            await session.send("ack", ids=[id, foreign, "019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa"])
            await session.send("read", ids=[foreign])
        delivered = await demo.reaches(id, "delivered")
        await session.send("ping")
        await session.expect("pong")
    assert (await demo.message(foreign))["status"] == "sent"
    assert (await demo.message(id))["timeline"] == delivered["timeline"], "the first time of each step stands"


async def test_a_sender_is_told_live_of_each_step(demo: Business, phone: Phone, server):
    async with await business_session(demo, server).connect() as sender, await phone.connect_empty() as session:
        await sender.expect("caught_up")
        id = await demo.say(phone.number, "hello")
        [message] = await session.messages(1)
        await session.send("ack", cursor=message["cursor"])
        status = await status_of(sender, id)
        assert status["status"] == "delivered" and status["at"].endswith("Z")
        await session.send("read", ids=[id])
        status = await status_of(sender, id)
        assert status["status"] == "read"
        timeline = {step["step"]: step["at"] for step in (await demo.reaches(id, "read"))["timeline"]}
        assert timeline["read"] == status["at"]


async def test_a_business_is_not_told_of_anothers_messages(demo: Business, phone: Phone, server):
    name = new_business()
    acme = Phone(server.ws_url, name, server.new_key(name))
    async with await acme.connect() as watching, await phone.connect_empty() as session:
        await watching.expect("caught_up")
        await demo.say(phone.number, "hello")
        [message] = await session.messages(1)
        await session.send("ack", cursor=message["cursor"])
        await demo.reaches(message["id"], "delivered")
        await watching.silence()
