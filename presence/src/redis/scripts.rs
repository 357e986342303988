//! What Redis runs for us. Time is the server's, so that the clocks of our machines need not agree.
//!
//! Each script touches one key, or keys that a hash tag keeps together: all of them work in a cluster. The first argument of each is added to the server's time;
//! it is 0 but in tests.

use redis::{Cmd, Script, ToRedisArgs};

const NOW: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
";

/// A node is a field of one hash: slot → `incarnation end @since address`. `since` is when it was entered, 0 where a look-up
/// found that it had lapsed. `holder` is who has a slot now. Entries stay for a while after they lapsed.
const NODES: &str = "
local KEPT = 3600000
local function parse(entry)
    local incarnation, ends, since, address = string.match(entry, '^(%d+) (%d+) @(%d+) (.*)$')
    if incarnation then return incarnation, ends, address, since end
    return string.match(entry, '^(%d+) (%d+) (.*)$')
end
local function holder(slot)
    local entry = redis.call('HGET', KEYS[1], slot)
    if not entry then return nil end
    local incarnation, ends = parse(entry)
    if tonumber(ends) > now then return incarnation end
end
local function put(slot, incarnation, ends, since, address)
    redis.call('HSET', KEYS[1], slot, string.format('%s %.0f @%s %s', incarnation, ends, since, address))
end
local function enter(slot, incarnation, since, address, ttl)
    put(slot, incarnation, now + ttl, since, address)
    redis.call('PEXPIRE', KEYS[1], KEPT)
end
local function present()
    return string.format('%.0f', now)
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
        enter(slot, ARGV[5], present(), ARGV[6], ARGV[2])
        return slot
    end
end
return -1
";

/// KEYS: nodes. ARGV: shift, ttl, slot, incarnation, address. 0: the slot has another holder; else when it was entered.
const ANNOUNCE: &str = "
local held = holder(ARGV[3])
if held and held ~= ARGV[4] then return 0 end
local since = present()
local entry = redis.call('HGET', KEYS[1], ARGV[3])
if entry then
    local incarnation, _, _, entered = parse(entry)
    if incarnation == ARGV[4] and entered and entered ~= '0' then since = entered end
end
enter(ARGV[3], ARGV[4], since, ARGV[5], ARGV[2])
return tonumber(since)
";

/// KEYS: nodes. ARGV: shift, slot, incarnation.
const WITHDRAW: &str = "
if holder(ARGV[2]) == ARGV[3] then redis.call('HDEL', KEYS[1], ARGV[2]) end
";

/// KEYS: nodes. ARGV: shift, the time until which it is a look-up. The time, then slot, incarnation and address of each node that
/// lives. A look-up marks those that have lapsed, once, and lets go of those that lapsed long ago. Past its time it does
/// neither: Redis was stopped, and the caller no longer waits for the answer.
const LIVE: &str = "
local live = {now}
local all = redis.call('HGETALL', KEYS[1])
for place = 1, #all, 2 do
    local incarnation, ends, address, since = parse(all[place + 1])
    if tonumber(ends) > now then
        live[#live + 1] = tonumber(all[place])
        live[#live + 1] = incarnation
        live[#live + 1] = address
    elseif now <= tonumber(ARGV[2]) then
        if tonumber(ends) + KEPT < now then
            redis.call('HDEL', KEYS[1], all[place])
        elseif since ~= '0' then
            put(all[place], incarnation, ends, '0', address)
        end
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

/// KEYS: windows. ARGV: shift, then for each caller: how many it wants, the number of its limits, and for each of those the
/// place of its window in KEYS, the most that it may have there, and the length of a slot. For each caller: how many are
/// granted, in how many milliseconds there are more; and for each of its limits: how many are left, and when there are more.
/// A window is read and written once, however many callers it has. What is granted of one limit is charged to all.
const TAKE: &str = "
local SLOTS = 60
local windows = {}
local function window(place, width)
    if windows[place] then return windows[place] end
    local slot = math.floor(now / width)
    local found = {slot = slot, width = width, order = {}, counts = {}, used = 0, added = 0}
    local all = redis.call('HGETALL', KEYS[place])
    for at = 1, #all, 2 do
        local of = tonumber(all[at])
        if of + SLOTS < slot then
            redis.call('HDEL', KEYS[place], all[at])
        else
            local count = tonumber(all[at + 1])
            found.order[#found.order + 1] = of
            found.counts[of] = count
            found.used = found.used + count
        end
    end
    table.sort(found.order)
    windows[place] = found
    return found
end
local function free_in(of, count)
    for _, slot in ipairs(of.order) do
        count = count - of.counts[slot]
        if count <= 0 then return math.max((slot + SLOTS + 1) * of.width - now, 0) end
    end
    return 0
end
local function add(of, count)
    if count == 0 then return end
    if not of.counts[of.slot] then
        of.counts[of.slot] = 0
        of.order[#of.order + 1] = of.slot
        table.sort(of.order)
    end
    of.counts[of.slot] = of.counts[of.slot] + count
    of.used = of.used + count
    of.added = of.added + count
end
local answers = {}
local at = 2
while at <= #ARGV do
    local wanted, limits = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    at = at + 2
    local granted, mine = wanted, {}
    for limit = 1, limits do
        local of = window(tonumber(ARGV[at]), tonumber(ARGV[at + 2]))
        local most = tonumber(ARGV[at + 1])
        mine[limit] = {of = of, most = most}
        granted = math.min(granted, math.max(most - of.used, 0))
        at = at + 3
    end
    local head = #answers
    answers[head + 1], answers[head + 2] = granted, 0
    for _, limit in ipairs(mine) do
        add(limit.of, granted)
        local left = math.max(limit.most - limit.of.used, 0)
        local more_in = free_in(limit.of, math.max(limit.of.used + 1 - limit.most, 1))
        if granted < wanted and left == 0 then answers[head + 2] = math.max(answers[head + 2], more_in) end
        answers[#answers + 1] = left
        answers[#answers + 1] = more_in
    end
end
for place, of in pairs(windows) do
    if of.added > 0 then
        redis.call('HINCRBY', KEYS[place], string.format('%.0f', of.slot), of.added)
        redis.call('PEXPIRE', KEYS[place], (SLOTS + 2) * of.width)
    end
end
return answers
";

/// KEYS: depths. ARGV: shift, ttl, then place, interactive and bulk of each.
const TELL_DEPTHS: &str = "
for at = 3, #ARGV, 3 do
    local depth = string.format('%s %s %.0f', ARGV[at + 1], ARGV[at + 2], now + ARGV[2])
    redis.call('HSET', KEYS[1], ARGV[at], depth)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
";

/// KEYS: depths. ARGV: shift. Place, interactive and bulk of each that has not lapsed.
const DEPTHS: &str = "
local live = {}
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
    local interactive, bulk, ends = string.match(all[at + 1], '^(%d+) (%d+) (%d+)$')
    if tonumber(ends) > now then
        live[#live + 1] = all[at]
        live[#live + 1] = interactive
        live[#live + 1] = bulk
    end
end
return live
";

/// KEYS: a place of the cache. ARGV: shift, token, ttl, generation. What is held there, a lease or a value of this generation;
/// else nothing: the lease is the asker's.
const LEASE_VALUE: &str = "
local held = redis.call('GET', KEYS[1])
if held and (string.sub(held, 1, 1) == 'L' or string.sub(held, 2, 9) == ARGV[4]) then return held end
redis.call('SET', KEYS[1], 'L' .. ARGV[2], 'PX', ARGV[3])
return false
";

/// KEYS: a place of the cache. ARGV: shift, token, ttl, what is to be held there, if the lease still is.
const PUT_VALUE: &str = "
if redis.call('GET', KEYS[1]) == 'L' .. ARGV[2] then redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3]) end
";

/// All scripts.
pub(super) struct Scripts {
    pub(super) lease: Source,
    pub(super) announce: Source,
    pub(super) withdraw: Source,
    pub(super) live: Source,
    pub(super) enter: Source,
    pub(super) take: Source,
    pub(super) tell_depths: Source,
    pub(super) depths: Source,
    pub(super) lease_value: Source,
    pub(super) put_value: Source,
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

    /// The command that runs it on `keys`, which a cluster must have on one node.
    pub(super) fn call_many(&self, keys: &[String], shift: i64) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.hash).arg(keys.len()).arg(keys).arg(shift);
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
            take: Source::new(&[NOW, TAKE]),
            tell_depths: Source::new(&[NOW, TELL_DEPTHS]),
            depths: Source::new(&[NOW, DEPTHS]),
            lease_value: Source::new(&[LEASE_VALUE]),
            put_value: Source::new(&[PUT_VALUE]),
        }
    }

    /// The commands that make a server know all of them.
    pub(super) fn loading(&self) -> redis::Pipeline {
        let mut pipeline = redis::pipe();
        let of_sessions = [&self.lease, &self.announce, &self.withdraw, &self.live, &self.enter];
        let of_flow = [&self.take, &self.tell_depths, &self.depths];
        let of_cache = [&self.lease_value, &self.put_value];
        for source in of_sessions.into_iter().chain(of_flow).chain(of_cache) {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(&source.text);
        }
        pipeline
    }
}
