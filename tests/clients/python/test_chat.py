"""Chat, from the documents alone: a phone and a business's agents, over HTTP and the WebSocket, in one process and on a
cluster with the two sides on different gateways."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from business import Business
from cluster import Cluster
from phone import Frame, Phone, Session, contents
from server import Server, new_business, new_phone

SETTLE_LIMIT_S = 15.0
PERMISSIONS = ("chat", "conversations:manage", "messages:send")


@dataclass
class Side:
    """One of the two who talk: over HTTP, and in sessions."""

    name: str
    http: httpx.AsyncClient
    sessions: Phone

    async def session(self, **hello: Any) -> Session:
        session = await self.sessions.connect(**hello)
        await session.until("caught_up")
        return session

    async def get(self, path: str, **query: Any) -> dict:
        answer = await self.http.get(f"/v1/conversations{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, **body: Any) -> dict:
        answer = await self.http.post(f"/v1/conversations{path}", json=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    async def history(self, conversation: str) -> list[dict]:
        """All that was said, page by page from its start."""
        messages: list[dict] = []
        after = "start"
        while True:
            page = await self.get(f"/{conversation}/messages", after=after, limit=7)
            messages += page["messages"]
            if not page["more"]:
                return messages
            after = page["newest"]

    async def unread(self, conversation: str) -> int:
        return (await self.get(f"/{conversation}"))["unread"]


@dataclass
class Talk:
    """A business and a phone that have not talked yet, and somebody else of each kind."""

    business: Side
    phone: Side
    strangers: tuple[Side, Side]


def side(name: str, url: str, ws_url: str, credential: str) -> Side:
    headers = {"Authorization": f"Bearer {credential}"}
    http = httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False)
    return Side(name, http, Phone(ws_url, name, credential))


def talk_on(urls: tuple[str, str], ws_urls: tuple[str, str], new_key, token) -> Talk:
    """The business on the first API and gateway, the phone on the second."""
    names = [new_business(), new_business()]
    phones = [new_phone(), new_phone()]
    business, other = (side(name, urls[0], ws_urls[0], new_key(name, *PERMISSIONS)) for name in names)
    phone, another = (side(number, urls[1], ws_urls[1], token(number)) for number in phones)
    return Talk(business, phone, (other, another))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    cluster = Cluster(tmp_path_factory.mktemp("chat") / "data").apply()
    cluster.new_key("acme")
    try:
        yield cluster.start()
        cluster.stop()
    finally:
        cluster.kill()


@pytest_asyncio.fixture(params=["embedded", pytest.param("cluster", marks=pytest.mark.engines)])
async def talk(request: pytest.FixtureRequest) -> AsyncIterator[Talk]:
    if request.param == "embedded":
        server: Server = request.getfixturevalue("server")
        urls, ws_urls = (server.url, server.url), (server.ws_url, server.ws_url)
        new_key, token = server.new_key, server.token
    else:
        cluster: Cluster = request.getfixturevalue("cluster")
        urls = (cluster.of("ingest", 0).url, cluster.of("ingest", 1).url)
        ws_urls = (cluster.of("gateway", 0).ws_url, cluster.of("gateway", 1).ws_url)
        new_key, token = cluster.new_key, cluster.token
    talk = talk_on(urls, ws_urls, new_key, token)
    yield talk
    for one in (talk.business, talk.phone, *talk.strangers):
        await one.http.aclose()


async def eventually(what) -> Any:
    """The first answer that says something: history follows the log within moments."""
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while not (found := await what()):
        assert time.monotonic() < deadline, f"not so after {SETTLE_LIMIT_S} s"
        await asyncio.sleep(0.05)
    return found


async def said(session: Session, **fields: Any) -> Frame:
    """Sends, and waits for the answer; what comes in between is of others."""
    ref = str(uuid.uuid4())
    await session.send("send", ref=ref, **fields)
    while (frame := await session.frame())["op"] not in ("sent", "error"):
        pass
    assert frame["op"] == "sent" and frame["ref"] == ref, frame
    return frame


async def frames(session: Session, *wanted: tuple[str, Any]) -> list[Frame]:
    """Reads on until each wanted frame has come, in whatever order; returns them in the order wanted. A wanted frame is an
    op and the value of a field."""
    found: list[Frame | None] = [None] * len(wanted)
    while None in found:
        frame = await session.frame()
        for place, (op, fields) in enumerate(wanted):
            if found[place] is None and frame["op"] == op and all(frame.get(k) == v for k, v in fields.items()):
                found[place] = frame
    return [frame for frame in found if frame is not None]


async def test_both_sides_talk_and_see_each_others_ticks(talk: Talk):
    async with await talk.phone.session() as device, await talk.business.session() as agent:
        asked = await said(device, to=talk.business.name, content="Is my card lost?")
        conversation = asked["conversation_id"]
        [question] = await frames(agent, ("message", {"id": asked["id"]}))
        assert question["from"] == talk.phone.name and question["to"] == talk.business.name
        assert question["content"] == "Is my card lost?" and question["conversation_id"] == conversation
        assert question["previous"] is None and "cursor" not in question
        await agent.send("ack", ids=[asked["id"]])
        await frames(device, ("status", {"id": asked["id"], "status": "delivered"}))
        await agent.send("read", conversation_id=conversation, up_to=question["position"])
        await frames(
            device,
            ("status", {"id": asked["id"], "status": "read"}),
            ("conversation", {"change": "read", "by": talk.business.name, "up_to": question["position"]}),
        )

        answered = await said(agent, conversation_id=conversation, content="It is not.")
        [answer] = await frames(device, ("message", {"id": answered["id"]}))
        assert answer["cursor"] and answer["from"] == talk.business.name
        await device.send("ack", cursor=answer["cursor"])
        await frames(agent, ("status", {"id": answered["id"], "status": "delivered"}))
        assert await talk.phone.unread(conversation) == 1
        await device.send("read", ids=[answered["id"]])
        await frames(agent, ("status", {"id": answered["id"], "status": "read"}))
    for one in (talk.phone, talk.business):
        assert contents(await one.history(conversation)) == ["Is my card lost?", "It is not."]
        assert [of["id"] for of in (await one.get(""))["conversations"]] == [conversation]

        async def both_read() -> bool:
            return {message["status"] for message in await one.history(conversation)} == {"read"}

        await eventually(both_read)
        assert await one.unread(conversation) == 0


async def test_every_device_of_both_sides_has_every_message(talk: Talk):
    async with (
        await talk.phone.session() as first,
        await talk.phone.session() as second,
        await talk.business.session() as one,
        await talk.business.session() as two,
    ):
        a = (await said(first, to=talk.business.name, content="a"))["id"]
        b = (await said(one, to=talk.phone.name, content="b"))["id"]
        for session in (second, two):
            await frames(session, ("message", {"id": a}), ("message", {"id": b}))
        await frames(first, ("message", {"id": b}))


async def test_agents_get_a_conversation_in_order_each_message_behind_the_one_it_names(talk: Talk):
    async with await talk.phone.session() as device, await talk.business.session() as agent:
        sent = [(await said(device, to=talk.business.name, content=str(number)))["id"] for number in range(30)]
        got: list[Frame] = []
        while len(got) < len(sent):
            frame = await agent.frame()
            got += [frame] if frame["op"] == "message" else []
        assert [frame["id"] for frame in got] == sent
        assert [frame["previous"] for frame in got[1:]] == [frame["position"] for frame in got[:-1]]


async def test_what_is_sent_again_under_its_ref_is_sent_once(talk: Talk):
    ref = str(uuid.uuid4())
    for replayed in (False, True, True):
        async with await talk.phone.session() as device:
            await device.send("send", ref=ref, to=talk.business.name, content="once")
            [sent] = await frames(device, ("sent", {"ref": ref}))
            assert sent["replayed"] is replayed

    async def history() -> list[dict]:
        return await talk.business.history(sent["conversation_id"])

    assert contents(await eventually(history)) == ["once"]


async def test_a_phone_that_was_away_catches_up_and_an_agent_does_by_the_conversation(talk: Talk):
    async with await talk.business.session() as agent:
        sent = await said(agent, to=talk.phone.name, content="one")
        for content in ("two", "three"):
            await said(agent, to=talk.phone.name, content=content)
    conversation = sent["conversation_id"]
    async with await talk.phone.sessions.connect() as device:
        waited = [frame for frame in await device.until("caught_up") if frame["op"] == "message"]
        while len(waited) < 3:  # it was told of them before they were in the stream
            waited += await frames(device, ("message", {}))
        assert contents(waited) == ["one", "two", "three"]

    async def all_three() -> list[dict]:
        history = await talk.business.history(conversation)
        return history if len(history) == 3 else []

    last = (await eventually(all_three))[-1]["position"]
    async with await talk.phone.session() as device:
        for content in ("four", "five"):
            await said(device, conversation_id=conversation, content=content)

    async def behind() -> list[dict]:
        page = await talk.business.get(f"/{conversation}/messages", after=last)
        return page["messages"] if len(page["messages"]) == 2 else []

    assert contents(await eventually(behind)) == ["four", "five"]


async def test_typing_is_shown_and_goes_by_itself(talk: Talk):
    async with await talk.phone.session() as device, await talk.business.session() as agent:
        conversation = (await talk.phone.post("", **{"with": talk.business.name}))["id"]
        for session in (device, agent):
            await session.send("join", conversation_id=conversation, ref="j")
            await frames(session, ("joined", {"conversation_id": conversation, "ref": "j"}))
        await device.send("typing", conversation_id=conversation, on=True)
        await frames(agent, ("typing", {"from": talk.phone.name, "on": True}))
        begun = time.monotonic()
        await frames(agent, ("typing", {"from": talk.phone.name, "on": False}))
        assert 4 < time.monotonic() - begun < 10
        await agent.send("typing", conversation_id=conversation, on=True)
        await frames(device, ("typing", {"from": talk.business.name, "on": True}))
        await agent.send("typing", conversation_id=conversation, on=False)
        await frames(device, ("typing", {"from": talk.business.name, "on": False}))


async def test_a_closed_conversation_is_closed_for_both_and_told_live(talk: Talk):
    async with await talk.phone.session() as device, await talk.business.session() as agent:
        conversation = (await said(device, to=talk.business.name, content="a"))["conversation_id"]
        await talk.business.post(f"/{conversation}/close")
        for session, other in ((device, talk.business.name), (agent, talk.phone.name)):
            [told] = await frames(session, ("conversation", {"change": "closed"}))
            assert told["conversation_id"] == conversation and told["with"] == other
            await session.send("send", ref=str(uuid.uuid4()), conversation_id=conversation, content="b")
            [refused] = await frames(session, ("error", {"code": "conversation_closed"}))
            assert refused["temporary"] is False
        again = await said(device, to=talk.business.name, content="c")
        assert again["conversation_id"] != conversation


async def test_nobody_else_learns_of_a_conversation(talk: Talk):
    async with await talk.phone.session() as device:
        sent = await said(device, to=talk.business.name, content="secret")
    conversation = sent["conversation_id"]
    position = (await eventually(lambda: talk.phone.history(conversation)))[-1]["position"]
    for stranger in talk.strangers:
        async with await stranger.session() as session:
            for op, fields in (
                ("join", {}),
                ("send", {"ref": str(uuid.uuid4()), "content": "x"}),
                ("read", {"up_to": position}),
            ):
                await session.send(op, conversation_id=conversation, **fields)
                await frames(session, ("error", {"code": "conversation_not_found"}))
            await session.send("typing", conversation_id=conversation, on=True)
            await frames(session, ("error", {"code": "not_joined"}))
        for path in ("", "/messages"):
            answer = await stranger.http.get(f"/v1/conversations/{conversation}{path}")
            assert answer.status_code == 404 and answer.json()["code"] == "conversation_not_found"
        answer = await stranger.http.get(f"/v1/messages/{sent['id']}")
        assert answer.status_code == 404
        assert (await stranger.get(""))["conversations"] == []


async def test_a_thousand_that_begin_at_once_from_two_apis_are_in_one_conversation(talk: Talk):
    at_once = asyncio.Semaphore(200)

    async def start(number: int) -> str:
        # A mobile user may start 100 a minute.
        who, other = (talk.business, talk.phone) if number % 20 else (talk.phone, talk.business)
        async with at_once:
            return (await who.post("", **{"with": other.name}))["id"]

    ids = set(await asyncio.gather(*(start(number) for number in range(1_000))))
    assert len(ids) == 1
    assert [of["id"] for of in (await talk.phone.get(""))["conversations"]] == list(ids)


async def test_closing_and_starting_in_a_race_never_leaves_two_open(talk: Talk):
    async def close() -> None:
        page = await talk.business.get("", status="active")
        for conversation in page["conversations"]:
            await talk.business.post(f"/{conversation['id']}/close")

    async def start(number: int) -> None:
        who, other = (talk.business, talk.phone) if number % 2 else (talk.phone, talk.business)
        await who.post("", **{"with": other.name})

    for _ in range(10):
        await asyncio.gather(*(close() if number % 3 == 0 else start(number) for number in range(12)))
        for one in (talk.business, talk.phone):
            assert len((await one.get("", status="active"))["conversations"]) <= 1
    await start(0)
    open_ids = [of["id"] for of in (await talk.business.get("", status="active"))["conversations"]]
    assert len(open_ids) == 1


@pytest.mark.skipif("CONVERSATIONS" not in os.environ, reason="a measurement: CONVERSATIONS says how many there are")
async def test_how_long_the_first_and_a_late_page_of_the_list_take(talk: Talk):
    """Prints the median and the 99th percentile of the first, the middle and the last page of 25, in milliseconds."""
    count = int(os.environ["CONVERSATIONS"])
    at_once = asyncio.Semaphore(32)

    async def start(number: int) -> None:
        async with at_once:
            await talk.business.post("", **{"with": f"+96655{number:07}"})

    await asyncio.gather(*(start(number) for number in range(count)))
    cursors: list[str | None] = [None]
    seen: set[str] = set()
    while True:
        page = await talk.business.get("", limit=25, **({"cursor": cursors[-1]} if cursors[-1] else {}))
        seen |= {conversation["id"] for conversation in page["conversations"]}
        if page["next_cursor"] is None:
            break
        cursors.append(page["next_cursor"])
    assert len(seen) == count
    places = {"first": 0, "middle": len(cursors) // 2, "last": len(cursors) - 2}
    took: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(200):
        for name, place in places.items():
            query = {"cursor": cursors[place]} if cursors[place] else {}
            begun = time.perf_counter()
            await talk.business.get("", limit=25, **query)
            took[name].append((time.perf_counter() - begun) * 1_000)
    for name, times in took.items():
        times.sort()
        print(f"\n{name} (page {places[name] + 1} of {len(cursors)}): p50 {times[100]:.1f} ms, p99 {times[198]:.1f} ms")
