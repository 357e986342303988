# shellcheck shell=bash
# Kafka: one node that is broker and controller (KRaft). To be sourced by scripts/engines.

kafka_configure() {
    local dir=$1 port controller java
    java=$(find_java)
    port=$(free_port)
    controller=$(free_port)
    cat >"$dir/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=BROKER://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=BROKER://127.0.0.1:$port
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=BROKER
log.dirs=$dir/data
# Topics are made by whoever needs them; one that appears by itself hides a wrong name.
auto.create.topics.enable=false
# One node: nothing to replicate to.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
# Groups form and move at once.
group.initial.rebalance.delay.ms=0
group.consumer.heartbeat.interval.ms=500
group.consumer.min.heartbeat.interval.ms=500
group.min.session.timeout.ms=1000
# A member that was killed is missed for so long.
group.consumer.session.timeout.ms=6000
group.consumer.min.session.timeout.ms=1000
# What retention lets go of is gone within a second or two, so that tests can see it.
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=100
log.cleaner.backoff.ms=1000
log.cleaner.dedupe.buffer.size=4194304
log.initial.task.delay.ms=1000
# A broker that was killed is let in again when its session has ended: until then the controller takes it for a second one
# of its number (9 s by default).
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
EOF
    cat >"$dir/log4j2.properties" <<'EOF'
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{HH:mm:ss.SSS} %-5p %c{1}: %m%n
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=out
EOF
    # G1: with the serial collector one append in a hundred takes 50 ms at 3,000 a second, with G1 13 ms.
    cat >"$dir/run" <<EOF
#!/bin/sh
set -e
set -- -cp "${engines_home:?}/kafka/lib/*" "-Dlog4j2.configurationFile=$dir/log4j2.properties" -Djava.awt.headless=true
[ -f "$dir/data/meta.properties" ] ||
    $java "\$@" -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx128m kafka.tools.StorageTool format \\
        --ignore-formatted --cluster-id $(random_id) --config "$dir/server.properties"
exec $java "\$@" -Xms256m -Xmx512m -XX:+UseG1GC -XX:MaxGCPauseMillis=20 kafka.Kafka "$dir/server.properties"
EOF
    echo "$port" >"$dir/port"
}

# Sixteen random bytes in base64 for URLs, as Kafka writes the id of a cluster.
random_id() {
    head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '='
}

# Whether the metadata names a broker: Metadata (3), version 1, of no topics; the answer counts the brokers that are up
# after its length and its correlation id.
kafka_ready() {
    local answered
    answered=$(answer "$(cat "$1/port")" '\0\0\0\20\0\3\0\1\0\0\0\1\0\2es\0\0\0\0' 12)
    [ "${answered:8}" = 0000000100000001 ]
}

# Runs one of Kafka's own tools, by the name of its class.
kafka_tool() {
    local java
    java=$(find_java)
    # shellcheck disable=SC2086 # several words
    exec $java -XX:TieredStopAtLevel=1 -cp "${engines_home:?}/kafka/lib/*" "$@"
}

kafka_env() {
    echo "ENGINE_KAFKA=127.0.0.1:$(cat "$1/port")"
}
