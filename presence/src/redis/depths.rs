//! Depths in Redis: one hash, `<prefix>depths`: `stage:partition` → `interactive bulk end`.

use async_trait::async_trait;
use redis::Value;

use super::{RedisPresence, millis, unexpected};
use crate::PresenceError;
use crate::depths::{DEPTH_TTL, Depth, Depths};

impl RedisPresence {
    fn depths_key(&self) -> String {
        format!("{}depths", self.link.prefix())
    }
}

#[async_trait]
impl Depths for RedisPresence {
    async fn publish(&self, depths: &[Depth]) -> Result<(), PresenceError> {
        if depths.is_empty() {
            return Ok(());
        }
        let mut command = self.link.scripts().tell_depths.call(self.depths_key(), self.shift());
        command.arg(millis(DEPTH_TTL));
        for depth in depths {
            command.arg(format!("{}:{}", depth.stage, depth.partition)).arg(depth.interactive).arg(depth.bulk);
        }
        self.run("publish depths", command).await.map(drop)
    }

    async fn depths(&self) -> Result<Vec<Depth>, PresenceError> {
        const ACTION: &str = "look up depths";
        let command = self.link.scripts().depths.call(self.depths_key(), self.shift());
        let Value::Array(fields) = self.run(ACTION, command).await? else { return Err(unexpected(ACTION)) };
        fields.chunks(3).map(|fields| depth(fields).ok_or_else(|| unexpected(ACTION))).collect()
    }
}

fn depth(fields: &[Value]) -> Option<Depth> {
    let [Value::BulkString(place), interactive, bulk] = fields else { return None };
    let (stage, partition) = std::str::from_utf8(place).ok()?.rsplit_once(':')?;
    let number = |value: &Value| match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    };
    Some(Depth {
        stage: stage.to_owned(),
        partition: partition.parse().ok()?,
        interactive: number(interactive)?,
        bulk: number(bulk)?,
    })
}
