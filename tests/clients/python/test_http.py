"""The HTTP API as a business and a phone use it: single messages, bulk, lists, the stream, and the errors."""

from __future__ import annotations

import gzip
import itertools
import json
import uuid

import httpx
import pytest
import zstandard

from business import Business
from phone import START, Phone, contents
from server import new_business, new_phone

ENCODINGS = {
    "plain": (None, None),
    "gzip": ("gzip", gzip.compress),
    "zstd": ("zstd", lambda body: zstandard.ZstdCompressor().compress(body)),
}


def line(to: str, content: str, **fields) -> dict:
    """One message, as a line of a bulk request."""
    return {"to": to, "type": "one_way", "content": content} | fields


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict:
    """The problem that an answer must be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status and body["code"] and body["detail"] and body["title"]
    assert code is None or body["code"] == code, body
    return body


# --- one message ----------------------------------------------------------------------------------------------------


async def test_a_message_has_a_timeline(demo: Business, phone: Phone):
    id = await demo.say(phone.number, "hello", reference="order-7")
    message = await demo.message(id)
    assert message["status"] == "sent" and message["to"] == phone.number and message["reference"] == "order-7"
    [sent] = message["timeline"]
    assert sent["step"] == "sent" and sent["at"] == message["sent_at"]
    async with await phone.connect(**START) as session:
        [received] = await session.messages(1)
        await session.send("read", ids=[received["id"]])
        message = await demo.reaches(id, "read")
    times = [step["at"] for step in message["timeline"]]
    assert times == sorted(times)


async def test_a_changed_body_under_a_used_key_is_refused(demo: Business, phone: Phone):
    key = str(uuid.uuid4())
    first = await demo.post(phone.number, "pay 5", key=key)
    assert first.status_code == 202
    problem(await demo.post(phone.number, "pay 6", key=key), 422, "idempotency_mismatch")
    repeat = await demo.post(phone.number, "pay 5", key=key)
    assert repeat.headers["Idempotency-Replayed"] == "true" and repeat.json() == first.json()


async def test_keys_of_two_businesses_do_not_meet(demo: Business, phone: Phone, server):
    async with Business(server.url, server.new_key(new_business())) as acme:
        ids = {await business.say(phone.number, "hello", key="invoice-1-" + phone.number) for business in (demo, acme)}
    assert len(ids) == 2


async def test_a_business_sees_only_its_own(demo: Business, phone: Phone, server):
    id = await demo.say(phone.number, "hello")
    await demo.message(id)
    async with Business(server.url, server.new_key(new_business())) as acme:
        problem(await acme.http.get(f"/v1/messages/{id}"), 404, "message_not_found")
        assert (await acme.list())["messages"] == []


PHONE = "+966512345678"
REFUSED = {
    "no content": ({"to": PHONE, "type": "one_way"}, "missing_field"),
    "no recipient": ({"type": "one_way", "content": "x"}, "missing_field"),
    "too long": (line(PHONE, "x" * 10_001), "content_too_long"),
    "empty": (line(PHONE, ""), "content_empty"),
    "nothing visible": (line(PHONE, " \u200b\u2800\u3164"), "content_empty"),
    "a trunk prefix": (line("+9660501234567", "x"), "invalid_phone"),
    "content that is no text": ({"to": PHONE, "content": 5}, "wrong_type"),
    "not a phone": (line("0512345678", "x"), "invalid_phone"),
    "a short phone": (line("+96651234", "x"), "invalid_phone"),
    "an unknown type": (line(PHONE, "x", type="fax"), "invalid_type"),
    "an unknown priority": (line(PHONE, "x", priority="urgent"), "invalid_priority"),
    "an unknown field": (line(PHONE, "x", colour="red"), "unknown_field"),
    "no time to live": (line(PHONE, "x", ttl_s=0), "invalid_ttl"),
    "too long to live": (line(PHONE, "x", ttl_s=30 * 86_400 + 1), "invalid_ttl"),
    "a long reference": (line(PHONE, "x", reference="r" * 129), "invalid_reference"),
    "a long collapse key": (line(PHONE, "x", collapse_key="k" * 65), "invalid_collapse_key"),
    "chat with a priority": (line(PHONE, "x", type="chat", priority="high"), "chat_priority"),
    "a conversation of a one-way message": (line(PHONE, "x", conversation_id=str(uuid.uuid4())), "one_way_in_conversation"),
    "a time too far ahead": (line(PHONE, "x", send_at="2999-01-01T00:00:00Z"), "invalid_send_at"),
    "a time without an offset": (line(PHONE, "x", send_at="2026-01-01T00:00:00"), "invalid_send_at"),
    "media": (line(PHONE, "x", media=[{"id": "a"}]), "media_unavailable"),
}


@pytest.mark.parametrize(("body", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_message_that_breaks_a_rule_is_refused(demo: Business, body: dict, code: str):
    detail = problem(await demo.http.post("/v1/messages", json=body), 400, code)
    assert detail["field"]
    *results, total = await demo.bulk([body])
    assert results[0]["error"]["code"] == code and total == {"accepted": 0, "rejected": 1}


NO_MESSAGES = {
    "nothing": b"",
    "half": b"{",
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'"\xff\xfe"',
    "a deep one": b"[" * 10_000,
}


@pytest.mark.parametrize("body", NO_MESSAGES.values(), ids=NO_MESSAGES.keys())
async def test_a_body_that_is_no_message_is_refused(demo: Business, body: bytes):
    problem(await demo.http.post("/v1/messages", content=body, headers={"Content-Type": "application/json"}), 400)


async def test_errors_have_a_stable_code(demo: Business):
    message, unknown = line(PHONE, "x"), "/v1/messages/019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa"

    async def posted(headers: dict, **body) -> httpx.Response:
        return await demo.http.post("/v1/messages", headers=headers, **body)

    problem(await posted({"Authorization": ""}, json=message), 401, "unauthenticated")
    problem(await demo.http.get(unknown), 404, "message_not_found")
    problem(await demo.http.get("/v1/nothing"), 404, "no_such_path")
    problem(await demo.http.delete("/v1/messages"), 405, "method_not_allowed")
    problem(await posted({"Content-Type": "text/xml"}, content=b"{}"), 415, "content_type_unsupported")
    problem(await posted({}, json=line(PHONE, "x" * 2_000_000)), 413, "body_too_large")
    problem(await posted({"Idempotency-Key": "k" * 129}, json=message), 400, "invalid_idempotency_key")
    problem(await posted({"X-Correlation-Id": "c" * 65}, json=message), 400, "invalid_correlation_id")


async def test_a_client_that_writes_before_it_reads_sees_why_it_was_refused(demo: Business):
    for headers, status in (({"Authorization": ""}, 401), ({"Content-Type": "text/plain"}, 415)):
        headers = {"Content-Type": "application/x-ndjson"} | headers
        problem(await demo.http.post("/v1/messages/bulk", content=b"\n" * 8_000_000, headers=headers), status)


async def test_a_phone_may_not_send_and_a_business_has_no_stream(demo: Business, phone: Phone):
    async with Business(demo.url, phone.token) as user:
        problem(await user.post(phone.number, "hello"), 403, "permission_missing")
    problem(await demo.http.get("/v1/stream"), 403, "phone_only")


async def test_a_correlation_id_comes_back(demo: Business, phone: Phone):
    headers = {"X-Correlation-Id": "checkout-4711"}
    answer = await demo.http.post("/v1/messages", json=line(phone.number, "hello"), headers=headers)
    assert answer.headers["X-Correlation-Id"] == "checkout-4711"


# --- bulk -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
async def test_a_bulk_request_has_a_result_for_every_line(demo: Business, phone: Phone, encoding):
    texts = [f"message {n}" for n in range(1_000)]
    *results, total = await demo.bulk((line(phone.number, text) for text in texts), *encoding)
    assert total == {"accepted": 1_000, "rejected": 0}
    assert [result["line"] for result in results] == list(range(1, 1_001))
    received = []
    async with await phone.connect(**START) as session:
        while len(received) < 1_000:
            received += await session.messages(min(100, 1_000 - len(received)))
            await session.send("ack", cursor=received[-1]["cursor"])
    assert contents(received) == texts
    assert [message["id"] for message in received] == [result["id"] for result in results]


@pytest.mark.parametrize("encoding", ENCODINGS.values(), ids=ENCODINGS.keys())
async def test_a_bad_line_does_not_fail_the_rest(demo: Business, phone: Phone, encoding):
    bad = ["not json", "{}", "[1]", json.dumps(line("123", "x")), json.dumps(line(phone.number, "x" * 10_001))]
    good = [json.dumps(line(phone.number, f"message {n}")) for n in range(len(bad))]
    body = "\n".join(itertools.chain.from_iterable(zip(good, bad, strict=True))).encode()
    name, encode = encoding
    headers = {"Content-Type": "application/x-ndjson"} | ({"Content-Encoding": name} if name else {})
    answer = await demo.http.post("/v1/messages/bulk", content=encode(body) if encode else body, headers=headers)
    assert answer.status_code == 200
    *results, total = [json.loads(text) for text in answer.text.splitlines()]
    assert total == {"accepted": 5, "rejected": 5}
    for place, result in enumerate(results):
        assert result["line"] == place + 1
        assert ("id" in result) == (place % 2 == 0)
        assert ("error" in result) == (place % 2 == 1)
    assert all(result["error"]["code"] and result["error"]["detail"] for result in results[1::2])
    assert contents(await phone.fetch(5, **START)) == [f"message {n}" for n in range(5)]


async def test_a_bulk_request_repeated_with_its_key_is_sent_once(demo: Business, phone: Phone):
    body = "".join(json.dumps(line(phone.number, f"message {n}")) + "\n" for n in range(50))
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": str(uuid.uuid4())}
    first, second = [await demo.http.post("/v1/messages/bulk", content=body, headers=headers) for _ in range(2)]
    assert first.status_code == second.status_code == 200
    ids = [[json.loads(text).get("id") for text in answer.text.splitlines()] for answer in (first, second)]
    assert ids[0] == ids[1]
    assert contents(await phone.fetch(50, **START)) == [f"message {n}" for n in range(50)]


async def test_a_line_may_have_a_key_of_its_own(demo: Business, phone: Phone):
    key = str(uuid.uuid4())
    lines = [line(phone.number, "once", idempotency_key=key)] * 3
    *results, _ = await demo.bulk(lines)
    assert len({result["id"] for result in results}) == 1
    assert contents(await phone.fetch(1, **START)) == ["once"]


async def test_a_broken_encoding_is_a_clear_end(demo: Business, phone: Phone):
    headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    body = gzip.compress(json.dumps(line(phone.number, "hello")).encode())
    cut = await demo.http.post("/v1/messages/bulk", content=body[:-12], headers=headers)
    garbage = await demo.http.post("/v1/messages/bulk", content=b"no gzip at all", headers=headers)
    for answer in (cut, garbage):
        assert answer.status_code in (200, 400)
        assert "error" in answer.text or answer.status_code == 400
    unknown = headers | {"Content-Encoding": "br"}
    problem(await demo.http.post("/v1/messages/bulk", content=b"x", headers=unknown), 415)


async def test_a_decompression_bomb_is_refused(demo: Business):
    bomb = gzip.compress(b"\n" * 50 + b"x" * 200_000_000)
    headers = {"Content-Type": "application/x-ndjson", "Content-Encoding": "gzip"}
    answer = await demo.http.post("/v1/messages/bulk", content=bomb, headers=headers)
    assert answer.status_code in (200, 400, 413)
    assert answer.status_code != 200 or "error" in answer.text


# --- lists and the stream -------------------------------------------------------------------------------------------


async def pages(business: Business, **query) -> list[dict]:
    """Every message of a list, page by page."""
    page = await business.list(**query)
    messages = page["messages"]
    while page["next_cursor"] is not None:
        page = await business.list(**query | {"cursor": page["next_cursor"]})
        messages += page["messages"]
    return messages


async def test_a_list_is_paged_newest_first_and_stable_while_new_ones_come(demo: Business, server):
    async with Business(server.url, server.new_key(new_business())) as business:
        ids = await business.say_all(new_phone(), [f"message {n}" for n in range(23)])
        for id in ids:
            await business.message(id)
        first = await business.list(limit=10)
        late = await business.say(new_phone(), "late")
        await business.message(late)
        rest = await pages(business, limit=10, cursor=first["next_cursor"])
        assert [message["id"] for message in first["messages"] + rest] == ids[::-1]


async def test_a_list_is_filtered(demo: Business, server):
    phone = Phone.new(server)
    async with Business(server.url, server.new_key(new_business())) as business:
        read, _, waiting = [await business.say(phone.number, text) for text in ("one", "two", "three")]
        elsewhere = await business.say(new_phone(), "elsewhere")
        async with await phone.connect(**START) as session:
            messages = await session.messages(3)
            await session.send("ack", cursor=messages[1]["cursor"])
            await session.send("read", ids=[read])
            await business.reaches(read, "read")
            await business.reaches(messages[1]["id"], "delivered")
        await business.message(elsewhere)

        def ids(messages: list[dict]) -> set[str]:
            return {message["id"] for message in messages}

        assert ids(await pages(business, to=phone.number)) == ids(messages)
        assert ids(await pages(business, status="read")) == {read}
        assert ids(await pages(business, status="sent")) == {waiting, elsewhere}
        assert ids(await pages(business, status="sent", to=phone.number)) == {waiting}
        assert ids(await pages(business, type="chat")) == set()
        assert len(await pages(business, type="one_way", limit=1)) == 4


@pytest.mark.parametrize(
    "query",
    [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"status": "x"}, {"type": "x"}, {"to": "x"}, {"cursor": "x"}],
    ids=repr,
)
async def test_a_query_that_makes_no_sense_is_refused(demo: Business, query: dict):
    problem(await demo.http.get("/v1/messages", params=query), 400)


async def test_the_stream_can_be_read_over_http(demo: Business, phone: Phone):
    texts = [f"message {n}" for n in range(30)]
    await demo.say_all(phone.number, texts)
    live = await phone.fetch(30, **START)
    async with Business(demo.url, phone.token) as user:
        received, query = [], {"limit": 7}
        while True:
            page = (await user.http.get("/v1/stream", params=query)).json()
            received += page["messages"]
            assert page["gap"] is None
            if not page["more"]:
                break
            query["after"] = page["cursor"]
        assert [dict(message, op="message") for message in received] == live
        problem(await user.http.get("/v1/stream", params={"after": "garbage"}), 400)
    assert contents(await phone.fetch(20, after=received[9]["cursor"])) == texts[10:], "cursors are the same everywhere"
