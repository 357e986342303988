"""R9.3: a business is told by signed requests what becomes of its messages, through failures and crashes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from standardwebhooks import WebhookVerificationError

from business import Business
from phone import Phone
from receiver import RANK, Receiver
from server import Server


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    receiver = Receiver(tmp_path)
    yield receiver
    receiver.close()


@pytest.fixture
def told(new_server: Callable[..., Server], receiver: Receiver) -> Server:
    """A server that may reach this machine, and trusts the receiver's certificate."""
    return new_server(
        "webhooks.allow_private=true", f'webhooks.ca_file="{receiver.ca_file}"', "stages.webhooks.known_for_ms=200"
    )


async def subscribe(business: Business, receiver: Receiver) -> str:
    """Makes a webhook there; its id."""
    answer = await business.http.post("/v1/webhooks", json={"url": receiver.url})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    receiver.secrets.append(made["secret"])
    return made["id"]


async def ack_all(phone: Phone, count: int, read: bool) -> list[str]:
    """A phone takes so many messages, acknowledges them and opens them; their ids."""
    async with await phone.connect() as session:
        messages = await session.messages(count)
        await session.send("ack", cursor=messages[-1]["cursor"])
        if read:
            await session.send("read", ids=[message["id"] for message in messages])
        await session.nothing_else()
    return [message["id"] for message in messages]


async def test_property_03_what_a_receiver_shows_only_moves_forward(told: Server, receiver: Receiver):
    phone = Phone.new(told)
    async with Business(told.url, told.demo_key) as business:
        await subscribe(business, receiver)
        ids = await business.say_all(phone.number, [str(number) for number in range(100)])
        assert await ack_all(phone, 100, read=True) == ids
        await receiver.until(lambda: list(receiver.shown.values()).count("read") == 100)
        for id in ids:
            ranks = [RANK[status] for status in receiver.history[id]]
            assert ranks == sorted(set(ranks)), receiver.history[id]
            assert (await business.message(id))["status"] == "read"


async def test_a_receiver_that_fails_or_sleeps_misses_nothing_through_a_crash(told: Server, receiver: Receiver):
    phone = Phone.new(told)
    async with Business(told.url, told.demo_key) as business:
        await subscribe(business, receiver)
        receiver.status = 503
        ids = await business.say_all(phone.number, [str(number) for number in range(50)])
        await ack_all(phone, 50, read=False)
        for id in ids:
            await business.reaches(id, "delivered")
        await receiver.until(lambda: len(receiver.requests) > 0)
    assert not receiver.shown
    told.kill()
    receiver.status = 204
    told.start()
    await receiver.until(lambda: list(receiver.shown.values()).count("delivered") == 50)
    assert receiver.shown == {id: "delivered" for id in ids}
    first_tries = {headers["webhook-id"]: body for headers, body in reversed(receiver.requests)}
    assert all(first_tries[headers["webhook-id"]] == body for headers, body in receiver.requests)


async def test_every_step_that_the_api_shows_is_told_once_and_in_order(told: Server, receiver: Receiver):
    online, away = Phone.new(told), Phone.new(told)
    async with Business(told.url, told.demo_key) as business:
        await subscribe(business, receiver)
        read = await business.say(online.number, "one")
        assert await ack_all(online, 1, read=True) == [read]
        expired = await business.say(away.number, "two", ttl_s=1)
        cancelled = await business.say(away.number, "three")
        assert (await business.http.post(f"/v1/messages/{cancelled}/cancel")).status_code == 200
        broadcast = (
            await business.http.post("/v1/broadcasts", json={"to": [away.number], "content": "four", "ttl_s": 2})
        ).json()["id"]
        last = {read: "read", expired: "expired", cancelled: "cancelled"}

        def events() -> dict[str, list[str]]:
            steps: dict[str, list[str]] = {}
            for headers, _ in list(receiver.requests):
                id, step = headers["webhook-id"].split(".")
                steps.setdefault(id, []).append(step)
            return steps

        # The broadcast's message is the fourth.
        await receiver.until(lambda: [steps[-1] for steps in events().values()].count("expired") == 2)
        await receiver.until(lambda: all(events()[id][-1] == step for id, step in last.items()))
        for id, steps in events().items():
            shown = await business.message(id)
            assert steps[0] == "sent" and steps[-1] == shown["status"] == last.get(id, "expired")
            assert sorted(steps, key=RANK.__getitem__) == steps and len(set(steps)) == len(steps)
            assert {step["step"] for step in shown["timeline"]} == set(steps)

        async def progress() -> dict:
            return (await business.http.get(f"/v1/broadcasts/{broadcast}")).json()["progress"]

        async with asyncio.timeout(30):
            while (await progress())["expired"] != 1:
                await asyncio.sleep(0.05)


async def test_both_secrets_sign_after_a_rotation_and_another_does_not(told: Server, receiver: Receiver):
    phone = Phone.new(told)
    async with Business(told.url, told.demo_key) as business:
        id = await subscribe(business, receiver)
        rotated = (await business.http.post(f"/v1/webhooks/{id}/rotate-secret")).json()
        receiver.secrets.append(rotated["secret"])
        # Until every part of the server has looked it up again.
        for number in range(100):
            await business.say(phone.number, str(number))
            await ack_all(phone, 1, read=False)
            await receiver.until(lambda number=number: len(receiver.requests) > number)
            if len(receiver.requests[-1][0]["webhook-signature"].split()) == 2:
                break
        headers, body = receiver.requests[-1]
        for secret in receiver.secrets:
            receiver.verified(secret, headers, body)
        with pytest.raises(WebhookVerificationError):
            receiver.verified("whsec_" + "A" * 43 + "=", headers, body)
        with pytest.raises(WebhookVerificationError):
            receiver.verified(rotated["secret"], headers, body.replace(b"message.", b"massage."))


async def test_one_that_is_gone_is_disabled_and_may_be_enabled(told: Server, receiver: Receiver):
    phone = Phone.new(told)
    async with Business(told.url, told.demo_key) as business:
        id = await subscribe(business, receiver)
        receiver.status = 410
        await business.say(phone.number, "one")
        await ack_all(phone, 1, read=False)
        await receiver.until(lambda: len(receiver.requests) == 1)

        async def shown() -> dict:
            return (await business.http.get("/v1/webhooks")).json()["webhooks"][0]

        while (webhook := await shown())["state"] == "enabled":
            pass
        assert webhook["disabled_reason"] == "it answered 410 Gone"
        assert (await business.http.post(f"/v1/webhooks/{id}/enable")).json()["state"] == "enabled"
        receiver.status = 204
        assert (await business.http.delete(f"/v1/webhooks/{id}")).status_code == 204
        assert (await business.http.get("/v1/webhooks")).json() == {"webhooks": []}


async def test_our_own_network_is_refused_by_default(server: Server, receiver: Receiver):
    async with Business(server.url, server.demo_key) as business:
        answer = await business.http.post("/v1/webhooks", json={"url": receiver.url})
        assert answer.status_code == 400 and answer.json()["code"] == "invalid_url"
