//! Idempotency claims. The claim is a row that is only ever written conditionally; its answer, which needs no decision, is
//! a row of another table, under the ids that the claim minted: an answer to an earlier claim of the key is not found.

use async_trait::async_trait;
use bytes::Bytes;
use eshaar_model::{MessageId, Timestamp};
use uuid::Uuid;

use super::Cql;
use super::call::Call;
use super::columns::{time, ttl_s};
use super::conditional::Decision;
use super::gather::Write;
use crate::claims::KEPT_MS;
use crate::{Claim, ClaimKey, ClaimStore, Claimed, StoreError};

/// Rounds of claiming, finding a claim that has just run out, and taking it over.
const ROUNDS: usize = 8;

#[async_trait]
impl ClaimStore for Cql {
    async fn claim(&self, key: &ClaimKey, claim: Claim) -> Result<Claimed, StoreError> {
        let call = self.call("claim")?;
        let now = self.clock.now();
        let mine = Mine { holder: MessageId::new(now).into(), ttl_s: ttl_s(left_ms(claim.claimed_at, now)), claim };
        for _ in 0..ROUNDS {
            let Some(known) = mine.unless_claimed(&call, key).await? else { return Ok(Claimed::First) };
            if left_ms(known.claim.claimed_at, now) > 0 {
                let answer = answer(&call, key, &known.claim.minted).await?;
                return Ok(Claimed::Repeat(Claim { answer, ..known.claim }));
            }
            // By our clock it is gone, though not by the cluster's yet.
            if mine.take_over(&call, key, known.holder).await? {
                return Ok(Claimed::First);
            }
        }
        Err(call.failed("others claim the key at the same time, and it is not decided whose it is"))
    }

    async fn answered(&self, key: &ClaimKey, minted: &Bytes, answer: Bytes) -> Result<(), StoreError> {
        let call = self.call("answer_claim")?;
        let bytes = answer.len();
        let values = (key.principal.clone(), key.key.clone(), minted.clone(), answer, ttl_s(KEPT_MS));
        call.write(vec![Write::new(&call.statements().put_answer, values, bytes)]).await
    }

    /// Claims go by themselves.
    async fn trim(&self, _now: Timestamp) -> Result<usize, StoreError> {
        self.call("trim_claims").map(|_| 0)
    }
}

fn left_ms(claimed_at: Timestamp, now: Timestamp) -> i64 {
    claimed_at.plus_millis(KEPT_MS).millis_since(now)
}

/// A claim that is to be made, under a name of its own by which it is known again.
struct Mine {
    holder: Uuid,
    ttl_s: i32,
    claim: Claim,
}

/// A claim that was there before.
struct Known {
    holder: Uuid,
    claim: Claim,
}

impl Mine {
    /// Makes the claim, unless there is one: that one.
    async fn unless_claimed(&self, call: &Call<'_>, key: &ClaimKey) -> Result<Option<Known>, StoreError> {
        let Claim { body_hash, minted, claimed_at, .. } = &self.claim;
        let values = (&key.principal, &key.key, self.holder, &body_hash[..], minted, time(*claimed_at), self.ttl_s);
        let decision = call.decide(&call.statements().claim, &values).await?;
        if self.is_mine(&decision) {
            return Ok(None);
        }
        known(&decision).map(Some).ok_or_else(|| call.failed("a claim that was refused does not say by which one"))
    }

    async fn take_over(&self, call: &Call<'_>, key: &ClaimKey, from: Uuid) -> Result<bool, StoreError> {
        let Claim { body_hash, minted, claimed_at, .. } = &self.claim;
        let values =
            (self.ttl_s, self.holder, &body_hash[..], minted, time(*claimed_at), &key.principal, &key.key, from);
        Ok(self.is_mine(&call.decide(&call.statements().take_over_claim, &values).await?))
    }

    /// Also when it was refused because of an attempt of ours before it, whose outcome had not been known.
    fn is_mine(&self, decision: &Decision) -> bool {
        decision.applied || decision.uuid("holder") == Some(self.holder)
    }
}

fn known(decision: &Decision) -> Option<Known> {
    let claim = Claim {
        body_hash: decision.blob("body_hash")?.try_into().ok()?,
        minted: Bytes::copy_from_slice(decision.blob("minted")?),
        answer: None,
        claimed_at: decision.timestamp("claimed_at")?,
    };
    Some(Known { holder: decision.uuid("holder")?, claim })
}

async fn answer(call: &Call<'_>, key: &ClaimKey, minted: &Bytes) -> Result<Option<Bytes>, StoreError> {
    let row = call.first::<(Bytes,)>(&call.statements().answer, (&key.principal, &key.key, minted)).await?;
    Ok(row.map(|(answer,)| answer))
}
