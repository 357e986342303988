"""A data team's client: Confluent's registry client and fastavro, which know nothing of this project."""

from __future__ import annotations

import base64
import io
import json
import uuid

import fastavro
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

from business import Business
from phone import Phone
from server import Server

PREFIX = "eshaar."
PUBLIC = {
    "messages.accepted": "Message",
    "cancellations": "Cancellation",
    "conversation.events": "ConversationChanged",
    "message.status": "StatusChanged",
    "dead-letters": "DeadLetter",
}


@pytest.fixture
def registry(server: Server) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": f"{server.url}/registry"})


def subject(topic: str) -> str:
    """TopicNameStrategy."""
    return f"{PREFIX}{topic}-value"


@pytest.mark.parametrize(("topic", "record"), PUBLIC.items())
def test_every_public_topic_has_a_registered_schema(registry: SchemaRegistryClient, topic: str, record: str):
    assert subject(topic) in registry.get_subjects()
    latest = registry.get_latest_version(subject(topic))
    schema = json.loads(latest.schema.schema_str)
    assert schema["type"] == "record" and schema["name"] == record and schema["namespace"] == "eshaar"
    assert registry.get_schema(latest.schema_id).schema_str == latest.schema.schema_str
    assert latest.version in registry.get_versions(subject(topic))
    assert registry.lookup_schema(subject(topic), latest.schema).schema_id == latest.schema_id
    assert registry.get_compatibility(subject(topic)) == "FULL_TRANSITIVE"


def test_a_schema_that_old_readers_could_not_read_is_not_compatible(registry: SchemaRegistryClient):
    name = subject("messages.accepted")
    schema = json.loads(registry.get_latest_version(name).schema.schema_str)

    def compatible(fields: list[dict]) -> bool:
        return registry.test_compatibility(name, Schema(json.dumps(schema | {"fields": fields}), "AVRO"))

    assert compatible(schema["fields"])
    assert compatible([*schema["fields"], {"name": "colour", "type": ["null", "string"], "default": None}])
    assert not compatible([*schema["fields"], {"name": "colour", "type": "string"}])
    assert not compatible([field for field in schema["fields"] if field["name"] != "content"])


def test_the_registry_refuses_registrations_from_outside(registry: SchemaRegistryClient):
    with pytest.raises(SchemaRegistryError):
        registry.register_schema("intruder-value", Schema('"string"', "AVRO"))
    assert "intruder-value" not in registry.get_subjects()


async def test_tail_shows_what_independent_decoders_find_in_the_bytes(
    demo: Business, phone: Phone, server: Server, registry: SchemaRegistryClient
):
    marker = uuid.uuid4().hex
    ids = await demo.say_all(phone.number, [f"رسالة {n}" for n in range(5)], reference=marker, ttl_s=3600)
    records = [r for r in server.topic("messages.accepted", "--raw") if r["value"]["reference"] == marker]
    assert [record["value"]["id"] for record in records] == ids
    deserialize = AvroDeserializer(registry)
    for number, record in enumerate(records):
        assert record["topic"] == "messages.accepted" and record["key"] == phone.number
        assert record["partition"] >= 0 and record["offset"] >= 0
        raw = base64.b64decode(record["value_base64"])
        assert raw[0] == 0, "Confluent wire format"
        schema_id = int.from_bytes(raw[1:5], "big")
        schema = fastavro.parse_schema(json.loads(registry.get_schema(schema_id).schema_str))
        by_fastavro = fastavro.schemaless_reader(io.BytesIO(raw[5:]), schema)
        by_confluent = deserialize(raw, SerializationContext(PREFIX + "messages.accepted", MessageField.VALUE))
        assert by_fastavro == by_confluent
        assert by_fastavro["content"] == record["value"]["content"] == f"رسالة {number}"
        assert str(by_fastavro["id"]) == record["value"]["id"] == record["headers"]["ce_id"]
        assert by_fastavro["sender"] == "demo" and by_fastavro["recipient"] == phone.number
        assert by_fastavro["type"] == "one_way" and by_fastavro["priority"] == "normal"
        assert by_fastavro.keys() == record["value"].keys()
        assert record["headers"]["es-to"] == phone.number and record["headers"]["es-from"] == "demo"
        assert record["headers"]["es-lane"] == "normal" and int(record["headers"]["es-expires-ms"]) > 0
        assert record["headers"]["traceparent"].startswith("00-")
    offsets = [record["offset"] for record in records]
    assert offsets == sorted(set(offsets)) and len({record["partition"] for record in records}) == 1


async def test_statuses_are_on_their_topic(demo: Business, phone: Phone, server: Server):
    async with await phone.connect_empty() as session:
        id = await demo.say(phone.number, "hello")
        [message] = await session.messages(1)
        await session.send("ack", cursor=message["cursor"])
        await demo.reaches(id, "delivered")
        await session.send("read", ids=[id])
        await demo.reaches(id, "read")
    steps = [r["value"] for r in server.topic("message.status") if r["value"]["id"] == id]
    assert [step["status"] for step in steps] == ["delivered", "read"]
    assert {(step["sender"], step["recipient"]) for step in steps} == {("demo", phone.number)}
