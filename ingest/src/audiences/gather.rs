//! The phones of an upload, each once, without holding them all: they are spread over buckets by a hash that no sender knows,
//! a full bucket is put aside in the store as a page, and at the end each bucket is read back, sorted, and written to the
//! list without its repeats. So the list is in no order of the upload's. Of 10,000,000 phones a bucket holds some 160,000.

use std::hash::{BuildHasher as _, RandomState};

use eshaar_model::{BusinessId, Phone, RecipientsId, Timestamp};
use eshaar_store::audiences::{self, PAGE_PHONES};
use eshaar_store::{AudienceStore, StoreError};

const BUCKETS: usize = 64;

/// A list that is being made.
pub(super) struct Gather<'a> {
    store: &'a dyn AudienceStore,
    list: RecipientsId,
    /// What was put aside: page number `n` of a bucket is page `n * BUCKETS + bucket`.
    aside: RecipientsId,
    hash: RandomState,
    buckets: Vec<Bucket>,
}

#[derive(Default)]
struct Bucket {
    phones: Vec<Phone>,
    /// Pages of it that were put aside.
    pages: u32,
}

impl<'a> Gather<'a> {
    /// Begins a list, which is to be an audience's. Should it not become that, the store lets go of it.
    pub(super) async fn begin(
        store: &'a dyn AudienceStore,
        business: &BusinessId,
        name: &str,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let (list, aside) = (super::new_list(now), super::new_list(now));
        audiences::begin(store, list, Some((business.clone(), name.to_owned())), now).await?;
        audiences::begin(store, aside, None, now).await?;
        let buckets = (0..BUCKETS).map(|_| Bucket::default()).collect();
        Ok(Self { store, list, aside, hash: RandomState::new(), buckets })
    }

    /// Adds a phone.
    pub(super) async fn add(&mut self, phone: Phone) -> Result<(), StoreError> {
        let place = self.hash.hash_one(phone) as usize % BUCKETS;
        let bucket = &mut self.buckets[place];
        bucket.phones.push(phone);
        if bucket.phones.len() < PAGE_PHONES {
            return Ok(());
        }
        sort(&mut bucket.phones);
        // A bucket of few phones that come again and again is not put aside each time.
        if bucket.phones.len() > PAGE_PHONES / 2 {
            let phones = std::mem::take(&mut bucket.phones);
            let page = bucket.pages * BUCKETS as u32 + place as u32;
            bucket.pages += 1;
            self.store.put_page(self.aside, page, phones).await?;
        }
        Ok(())
    }

    /// Writes the list; returns it, and how many it has.
    pub(super) async fn end(self) -> Result<(RecipientsId, u64), StoreError> {
        let Self { store, list, aside, buckets, .. } = self;
        let (mut page, mut written, mut total) = (Vec::with_capacity(PAGE_PHONES), 0, 0_u64);
        let any_aside = buckets.iter().any(|bucket| bucket.pages > 0);
        for (place, Bucket { mut phones, pages }) in buckets.into_iter().enumerate() {
            for number in 0..pages {
                phones.extend(store.page(aside, number * BUCKETS as u32 + place as u32).await?);
            }
            sort(&mut phones);
            total += phones.len() as u64;
            for phone in phones {
                page.push(phone);
                if page.len() == PAGE_PHONES {
                    store
                        .put_page(list, written, std::mem::replace(&mut page, Vec::with_capacity(PAGE_PHONES)))
                        .await?;
                    written += 1;
                }
            }
        }
        if !page.is_empty() {
            store.put_page(list, written, page).await?;
        }
        if any_aside {
            audiences::delete(store, aside).await?;
        }
        Ok((list, total))
    }
}

fn sort(phones: &mut Vec<Phone>) {
    phones.sort_unstable();
    phones.dedup();
}
