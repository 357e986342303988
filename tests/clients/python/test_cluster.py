"""Six processes on Kafka, Cassandra, Redis and a schema registry: what one process promises, several keep."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fastavro
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from business import Business
from cluster import Cluster, engine
from phone import START, Phone, contents
from server import REPOSITORY, new_business, new_phone

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster") / "data").apply()
    cluster.new_key("acme")
    try:
        yield cluster.start()
        cluster.stop()
    finally:
        cluster.kill()


@pytest.fixture
def business_id() -> str:
    return new_business()


@pytest.fixture
def key(cluster: Cluster, business_id: str) -> str:
    return cluster.new_key(business_id)


def phone_at(cluster: Cluster, gateway: int, number: str | None = None) -> Phone:
    """A phone that connects to this gateway."""
    number = number or new_phone()
    return Phone(cluster.of("gateway", gateway).ws_url, number, cluster.token(number))


async def test_users_on_two_gateways_are_reached_from_two_apis(cluster: Cluster, key: str):
    phones = [phone_at(cluster, 0), phone_at(cluster, 1)]
    async with (
        Business(cluster.of("ingest", 0).url, key) as first,
        Business(cluster.of("ingest", 1).url, key) as second,
        await phones[0].connect_empty() as on_first,
        await phones[1].connect_empty() as on_second,
    ):
        for business in (first, second):
            for phone, session in zip(phones, (on_first, on_second), strict=True):
                id = await business.say(phone.number, "hello")
                [message] = await session.messages(1)
                assert message["id"] == id
                await session.send("ack", cursor=message["cursor"])
                # The other API sees it, too.
                await (first if business is second else second).reaches(id, "delivered")


async def test_one_user_with_sockets_on_two_gateways_gets_each_message_on_both(cluster: Cluster, key: str):
    number = new_phone()
    one, two = phone_at(cluster, 0, number), phone_at(cluster, 1, number)
    async with (
        Business(cluster.of("ingest").url, key) as business,
        await one.connect_empty() as left,
        await two.connect_empty() as right,
    ):
        texts = [f"message {n}" for n in range(30)]
        await business.say_all(number, texts)
        assert contents(await left.messages(30)) == texts
        assert contents(await right.messages(30)) == texts


async def test_the_sender_is_told_on_another_gateway(cluster: Cluster, key: str, business_id: str):
    phone = phone_at(cluster, 0)
    office = Phone(cluster.of("gateway", 1).ws_url, business_id, key)
    async with (
        Business(cluster.of("ingest").url, key) as business,
        await office.connect() as watching,
        await phone.connect_empty() as session,
    ):
        id = await business.say(phone.number, "hello")
        [message] = await session.messages(1)
        await session.send("ack", cursor=message["cursor"])
        statuses = [frame for frame in await watching.until("status") if frame["op"] == "status"]
        assert (statuses[-1]["id"], statuses[-1]["status"]) == (id, "delivered")


async def test_users_of_a_killed_gateway_go_to_the_other_and_miss_nothing(cluster: Cluster, key: str):
    numbers = [new_phone() for _ in range(5)]
    gateway = cluster.of("gateway", 0)
    texts = [f"message {n}" for n in range(20)]
    async with Business(cluster.of("ingest", 1).url, key) as business:
        sessions = [await phone_at(cluster, 0, number).connect_empty() for number in numbers]
        for number in numbers:
            await business.say_all(number, texts[:10])
        cursors = [(await session.messages(5))[-1]["cursor"] for session in sessions]
        gateway.end(signal.SIGKILL)
        for number in numbers:
            await business.say_all(number, texts[10:15])
        for number, cursor in zip(numbers, cursors, strict=True):
            async with await phone_at(cluster, 1, number).connect(after=cursor) as session:
                assert contents(await session.messages(10)) == texts[5:15]
                await business.say_all(number, texts[15:])
                assert contents(await session.messages(5)) == texts[15:]
                await session.nothing_else()
    gateway.launch().wait()


async def test_a_repeat_at_another_api_is_the_same_message(cluster: Cluster, key: str):
    phone = phone_at(cluster, 1)
    repeat = uuid.uuid4().hex
    async with (
        Business(cluster.of("ingest", 0).url, key) as first,
        Business(cluster.of("ingest", 1).url, key) as second,
    ):
        answers = await asyncio.gather(*(b.post(phone.number, "once", key=repeat) for b in (first, second) * 10))
        accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
        assert len(set(accepted)) == 1 and accepted
        assert {answer.status_code for answer in answers} <= {202, 409}
        assert contents(await phone.fetch(1, **START)) == ["once"]


async def test_a_message_taken_back_at_one_api_is_shown_by_no_gateway(cluster: Cluster, key: str):
    number = phone_at(cluster, 0).number
    async with (
        Business(cluster.of("ingest", 0).url, key) as first,
        Business(cluster.of("ingest", 1).url, key) as second,
    ):
        [unwanted, _] = await first.say_all(number, ["unwanted", "wanted"])
        await first.message(unwanted)
        answer = await second.http.post(f"/v1/messages/{unwanted}/cancel")
        assert answer.status_code == 200, answer.text
        await first.reaches(unwanted, "cancelled")
        for gateway in range(2):
            async with await phone_at(cluster, gateway, number).connect(**START) as session:
                assert contents(await session.messages(1)) == ["wanted"]
                await session.nothing_else()


def consume(topic: str, wanted: int) -> list:
    """The first so many records of a topic, by a consumer nobody here wrote."""
    consumer = Consumer({"bootstrap.servers": engine("KAFKA"), "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        records, deadline = [], time.monotonic() + 30
        while len(records) < wanted and time.monotonic() < deadline:
            records += [record for record in consumer.consume(100, timeout=0.5) if record.error() is None]
        return records
    finally:
        consumer.close()


async def test_a_data_team_reads_messages_and_statuses_from_kafka(cluster: Cluster, key: str, business_id: str):
    phones = [phone_at(cluster, number % 2) for number in range(4)]
    async with Business(cluster.of("ingest").url, key) as business:
        sent = {}
        for phone in phones:
            async with await phone.connect_empty() as session:
                id = await business.say(phone.number, "نص", reference="tx-1", ttl_s=600)
                [message] = await session.messages(1)
                await session.send("ack", cursor=message["cursor"])
                await business.reaches(id, "delivered")
                sent[id] = phone.number
    registry = SchemaRegistryClient({"url": engine("REGISTRY")})
    deserialize = AvroDeserializer(registry)

    def of_ours(topic: str, record) -> tuple[dict, dict]:
        context = SerializationContext(topic, MessageField.VALUE)
        headers = {name: value.decode() for name, value in record.headers()}
        return deserialize(record.value(), context), headers

    topic = f"{cluster.prefix}messages.accepted"
    seen = {}
    for record in consume(topic, 10_000):
        value, headers = of_ours(topic, record)
        if str(value["id"]) in sent:
            assert record.key().decode() == value["recipient"] == headers["es-to"]
            assert headers["ce_id"] == str(value["id"]) and headers["es-from"] == business_id == value["sender"]
            assert headers["es-lane"] == "normal" and headers["traceparent"].startswith("00-")
            assert value["content"] == "نص" and value["reference"] == "tx-1"
            assert record.timestamp()[0] == TIMESTAMP_CREATE_TIME
            seen[str(value["id"])] = value["recipient"]
    assert seen == sent
    schema = registry.get_latest_version(f"{topic}-value")
    fastavro.parse_schema(json.loads(schema.schema.schema_str))
    assert registry.get_compatibility(f"{topic}-value") == "FULL_TRANSITIVE"

    topic = f"{cluster.prefix}message.status"
    statuses = [of_ours(topic, record) for record in consume(topic, 10_000)]
    ours = {str(value["id"]): value["status"] for value, _ in statuses if str(value["id"]) in sent}
    assert ours == dict.fromkeys(sent, "delivered")


def java(tool: str, *arguments: str, stdin: str = "") -> str:
    """What one of Kafka's own tools prints."""
    words = [REPOSITORY / "scripts" / "engines", "kafka-tool", tool, "--bootstrap-server", engine("KAFKA"), *arguments]
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def partitions_by_key(topic: str, records: int) -> dict[str, str]:
    """Where Java's console consumer finds each key."""
    printing = ["print.key=true", "print.value=false", "print.partition=true"]
    options = [word for one in printing for word in ("--formatter-property", one)]
    limits = ["--from-beginning", "--max-messages", str(records), "--timeout-ms", "30000"]
    printed = java("org.apache.kafka.tools.consumer.ConsoleConsumer", "--topic", topic, *options, *limits)
    pairs = [line.split() for line in printed.splitlines() if line.startswith("Partition:")]
    return {key: partition for partition, key in pairs}


async def test_javas_console_consumer_finds_each_key_where_javas_producer_puts_it(cluster: Cluster, key: str):
    numbers = [new_phone() for _ in range(40)]
    async with Business(cluster.of("ingest").url, key) as business:
        for number in numbers:
            await business.say(number, "hello")
    topic, count = f"{cluster.prefix}messages.accepted", len(consume(f"{cluster.prefix}messages.accepted", 10_000))
    ours = partitions_by_key(topic, count)

    by_java = f"{cluster.prefix}by-java"
    admin = AdminClient({"bootstrap.servers": engine("KAFKA")})
    partitions = len(admin.list_topics(topic, timeout=20).topics[topic].partitions)
    admin.create_topics([NewTopic(by_java, partitions, 1)])[by_java].result(30)
    with_keys = ["--reader-property", "parse.key=true", "--reader-property", "key.separator=,"]
    lines = "".join(f"{number},x\n" for number in numbers)
    java("org.apache.kafka.tools.ConsoleProducer", "--topic", by_java, *with_keys, stdin=lines)
    theirs = partitions_by_key(by_java, len(numbers))
    assert theirs == {number: ours[number] for number in numbers}
    assert len(set(theirs.values())) > 1


def test_topics_are_listed_and_tailed_on_kafka(cluster: Cluster):
    listed = cluster.cli("topics", "list")
    assert "messages.accepted" in listed and "deliveries" in listed
    lines = cluster.cli("topics", "tail", "messages.accepted", "--from-start", "--json", "--no-follow").splitlines()
    assert lines and all(json.loads(line)["headers"]["ce_id"] for line in lines)


def test_applying_again_changes_nothing(cluster: Cluster):
    assert "nothing to do" in cluster.cli("store", "apply")
    again = cluster.cli("topics", "apply")
    assert "created" not in again and "altered" not in again
