//! What Redis runs for us. Time is the server's, so that the clocks of our machines need not agree.
//!
//! Each script touches one key: all of them work in a cluster. The first argument of each is added to the server's time;
//! it is 0 but in tests.

use redis::{Cmd, Script, ToRedisArgs};

const NOW: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
";

/// A node is a field of one hash: slot → `incarnation end address`. `holder` is who has a slot now.
const NODES: &str = "
local function parse(entry)
    return string.match(entry, '^(%d+) (%d+) (.*)$')
end
local function holder(slot)
    local entry = redis.call('HGET', KEYS[1], slot)
    if not entry then return nil end
    local incarnation, ends = parse(entry)
    if tonumber(ends) > now then return incarnation end
end
local function enter(slot, incarnation, address, ttl)
    redis.call('HSET', KEYS[1], slot, string.format('%s %.0f %s', incarnation, now + ttl, address))
    redis.call('PEXPIRE', KEYS[1], ttl)
end
";

/// KEYS: nodes. ARGV: shift, ttl, slots, wanted slot or nothing, incarnation, address. The slot, or -1.
const LEASE: &str = "
local wanted = ARGV[4] ~= ''
local first, last = 0, ARGV[3] - 1
if wanted then
    first = tonumber(ARGV[4])
    last = math.min(first, last)
end
for slot = first, last do
    if wanted or not holder(slot) then
        enter(slot, ARGV[5], ARGV[6], ARGV[2])
        return slot
    end
end
return -1
";

/// KEYS: nodes. ARGV: shift, ttl, slot, incarnation, address. 0: the slot has another holder.
const ANNOUNCE: &str = "
local held = holder(ARGV[3])
if held and held ~= ARGV[4] then return 0 end
enter(ARGV[3], ARGV[4], ARGV[5], ARGV[2])
return 1
";

/// KEYS: nodes. ARGV: shift, slot, incarnation.
const WITHDRAW: &str = "
if holder(ARGV[2]) == ARGV[3] then redis.call('HDEL', KEYS[1], ARGV[2]) end
";

/// KEYS: nodes. ARGV: shift. The time, then slot, incarnation and address of each node that lives.
const LIVE: &str = "
local live = {now}
local all = redis.call('HGETALL', KEYS[1])
for place = 1, #all, 2 do
    local incarnation, ends, address = parse(all[place + 1])
    if tonumber(ends) > now then
        live[#live + 1] = tonumber(all[place])
        live[#live + 1] = incarnation
        live[#live + 1] = address
    end
end
return live
";

/// KEYS: connections of a principal. ARGV: shift, ttl, member. 1: it was there, and had not lapsed.
const ENTER: &str = "
local ends = redis.call('ZSCORE', KEYS[1], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ends and tonumber(ends) > now then return 1 end
return 0
";

/// All scripts.
pub(super) struct Scripts {
    pub(super) lease: Source,
    pub(super) announce: Source,
    pub(super) withdraw: Source,
    pub(super) live: Source,
    pub(super) enter: Source,
}

/// A script: run by its hash, sent whole only when a server does not know it.
pub(super) struct Source {
    text: String,
    hash: String,
}

impl Source {
    fn new(parts: &[&str]) -> Self {
        let text = parts.concat();
        Self { hash: Script::new(&text).get_hash().to_owned(), text }
    }

    /// The command that runs it on `key`.
    pub(super) fn call(&self, key: impl ToRedisArgs, shift: i64) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(1).arg(key).arg(shift);
        command
    }
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            lease: Source::new(&[NOW, NODES, LEASE]),
            announce: Source::new(&[NOW, NODES, ANNOUNCE]),
            withdraw: Source::new(&[NOW, NODES, WITHDRAW]),
            live: Source::new(&[NOW, NODES, LIVE]),
            enter: Source::new(&[NOW, ENTER]),
        }
    }

    /// The commands that make a server know all of them.
    pub(super) fn loading(&self) -> redis::Pipeline {
        let mut pipeline = redis::pipe();
        for source in [&self.lease, &self.announce, &self.withdraw, &self.live, &self.enter] {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(&source.text);
        }
        pipeline
    }
}
