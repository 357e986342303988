"""`eshaar check` on a cluster: what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from cluster import Cluster, engine
from server import free_port

pytestmark = pytest.mark.engines


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "data").apply()
    cluster.new_key("acme")
    yield cluster


def findings(cluster: Cluster, settings: dict[str, str] | None = None) -> list[str]:
    """The lines of what is wrong."""
    done = cluster.run("check", settings={"listen": f"127.0.0.1:{free_port()}"} | (settings or {}))
    wrong = [line for line in done.stdout.splitlines() if "WRONG" in line]
    assert (done.returncode == 0) == (not wrong), done.stdout + done.stderr
    return wrong


def test_a_cluster_that_is_as_it_must_be_passes(cluster: Cluster):
    assert findings(cluster) == []


def test_a_wrong_port_is_named(cluster: Cluster):
    for key, what in [("kafka.bootstrap_servers", "kafka"), ("registry.url", "registry")]:
        address = f"127.0.0.1:{free_port()}"
        value = f"http://{address}" if what == "registry" else address
        [wrong] = findings(cluster, {key: value})
        assert what in wrong and address in wrong
    for key, what in [("scylla.nodes", "scylla"), ("redis.addresses", "redis")]:
        address = f"127.0.0.1:{free_port()}"
        [wrong] = findings(cluster, {key: f'["{address}"]'})
        assert what in wrong and address in wrong


def test_a_wrong_password_is_named_and_never_printed(cluster: Cluster):
    for what in ("scylla", "redis"):
        [wrong] = findings(cluster, {f"{what}.password": "hunter2"})
        assert what in wrong and "password" in wrong and "hunter2" not in wrong


def test_a_missing_topic_is_named_and_what_to_do(cluster: Cluster):
    admin = AdminClient({"bootstrap.servers": engine("KAFKA")})
    topic = f"{cluster.prefix}lane.low"
    admin.delete_topics([topic])[topic].result(30)
    [wrong] = findings(cluster)
    assert topic in wrong and "missing" in wrong and "eshaar topics apply" in wrong
    cluster.cli("topics", "apply")
    assert findings(cluster) == []


def test_a_wrong_number_of_partitions_is_named_and_not_changed(cluster: Cluster):
    admin = AdminClient({"bootstrap.servers": engine("KAFKA")})
    topic = f"{cluster.prefix}lane.low"
    admin.delete_topics([topic])[topic].result(30)
    admin.create_topics([NewTopic(topic, 3, 1)])[topic].result(30)
    [wrong] = findings(cluster)
    assert topic in wrong and "3 partitions" in wrong and "epoch" in wrong
    refused = cluster.run("topics", "apply")
    assert refused.returncode != 0 and topic in refused.stdout + refused.stderr


def test_an_old_schema_is_named_and_what_to_do(cluster: Cluster):
    registry = SchemaRegistryClient({"url": engine("REGISTRY")})
    subject = f"{cluster.prefix}messages.accepted-value"
    registry.delete_subject(subject)
    registry.register_schema(subject, Schema('{"type":"record","name":"Message","fields":[]}', "AVRO"))
    [wrong] = findings(cluster)
    assert subject in wrong and "eshaar topics apply" in wrong


def test_tables_that_are_not_there_are_named_and_what_to_do(cluster: Cluster):
    [wrong] = findings(cluster, {"scylla.keyspace": "nobody_made_this"})
    assert "nobody_made_this" in wrong and "eshaar store apply" in wrong
