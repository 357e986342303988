"""The life of a session: how it opens, what it refuses, what keeps it open, how it closes."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import pytest
from websockets.exceptions import InvalidStatus

from business import Business
from phone import START, Phone, contents
from server import Server

WINDOW = 256
BAD_FRAMES = {
    "not JSON": "hello",
    "an array": "[]",
    "a number": "7",
    "no op": "{}",
    "an op that is not text": '{"op": 5}',
    "an unknown op": '{"op": "shout"}',
    "an ack of nothing": '{"op": "ack"}',
    "an ack of both": '{"op": "ack", "cursor": "AQEAAAAA", "ids": []}',
    "ids that are no list": '{"op": "ack", "ids": "019a"}',
    "more ids than a frame may have": json.dumps({"op": "ack", "ids": ["019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa"] * 257}),
    "ids that are no ids": '{"op": "read", "ids": ["x"]}',
    "a renewal without a token": '{"op": "renew"}',
    "half an object": '{"op": "ping"',
    "two objects": '{"op": "ping"}{"op": "ping"}',
    "a deep one": '{"op": "ping", "x": ' + "[" * 5_000 + "]" * 5_000 + "}",
}


async def refused(phone: Phone, **options) -> tuple[int, str]:
    """Status and code of an upgrade that is refused."""
    with pytest.raises(InvalidStatus) as refusal:
        await phone.dial(**options)
    response = refusal.value.response
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, json.loads(response.body)["code"]


async def test_an_upgrade_needs_the_subprotocol(phone: Phone):
    assert await refused(phone, subprotocols=None) == (400, "subprotocol_required")
    assert await refused(phone, subprotocols=["mqtt"]) == (400, "subprotocol_required")
    async with await phone.dial(subprotocols=["mqtt", "eshaar.v1.json"]) as session:
        assert session.socket.subprotocol == "eshaar.v1.json"


async def test_an_upgrade_needs_a_valid_credential(phone: Phone):
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Basic {phone.token}"}):
        assert await refused(phone, additional_headers=headers) == (401, "unauthenticated")
    assert await refused(phone, additional_headers={}, url=f"{phone.url}?access_token=x") == (401, "unauthenticated")


async def test_a_plain_request_is_told_to_upgrade(demo: Business):
    answer = await demo.http.get("/v1/ws")
    assert answer.status_code == 426 and answer.json()["code"] == "upgrade_required"


async def test_a_credential_may_be_offered_as_a_subprotocol_and_is_not_answered(demo: Business, phone: Phone, server: Server):
    for credential, who in ((phone.token, phone.number), (server.demo_key, "demo")):
        encoded = base64.urlsafe_b64encode(credential.encode()).decode().rstrip("=")
        offered = ["eshaar.v1.json", f"eshaar.token.{encoded}"]
        async with await phone.dial(additional_headers={}, subprotocols=offered) as session:
            assert session.socket.subprotocol == "eshaar.v1.json"
            await session.send("hello")
            assert (await session.expect("welcome"))["principal"] == who
    assert server.demo_key not in server.log_path.read_text()


async def test_an_api_key_may_not_be_in_the_query(phone: Phone, server: Server):
    url = f"{phone.url}?access_token={server.demo_key}"
    assert await refused(phone, additional_headers={}, url=url) == (400, "key_in_query")


async def test_a_token_may_be_in_the_query(demo: Business, phone: Phone):
    async with await phone.dial(additional_headers={}, url=f"{phone.url}?access_token={phone.token}") as session:
        await session.send("hello")
        assert (await session.expect("welcome"))["principal"] == phone.number


async def test_a_client_that_never_says_hello_is_closed(phone: Phone):
    async with await phone.dial() as session:
        assert await session.closed(limit_s=15) == 4501


async def test_another_op_before_hello_is_refused(phone: Phone):
    async with await phone.dial() as session:
        await session.send("ack", ids=[])
        assert await session.closed() == 4505


async def test_a_second_hello_is_refused(phone: Phone):
    async with await phone.connect_empty() as session:
        await session.send("hello")
        assert await session.closed() == 4508
        assert session.bye and session.bye["reason"] == "already_greeted"


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
async def test_a_bad_frame_closes_the_session_and_says_what_was_wrong(phone: Phone, frame: str):
    async with await phone.connect_empty() as session:
        await session.send_text(frame)
        assert await session.closed() == 4505
        assert session.bye and session.bye["reason"] == "bad_frame" and session.bye["detail"]


async def test_a_binary_frame_is_refused(phone: Phone):
    async with await phone.connect_empty() as session:
        await session.send_text(b'{"op": "ping"}')
        assert await session.closed() == 4511


async def test_a_frame_that_is_too_large_is_refused_under_its_ref_and_the_session_goes_on(phone: Phone):
    async with await phone.connect_empty() as session:
        await session.send("send", to="demo", content="x" * 200_000, ref="r-1")
        error = await session.expect("error")
        assert (error["code"], error["ref"], error["temporary"]) == ("frame_too_large", "r-1", False)
        await session.send("ping")
        await session.expect("pong")


async def test_a_frame_that_is_far_too_large_closes_the_session(phone: Phone):
    async with await phone.connect_empty() as session:
        await session.send("ping", padding="x" * 2_000_000)
        assert await session.closed() == 4510


async def test_a_client_that_sends_too_many_frames_is_closed(phone: Phone):
    async with await phone.connect_empty() as session:

        async def flood() -> None:
            for _ in range(100_000):
                await session.send("ping")
                await asyncio.sleep(0)  # or this client would never read

        flooding = asyncio.create_task(flood())
        assert await session.closed(limit_s=30) == 4010
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def test_a_principal_has_a_bounded_number_of_sessions(phone: Phone):
    sessions = [await phone.connect_empty() for _ in range(16)]
    try:
        async with await phone.dial() as extra:
            assert await extra.closed() == 4512
    finally:
        await asyncio.gather(*(session.socket.close() for session in sessions))
    async with await phone.connect_empty():
        pass  # room again


async def test_ping_is_answered(phone: Phone):
    async with await phone.connect_empty() as session:
        for _ in range(3):
            await session.send("ping")
            assert await session.frame() == {"op": "pong"}


async def test_what_is_not_known_in_a_frame_is_passed_over_and_its_order_means_nothing(phone: Phone):
    async with await phone.dial() as session:
        await session.send_text('{"device": "x", "colour": {"red": [1]}, "from": "start", "op": "hello"}')
        await session.expect("welcome")
        await session.expect("caught_up")


async def test_ping_and_renew_may_come_before_hello(server, phone: Phone):
    async with await phone.dial() as session:
        await session.send("ping")
        await session.expect("pong")
        await session.send("renew", access_token=server.token(phone.number))
        await session.expect("renewed")
        await session.send("hello")
        await session.expect("welcome")


async def test_a_business_has_no_stream_to_acknowledge(server, demo: Business):
    async with await Phone(server.ws_url, "demo", demo.key).connect() as session:
        await session.expect("caught_up")
        await session.send("ack", cursor="AQEAAAAA")
        while (frame := await session.frame())["op"] in ("status", "message", "conversation"):
            pass  # of other tests
        assert frame["op"] == "error" and frame["code"] == "not_a_recipient"


async def test_only_a_window_of_messages_is_under_way_unacknowledged(demo: Business, phone: Phone):
    texts = [f"message {n}" for n in range(WINDOW * 2 + 10)]
    answer = await demo.bulk({"to": phone.number, "type": "one_way", "content": text} for text in texts)
    assert answer[-1] == {"accepted": len(texts), "rejected": 0}
    async with await phone.connect(**START) as session:
        received = await session.messages(WINDOW)
        await session.silence()
        await session.send("ack", cursor=received[9]["cursor"])
        received += await session.messages(10)
        await session.silence()
        await session.send("ack", cursor=received[-1]["cursor"])
        received += await session.messages(WINDOW - 10)
        await session.send("ack", ids=[message["id"] for message in received[WINDOW + 10 :]])
        received += await session.messages(len(texts) - len(received))
        await session.nothing_else()
        assert contents(received) == texts


async def test_a_renewed_token_keeps_the_session_open(server, demo: Business, phone: Phone):
    phone.token = server.token(phone.number, ttl_s=2)
    async with await phone.connect_empty() as session:
        await session.send("renew", access_token=server.token(phone.number, ttl_s=600))
        renewed = await session.expect("renewed")
        assert renewed["expires_at"].endswith("Z")
        await session.silence(seconds=9)
        await demo.say(phone.number, "still here")
        await session.messages(1)


async def test_a_session_whose_token_expires_is_closed(server, phone: Phone):
    began = time.monotonic()
    phone.token = server.token(phone.number, ttl_s=3)
    async with await phone.connect_empty() as session:
        assert await session.closed() == 4503
        assert session.bye and session.bye["reason"] == "token_expired"
    assert time.monotonic() - began > 2


async def test_a_renewal_must_be_valid_and_of_the_same_principal(server, phone: Phone):
    for token in ("nonsense", server.token("+966511111111"), server.token(phone.number, ttl_s=-3600), server.demo_key):
        async with await phone.connect_empty() as session:
            await session.send("renew", access_token=token)
            assert await session.closed() == 4504


async def test_a_server_that_stops_says_goodbye_and_when_to_come_back(new_server):
    server = new_server()
    phone = Phone.new(server)
    async with await phone.connect_empty() as session:
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        assert await session.closed() == 4001
        assert session.bye and session.bye["reason"] == "shutting_down"
        assert session.bye["reconnect_after_ms"] >= 0
        assert await stopping == 0
