# shellcheck shell=bash
# Cassandra: one node, which speaks ScyllaDB's CQL. To be sourced by scripts/engines.

# What Java 17 must let Cassandra reach into.
cassandra_exports=(
    java.base/jdk.internal.misc java.base/jdk.internal.ref java.base/sun.nio.ch java.base/java.lang.ref
    java.management.rmi/com.sun.jmx.remote.internal.rmi java.rmi/sun.rmi.registry java.rmi/sun.rmi.server
    java.rmi/sun.rmi.transport.tcp java.sql/java.sql jdk.compiler/com.sun.tools.javac.file jdk.unsupported/sun.misc
)
cassandra_opens=(
    java.base/java.io java.base/java.lang java.base/java.lang.module java.base/java.lang.reflect java.base/java.nio
    java.base/java.util java.base/java.util.concurrent java.base/java.util.concurrent.atomic java.base/jdk.internal.loader
    java.base/jdk.internal.ref java.base/jdk.internal.reflect java.base/jdk.internal.math java.base/jdk.internal.module
    java.base/jdk.internal.util.jar java.base/sun.nio.ch jdk.compiler/com.sun.tools.javac
    jdk.management/com.sun.management.internal
)

# As Cassandra's own options for Java 17 have it: large regions, so that what a flush allocates does not begin a marking of the
# whole heap every few seconds.
cassandra_g1=(
    -XX:+UseG1GC -XX:+ParallelRefProcEnabled -XX:MaxTenuringThreshold=2 -XX:G1HeapRegionSize=16m
    -XX:+UnlockExperimentalVMOptions -XX:G1NewSizePercent=50 -XX:InitiatingHeapOccupancyPercent=70
    -XX:MaxGCPauseMillis=300
)

cassandra_configure() {
    local dir=$1
    free_port >"$dir/port"
    mkdir -p "$dir/conf" "$dir/data"
    cassandra_yaml "$dir" >"$dir/conf/cassandra.yaml"
    cat >"$dir/conf/logback.xml" <<'EOF'
<configuration>
  <appender name="out" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d{HH:mm:ss.SSS} %-5level %logger{0}: %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="out"/></root>
</configuration>
EOF
    cassandra_run "$dir" >"$dir/run"
}

# MiB of heap; a sixth of it, and a third beside it, are for what is not yet in files. Where that is little there are many small
# files, and merging them takes a fifth of two cores at 3,000 messages a second: measurements set ENGINES_CASSANDRA_HEAP=3072.
cassandra_heap() {
    echo "${ENGINES_CASSANDRA_HEAP:-1024}"
}

cassandra_yaml() {
    local dir=$1 heap
    heap=$(cassandra_heap)
    cat <<EOF
cluster_name: eshaar-$(basename "$(dirname "$dir")")
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{seeds: "127.0.0.1"}]
listen_address: 127.0.0.1
storage_port: $(free_port)
rpc_address: 127.0.0.1
native_transport_port: $(cat "$dir/port")
data_file_directories: ["$dir/data/data"]
commitlog_directory: "$dir/data/commitlog"
saved_caches_directory: "$dir/data/saved_caches"
hints_directory: "$dir/data/hints"
cdc_enabled: false
commitlog_disk_access_mode: legacy
$(cassandra_commitlog)
authenticator: PasswordAuthenticator
authorizer: AllowAllAuthorizer
# A conditional write takes fewer rounds than with the default, as ADR 0007 tells operators.
paxos_variant: v2
# One node on two cores.
concurrent_reads: 16
concurrent_writes: 32
concurrent_compactors: 1
# Off the heap, as Cassandra's own cassandra_latest.yaml has it: a collection that copies rows stops everything for half a second.
memtable_heap_space: $((heap / 6))MiB
memtable_offheap_space: $((heap / 3))MiB
memtable_allocation_type: offheap_objects
memtable: {configurations: {trie: {class_name: TrieMemtable}, default: {inherits: trie}}}
# Our batches have up to 40 KiB, of many partitions, on purpose. Each that is warned of is a line in the log, and in its answer.
batch_size_warn_threshold: 48KiB
unlogged_batch_across_partitions_warn_threshold: 100
file_cache_size: 64MiB
key_cache_size: 16MiB
# Keyspaces of tests are dropped all the time; nobody wants them back.
auto_snapshot: false
snapshot_before_compaction: false
EOF
}

# A single node that syncs periodically loses what it acknowledged in the last tenth of a second when it is killed, and no other
# replica has it. A test that kills it and counts afterwards sets ENGINES_CASSANDRA_SYNC=group: nothing is lost then, at a third
# of the rate.
cassandra_commitlog() {
    case "${ENGINES_CASSANDRA_SYNC:-periodic}" in
        periodic) printf 'commitlog_sync: periodic\ncommitlog_sync_period: 1s\n' ;;
        group) printf 'commitlog_sync: group\ncommitlog_sync_group_window: 2ms\n' ;;
        *) echo "engines: ENGINES_CASSANDRA_SYNC is neither periodic nor group" >&2; return 1 ;;
    esac
}

cassandra_run() {
    local dir=$1 java module heap
    java=$(find_java)
    heap=$(cassandra_heap)
    echo '#!/bin/sh'
    echo "exec $java -Xms$((heap / 2))m -Xmx${heap}m ${cassandra_g1[*]} -XX:-OmitStackTraceInFastThrow \\"
    for module in "${cassandra_exports[@]}"; do echo "    --add-exports $module=ALL-UNNAMED \\"; done
    for module in "${cassandra_opens[@]}"; do echo "    --add-opens $module=ALL-UNNAMED \\"; done
    # Nobody else is in this cluster to wait for; a cheap hash, since every connection of every test pays for it.
    cat <<EOF
    -Djdk.attach.allowAttachSelf=true -Djava.awt.headless=true -Djava.io.tmpdir="$dir/data" \\
    -Dcassandra.config="file://$dir/conf/cassandra.yaml" -Dcassandra.storagedir="$dir/data" -Dcassandra-foreground=yes \\
    -Dcassandra.superuser_setup_delay_ms=0 -Dcassandra.skip_wait_for_gossip_to_settle=0 -Dcassandra.ring_delay_ms=0 \\
    -Dcassandra.auth_bcrypt_gensalt_log2_rounds=4 \\
    -cp "$dir/conf:${engines_home:?}/cassandra/lib/*" org.apache.cassandra.service.CassandraDaemon
EOF
}

# Whether the superuser, who is made after the port has opened, can log in: STARTUP (1) with the version of CQL is answered by
# AUTHENTICATE (3), AUTH_RESPONSE (15) by AUTH_SUCCESS (16), in the headers of nine bytes of CQL's protocol 4.
cassandra_ready() {
    local startup='\4\0\0\0\1\0\0\0\26\0\1\0\13CQL_VERSION\0\0053.0.0' authenticate=$((9 + 49))
    local login='\4\0\0\1\17\0\0\0\30\0\0\0\24\0cassandra\0cassandra'
    [[ $(answer "$(cat "$1/port")" "$startup" $authenticate "$login" 9) == 8400000003*8400000110* ]]
}

cassandra_env() {
    echo "ENGINE_CQL=127.0.0.1:$(cat "$1/port")"
    echo "ENGINE_CQL_USER=cassandra"
    echo "ENGINE_CQL_PASSWORD=cassandra"
}
