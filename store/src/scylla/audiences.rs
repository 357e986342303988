//! Audiences and lists of recipients. A list is cut into partitions of 64 pages, half a MiB, which are deleted whole.

use async_trait::async_trait;
use eshaar_model::{BusinessId, Phone, RecipientsId, Timestamp};
use scylla::value::{CqlTimestamp, MaybeUnset};
use uuid::Uuid;

use super::Cql;
use super::buckets::{self, Bucket, Queue};
use super::columns::{integer, time, timestamp};
use super::gather::Write;
use crate::audiences::{LISTED, PART_PAGES, pack, unpack};
use crate::{Audience, AudienceStore, Expiry, StoreError};

#[async_trait]
impl AudienceStore for Cql {
    async fn put_page(&self, list: RecipientsId, page: u32, phones: Vec<Phone>) -> Result<(), StoreError> {
        let call = self.call("put_recipients")?;
        let phones = pack(&phones);
        let bytes = phones.len();
        let values = (Uuid::from(list), (page / PART_PAGES) as i32, page as i32, phones);
        call.write(vec![Write::new(&call.statements().put_recipients, values, bytes)]).await
    }

    async fn page(&self, list: RecipientsId, page: u32) -> Result<Vec<Phone>, StoreError> {
        let call = self.call("recipients")?;
        let place = (Uuid::from(list), (page / PART_PAGES) as i32, page as i32);
        let Some((phones,)) = call.first::<(Vec<u8>,)>(&call.statements().recipients, place).await? else {
            return Ok(Vec::new());
        };
        unpack(&phones).ok_or_else(|| call.failed("a page of recipients is not as it was written"))
    }

    async fn delete_pages(&self, list: RecipientsId, part: u32) -> Result<bool, StoreError> {
        let call = self.call("delete_recipients")?;
        let place = (Uuid::from(list), part as i32);
        if call.first::<(i32,)>(&call.statements().any_recipients, place).await?.is_none() {
            return Ok(false);
        }
        call.write(vec![Write::new(&call.statements().delete_recipients, place, 0)]).await?;
        Ok(true)
    }

    async fn put(&self, audience: Audience) -> Result<(), StoreError> {
        let call = self.call("put_audience")?;
        let Audience { business, name, recipients, total, uploaded_at } = audience;
        let business = business.as_str().to_owned();
        let values = (business, name, Uuid::from(recipients), integer(total), time(uploaded_at));
        call.write(vec![Write::new(&call.statements().put_audience, values, 0)]).await
    }

    async fn get(&self, business: &BusinessId, name: &str) -> Result<Option<Audience>, StoreError> {
        let call = self.call("get_audience")?;
        let rows = call.read(&call.statements().audience, (business.as_str(), name)).await?;
        Ok(call.rows(&rows, audience)?.pop())
    }

    async fn list(&self, business: &BusinessId) -> Result<Vec<Audience>, StoreError> {
        let call = self.call("list_audiences")?;
        let rows = call.read(&call.statements().audiences, (business.as_str(), LISTED as i32)).await?;
        call.rows(&rows, audience)
    }

    async fn remove(&self, business: &BusinessId, name: &str) -> Result<(), StoreError> {
        let call = self.call("remove_audience")?;
        let values = (business.as_str().to_owned(), name.to_owned());
        call.write(vec![Write::new(&call.statements().delete_audience, values, 0)]).await
    }

    async fn expire(&self, expiry: Expiry) -> Result<(), StoreError> {
        let call = self.call("expire_recipients")?;
        let (business, name) = expiry.audience.map(|(business, name)| (business.as_str().to_owned(), name)).unzip();
        let (business, name) = (MaybeUnset::from_option(business), MaybeUnset::from_option(name));
        let of = Bucket::of(expiry.due, expiry.recipients.as_bytes());
        let list = Uuid::from(expiry.recipients);
        let values = (of.bucket, of.shard, time(expiry.due), list, business, name);
        call.write(vec![Write::new(&call.statements().expire_list, values, 0)]).await?;
        call.write(vec![buckets::enter(&call, Queue::ListsDue, of)]).await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Expiry>, StoreError> {
        let call = self.call("recipients_due")?;
        let mut due = Vec::new();
        for entry in buckets::entered(&call, Queue::ListsDue, Some(now)).await? {
            let of = entry.of;
            let values = (of.bucket, of.shard, time(now), limit as i32);
            let rows = call.read(&call.statements().lists_due, values).await?;
            let found = call.rows(&rows, |row: ExpiryColumns| expiry(row))?;
            if found.is_empty() {
                buckets::leave(&call, Queue::ListsDue, entry, self.clock.now()).await?;
            }
            due.extend(found);
            if due.len() >= limit {
                break;
            }
        }
        due.sort_unstable_by_key(|expiry| expiry.due);
        due.truncate(limit);
        Ok(due)
    }

    async fn forget(&self, expiry: &Expiry) -> Result<(), StoreError> {
        let call = self.call("forget_recipients")?;
        let of = Bucket::of(expiry.due, expiry.recipients.as_bytes());
        let values = (of.bucket, of.shard, time(expiry.due), Uuid::from(expiry.recipients));
        call.write(vec![Write::new(&call.statements().forget_list, values, 0)]).await
    }
}

type ExpiryColumns = (CqlTimestamp, Uuid, Option<String>, Option<String>);

fn expiry((due, list, business, name): ExpiryColumns) -> Result<Expiry, String> {
    let business = business.map(|business| business.parse().map_err(|_| wrong("business"))).transpose()?;
    Ok(Expiry {
        due: timestamp(due),
        recipients: RecipientsId::try_from(list).map_err(|_| wrong("list"))?,
        audience: business.zip(name),
    })
}

type AudienceColumns = (String, String, Uuid, i64, CqlTimestamp);

fn audience((business, name, list, total, uploaded_at): AudienceColumns) -> Result<Audience, String> {
    Ok(Audience {
        business: business.parse().map_err(|_| wrong("business"))?,
        name,
        recipients: RecipientsId::try_from(list).map_err(|_| wrong("list"))?,
        total: u64::try_from(total).map_err(|_| wrong("total"))?,
        uploaded_at: timestamp(uploaded_at),
    })
}

fn wrong(field: &str) -> String {
    format!("{field} of a list of recipients is not as it was written")
}
