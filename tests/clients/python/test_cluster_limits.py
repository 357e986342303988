"""Must show 4 and 5 on a cluster: one Idempotency-Key, one rate and one queue for several processes, also without Redis."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from business import Business
from cluster import Cluster, Process
from obedience import retry_after, send_obediently, standings
from own_engine import OwnEngine
from phone import START, Phone, contents
from repeater import Answer, Caller, insist
from server import new_business, new_phone
from test_http import line, problem

pytestmark = pytest.mark.engines

# How often one request is repeated at once.
REPEATS = int(os.environ.get("REPEATS", "10000"))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEngine]:
    redis = OwnEngine(tmp_path_factory.mktemp("redis"), "redis").start()
    yield redis
    redis.command("stop")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, redis: OwnEngine) -> Iterator[Cluster]:
    settings = [f'redis.addresses=["{redis.told("REDIS")}"]', f"redis.password={redis.told('REDIS_PASSWORD')}"]
    # Callers dial first, all of them, and ask then: all at one process when the other has died.
    settings += ["ingest.queue.interactive=300", f"http.max_unauthenticated_connections={2 * REPEATS}"]
    cluster = Cluster(tmp_path_factory.mktemp("limits") / "data", *settings).apply()
    cluster.new_key("acme")
    try:
        yield cluster.start()
        cluster.stop()
    finally:
        cluster.kill()


def phone_of(cluster: Cluster) -> Phone:
    number = new_phone()
    return Phone(cluster.of("gateway").ws_url, number, cluster.token(number))


def apis(cluster: Cluster, key: str) -> tuple[Business, Business]:
    """A business at either process of the API."""
    return Business(cluster.of("ingest", 0).url, key), Business(cluster.of("ingest", 1).url, key)


async def metric(process: Process, name: str) -> float:
    """A metric of a process, of those that it has one of."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"{process.url}/metrics")).text
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, f"no {name}"
    return float(found[1])


async def counted_together(cluster: Cluster, yes: bool = True) -> None:
    """Waits until both processes count together, or neither does. They notice when something is sent."""
    async with asyncio.timeout(60):
        key = cluster.new_key(new_business(), rate="100/s")
        for number in range(2):
            process = cluster.of("ingest", number)
            async with Business(process.url, key) as business:
                while await metric(process, "eshaar_limits_shared") != yes:
                    await business.say(new_phone(), "is anybody there?")
                    await asyncio.sleep(0.1)


async def volley(cluster: Cluster, key: str, shots: int) -> list[list[httpx.Response]]:
    """So many messages at each process, all at once; the answers by process."""
    one, two = apis(cluster, key)
    async with one, two:
        # In turns, so that both are asked all the while.
        answers = await asyncio.gather(
            *(business.post(new_phone(), f"shot {n}") for n in range(shots) for business in (one, two))
        )
        return [answers[::2], answers[1::2]]


def accepted(answers: list[httpx.Response]) -> int:
    """How many were; the others must have been told when to come back, and nothing else."""
    for answer in answers:
        if answer.status_code != 202:
            problem(answer, 429, "rate_limited")
            assert 1 <= retry_after(answer) <= 61
            assert standings(answer)["key"].remaining == 0
    return sum(answer.status_code == 202 for answer in answers)


# --- rates ----------------------------------------------------------------------------------------------------------


async def test_two_processes_share_a_count(cluster: Cluster):
    key = cluster.new_key(new_business(), rate="100/min")
    one, two = await volley(cluster, key, 20)
    assert (accepted(one), accepted(two)) == (20, 20)
    one, two = await volley(cluster, key, 100)
    assert accepted(one) + accepted(two) == 60
    for business in apis(cluster, key):
        async with business:
            answer = await business.post(new_phone(), "one more")
            assert retry_after(answer) == standings(answer)["key"].effective_s


@pytest.mark.parametrize("harm", ["pause", "kill"])
async def test_without_redis_each_process_counts_alone_and_nobody_notices(cluster: Cluster, redis: OwnEngine, harm: str):
    await counted_together(cluster)
    key = cluster.new_key(new_business(), rate="60/min")
    one, two = await volley(cluster, key, 15)
    assert (accepted(one), accepted(two)) == (15, 15)
    redis.command(harm)
    try:
        # In the middle of traffic: whoever waits for Redis is answered within moments, and not with an error.
        begun = time.monotonic()
        one, two = await volley(cluster, key, 100)
        assert time.monotonic() - begun < 10
        # Each has its own whole limit, less what it let through before.
        assert (accepted(one), accepted(two)) == (45, 45)
        await counted_together(cluster, False)
        begun = time.monotonic()
        fresh = cluster.new_key(new_business(), rate="10/min")
        one, two = await volley(cluster, fresh, 20)
        assert (accepted(one), accepted(two)) == (10, 10)
    finally:
        redis.command({"pause": "resume", "kill": "restart"}[harm])
    await counted_together(cluster)
    one, two = await volley(cluster, cluster.new_key(new_business(), rate="50/min"), 60)
    assert accepted(one) + accepted(two) == 50


# --- depth ----------------------------------------------------------------------------------------------------------


def send_to_all(cluster: Cluster, role: str, how: signal.Signals) -> None:
    for number in range(2):
        process = cluster.of(role, number).process
        assert process is not None
        process.send_signal(how)


async def receive(phone: Phone, count: int) -> list[str]:
    received: list[dict] = []
    async with await phone.connect(**START) as session:
        while len(received) < count:
            received += await session.messages(min(100, count - len(received)))
            await session.send("ack", cursor=received[-1]["cursor"])
        await session.nothing_else()
    return contents(received)


@pytest.mark.timeout(240)
async def test_where_all_stages_stop_the_queue_fills_refuses_and_loses_nothing(cluster: Cluster):
    phone, sent = phone_of(cluster), []
    one, two = apis(cluster, cluster.new_key(new_business()))
    async with one, two:
        await one.say(phone.number, "first")
        sent.append("first")
        send_to_all(cluster, "processors", signal.SIGSTOP)
        try:
            refused: dict[int, httpx.Response] = {}
            begun = time.monotonic()
            while len(refused) < 2:
                for number, business in enumerate((one, two)):
                    text = f"message {len(sent)}"
                    answer = await business.post(phone.number, text)
                    if answer.status_code == 202:
                        sent.append(text)
                    else:
                        refused[number] = answer
                assert time.monotonic() - begun < 60, f"{len(sent)} were accepted, and none was refused"
                await asyncio.sleep(0.02)
            for answer in refused.values():
                assert "more than 300 interactive messages wait" in problem(answer, 503, "queue_full")["detail"]
                assert retry_after(answer) <= 5
            assert len(sent) > 300
        finally:
            send_to_all(cluster, "processors", signal.SIGCONT)
        late = [f"late {number}" for number in range(10)]
        async with asyncio.timeout(120):
            answers = await send_obediently(two, phone.number, late)
        assert answers[0].status_code == 503 and answers[-1].status_code == 202
        assert await receive(phone, len(sent) + 10) == sent + late


# --- idempotency ----------------------------------------------------------------------------------------------------


async def repeat_at_once(cluster: Cluster, key: str, phone: Phone, kill: bool) -> list[list[Answer]]:
    """`REPEATS` callers say the same at once, half of them at either process, of which one dies in the middle. The answers
    of each caller."""
    wanted = REPEATS + 1_000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert wanted <= most, f"{wanted} files are needed, and {most} allowed"
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    ports = [cluster.of("ingest", number).port for number in range(2)]
    callers = [Caller(ports[number % 2]) for number in range(REPEATS)]
    for begin in range(0, REPEATS, 500):
        await asyncio.gather(*(caller.dial() for caller in callers[begin : begin + 500]))
    repeat = uuid.uuid4().hex
    body = json.dumps(line(phone.number, "once and only once")).encode()
    answered = 0
    half_way = asyncio.Event()

    async def ask(caller: Caller) -> list[Answer]:
        nonlocal answered
        answers = await insist(caller, ports[1], key, repeat, body)
        answered += 1
        if answered >= REPEATS // 100:
            half_way.set()
        return answers

    asking = [asyncio.create_task(ask(caller)) for caller in callers]
    if kill:
        # When some have their answer, and most have not.
        await half_way.wait()
        cluster.of("ingest", 0).end(signal.SIGKILL)
        assert answered < REPEATS, "it died too late"
    return await asyncio.gather(*asking)


async def judge(cluster: Cluster, key: str, phone: Phone, answers: list[list[Answer]]) -> None:
    """One id, one message, one delivery; 409 only until the first was answered."""
    assert len(answers) == REPEATS
    last = [of_one[-1] for of_one in answers]
    assert Counter(answer.status for answer in last) == {202: REPEATS}
    [id] = {answer.json()["id"] for answer in last}
    every = [answer for of_one in answers for answer in of_one]
    print(f"\n{REPEATS} callers, {len(every)} answers: {dict(Counter(answer.status for answer in every))}")
    statuses = Counter(answer.status for answer in every)
    # Where the store was not done in time the caller is told so, with the same words as ever: come back with this key.
    assert set(statuses) <= {202, 409, 503} and statuses[503] <= REPEATS // 100, statuses
    first = min(answer.answered for answer in last)
    late = [answer for answer in every if answer.status == 409 and answer.asked > first]
    assert not late, f"{len(late)} were turned away when the first had been answered"
    assert contents(await phone.fetch(1, **START)) == ["once and only once"]
    async with Business(cluster.of("ingest", 1).url, key) as business:
        await business.message(id)
        assert [message["id"] for message in (await business.list(to=phone.number))["messages"]] == [id]


@pytest.mark.timeout(180)
async def test_ten_thousand_repeats_at_two_processes_of_which_one_dies_are_one_message(cluster: Cluster):
    key, phone = cluster.new_key(new_business()), phone_of(cluster)
    begun = time.monotonic()
    try:
        async with await phone.connect_empty() as session:
            answers = await repeat_at_once(cluster, key, phone, kill=True)
            assert time.monotonic() - begun < 60
            [message] = await session.messages(1)
            await session.nothing_else()
            assert message["id"] == answers[0][-1].json()["id"]
        await judge(cluster, key, phone, answers)
    finally:
        dead = cluster.of("ingest", 0)
        dead.end(signal.SIGKILL)
        dead.launch().wait()


@pytest.mark.timeout(180)
async def test_also_without_redis(cluster: Cluster, redis: OwnEngine):
    key, phone = cluster.new_key(new_business()), phone_of(cluster)
    redis.command("kill")
    try:
        answers = await repeat_at_once(cluster, key, phone, kill=False)
        await judge(cluster, key, phone, answers)
    finally:
        redis.command("restart")
    await counted_together(cluster)


async def test_a_changed_body_is_refused_at_either_process_also_while_the_first_is_under_way(cluster: Cluster):
    phone, repeat = phone_of(cluster), uuid.uuid4().hex
    one, two = apis(cluster, cluster.new_key(new_business()))
    async with one, two:
        posts = [business.post(phone.number, f"pay {n % 2}", key=repeat) for n in range(20) for business in (one, two)]
        answers = await asyncio.gather(*posts)
        by_body = [answers[n] for n in range(len(answers)) if (n // 2) % 2 == 0], [
            answers[n] for n in range(len(answers)) if (n // 2) % 2 == 1
        ]
        won, lost = sorted(by_body, key=lambda of_one: -sum(answer.status_code == 202 for answer in of_one))
        assert {answer.status_code for answer in won} <= {202, 409}
        assert {answer.status_code for answer in lost} == {422}
        assert len({answer.json()["id"] for answer in won if answer.status_code == 202}) == 1
        assert len(await receive(phone, 1)) == 1
