//! Depths within one process.

use async_trait::async_trait;

use super::LocalPresence;
use crate::PresenceError;
use crate::depths::{DEPTH_TTL, Depth, Depths};

#[async_trait]
impl Depths for LocalPresence {
    async fn publish(&self, depths: &[Depth]) -> Result<(), PresenceError> {
        let now = self.clock.now();
        let until = now.plus_millis(DEPTH_TTL.as_millis() as i64);
        let mut known = self.depths.lock();
        known.retain(|(_, known_until)| *known_until > now);
        for depth in depths {
            let same = |known: &Depth| known.stage == depth.stage && known.partition == depth.partition;
            match known.iter_mut().find(|(known, _)| same(known)) {
                Some(entry) => *entry = (depth.clone(), until),
                None => known.push((depth.clone(), until)),
            }
        }
        Ok(())
    }

    async fn depths(&self) -> Result<Vec<Depth>, PresenceError> {
        let now = self.clock.now();
        Ok(self.depths.lock().iter().filter(|(_, until)| *until > now).map(|(depth, _)| depth.clone()).collect())
    }
}
