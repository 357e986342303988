//! Lists of recipients: an audience, which has a name, or that of one broadcast. A list never changes: an audience that is
//! uploaded anew gets another list, and the one before goes later, when no broadcast is sent to it any more: 8 days later at the
//! earliest, since a broadcast may be accepted and not opened yet for 7.

use async_trait::async_trait;
use eshaar_model::{BusinessId, Phone, RecipientsId, Timestamp};

use crate::{Store, StoreError};

/// Most phones of a page; all pages of a list but its last have so many.
pub const PAGE_PHONES: usize = 1_000;

/// How long a list stays that is nobody's any more, or that was begun, in milliseconds: a broadcast is accepted for 7 days.
pub const KEPT_MS: i64 = 8 * 24 * 3600 * 1000;

/// Pages that go at once.
pub const PART_PAGES: u32 = 64;

/// Most audiences of a business that are listed.
pub const LISTED: usize = 1_000;

/// Lists that one look for what is due considers.
const COLLECTED: usize = 100;

/// When a list that is due and in use is looked at again, in milliseconds: a day.
const POSTPONED_MS: i64 = 24 * 3600 * 1000;

/// A list of recipients with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audience {
    /// Whose.
    pub business: BusinessId,
    /// Its name.
    pub name: String,
    /// The list.
    pub recipients: RecipientsId,
    /// How many there are.
    pub total: u64,
    /// When it was uploaded.
    pub uploaded_at: Timestamp,
}

/// That a list goes at a time, unless it is an audience's then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// When.
    pub due: Timestamp,
    /// Which.
    pub recipients: RecipientsId,
    /// The audience whose it may be.
    pub audience: Option<(BusinessId, String)>,
}

/// Audiences, and lists of recipients.
#[async_trait]
pub trait AudienceStore: Send + Sync + 'static {
    /// Writes a page of a list; of at most [`PAGE_PHONES`].
    async fn put_page(&self, list: RecipientsId, page: u32, phones: Vec<Phone>) -> Result<(), StoreError>;

    /// A page of a list; empty where there is none.
    async fn page(&self, list: RecipientsId, page: u32) -> Result<Vec<Phone>, StoreError>;

    /// Deletes the pages from `part` times [`PART_PAGES`] on, so many of them; returns whether there were any.
    async fn delete_pages(&self, list: RecipientsId, part: u32) -> Result<bool, StoreError>;

    /// Makes a list, all of whose pages are written, an audience; durably. The one before of that name is none any more.
    async fn put(&self, audience: Audience) -> Result<(), StoreError>;

    /// An audience.
    async fn get(&self, business: &BusinessId, name: &str) -> Result<Option<Audience>, StoreError>;

    /// The audiences of a business, by name; at most [`LISTED`].
    async fn list(&self, business: &BusinessId) -> Result<Vec<Audience>, StoreError>;

    /// An audience is none any more; durably.
    async fn remove(&self, business: &BusinessId, name: &str) -> Result<(), StoreError>;

    /// Notes that a list goes; durably.
    async fn expire(&self, expiry: Expiry) -> Result<(), StoreError>;

    /// What was noted and is due, the oldest first.
    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Expiry>, StoreError>;

    /// Forgets what was noted.
    async fn forget(&self, expiry: &Expiry) -> Result<(), StoreError>;
}

/// Begins a list: it goes, should it not become an audience's in time.
pub async fn begin(
    store: &dyn AudienceStore,
    list: RecipientsId,
    audience: Option<(BusinessId, String)>,
    now: Timestamp,
) -> Result<(), StoreError> {
    store.expire(Expiry { due: now.plus_millis(KEPT_MS), recipients: list, audience }).await
}

/// Puts an audience in the place of the one of that name, whose list goes later. Of two at once one stands, and the list of
/// the other goes as one that was begun.
pub async fn replace(store: &dyn AudienceStore, audience: Audience, now: Timestamp) -> Result<(), StoreError> {
    retire(store, &audience.business, &audience.name, now).await?;
    store.put(audience).await
}

/// Removes an audience; its list goes later. `false`: there was none.
pub async fn remove(
    store: &dyn AudienceStore,
    business: &BusinessId,
    name: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let was_there = retire(store, business, name, now).await?;
    store.remove(business, name).await?;
    Ok(was_there)
}

/// Before anything else: who dies in between leaves a note of a list that is an audience's still, which does no harm.
async fn retire(
    store: &dyn AudienceStore,
    business: &BusinessId,
    name: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let Some(before) = store.get(business, name).await? else { return Ok(false) };
    begin(store, before.recipients, Some((business.clone(), name.to_owned())), now).await?;
    Ok(true)
}

/// Lets go of some of the lists that are due; returns how many were looked at. A list that an open broadcast is sent to stays,
/// and is looked at again a day later.
pub async fn collect(store: &Store, now: Timestamp) -> Result<usize, StoreError> {
    let audiences = &*store.audiences;
    let due = audiences.due(now, COLLECTED).await?;
    if due.is_empty() {
        return Ok(0);
    }
    let in_use = store.broadcasts.lists_in_use().await?;
    for expiry in &due {
        let current = match &expiry.audience {
            Some((business, name)) => audiences.get(business, name).await?.map(|audience| audience.recipients),
            None => None,
        };
        if in_use.contains(&expiry.recipients) {
            // First: who dies in between leaves two notes, of which the second finds nothing.
            audiences.expire(Expiry { due: now.plus_millis(POSTPONED_MS), ..expiry.clone() }).await?;
        } else if current != Some(expiry.recipients) {
            delete(audiences, expiry.recipients).await?;
        }
        audiences.forget(expiry).await?;
    }
    Ok(due.len())
}

/// Deletes a list.
pub async fn delete(store: &dyn AudienceStore, list: RecipientsId) -> Result<(), StoreError> {
    for part in 0.. {
        if !store.delete_pages(list, part).await? {
            break;
        }
    }
    Ok(())
}

/// Phones as a page keeps them: 8 bytes each.
pub(crate) fn pack(phones: &[Phone]) -> Vec<u8> {
    phones.iter().flat_map(|phone| phone.digits().to_be_bytes()).collect()
}

/// What [`pack`] packed; `None` where it is something else.
pub(crate) fn unpack(bytes: &[u8]) -> Option<Vec<Phone>> {
    let (whole, rest) = bytes.as_chunks::<8>();
    let phones = whole.iter().map(|digits| Phone::from_digits(u64::from_be_bytes(*digits))).collect();
    if rest.is_empty() { phones } else { None }
}
