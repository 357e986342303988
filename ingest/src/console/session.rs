//! Who may use the console: whoever was given its link, which only those who can read the data directory can make.
//!
//! The link carries a token that is good for an hour and for one use; it is traded for a session cookie. Both are signed,
//! so that nothing is stored; only what was used is remembered, until it would have expired. What changes something also
//! carries the session's CSRF token.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use eshaar_model::Timestamp;
use hmac::{Hmac, Mac as _};
use parking_lot::Mutex;
use rand::RngCore as _;
use sha2::{Digest as _, Sha256, Sha512};

/// How long a link may be used.
pub(super) const LINK_FOR: Duration = Duration::from_hours(1);
/// How long a session lasts.
pub(super) const SESSION_FOR: Duration = Duration::from_hours(12);

const LINK: &str = "console-link";
const SESSION: &str = "console-session";
const CSRF: &str = "console-csrf";

/// A session that was checked: its token, which the cookie holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session(pub(super) String);

/// The secret, brought to the length that the signer takes.
struct Key([u8; 64]);

/// Signs and checks.
pub(super) struct Sessions {
    secret: Key,
    /// Links used, with when they expire.
    used: Mutex<HashMap<String, Timestamp>>,
}

impl Sessions {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self { secret: Key(Sha512::digest(secret).into()), used: Mutex::default() }
    }

    /// A token for a link.
    pub(super) fn link(&self, now: Timestamp) -> String {
        mint(&self.secret, LINK, LINK_FOR, now)
    }

    /// Trades a link's token for a session. `None`: it is not one, has expired, or was used.
    pub(super) fn open(&self, link: &str, now: Timestamp) -> Option<Session> {
        let expires_at = check(&self.secret, LINK, link, now)?;
        let mut used = self.used.lock();
        // Only we sign links, so what is remembered is bounded by what we made in an hour.
        used.retain(|_, expires_at| *expires_at > now);
        if used.insert(link.to_owned(), expires_at).is_some() {
            return None;
        }
        Some(Session(mint(&self.secret, SESSION, SESSION_FOR, now)))
    }

    /// The session that a cookie holds.
    pub(super) fn session(&self, cookie: &str, now: Timestamp) -> Option<Session> {
        check(&self.secret, SESSION, cookie, now).map(|_| Session(cookie.to_owned()))
    }

    /// What the page of a session sends with each change.
    pub(super) fn csrf(&self, session: &Session) -> String {
        URL_SAFE_NO_PAD.encode(signer(&self.secret, CSRF, &session.0).finalize().into_bytes())
    }

    /// Whether `token` is that of the session. Takes the same time whatever it is.
    pub(super) fn is_csrf(&self, session: &Session, token: &str) -> bool {
        let signer = signer(&self.secret, CSRF, &session.0);
        URL_SAFE_NO_PAD.decode(token).is_ok_and(|token| signer.verify_slice(&token).is_ok())
    }
}

/// `<expiry, ms>.<16 random bytes>.<signature>`.
fn mint(secret: &Key, purpose: &str, valid_for: Duration, now: Timestamp) -> String {
    let mut nonce = [0; 16];
    rand::rng().fill_bytes(&mut nonce);
    let expires = now.as_millis().saturating_add_unsigned(valid_for.as_millis() as u64);
    let payload = format!("{expires}.{}", URL_SAFE_NO_PAD.encode(nonce));
    let signature = signer(secret, purpose, &payload).finalize().into_bytes();
    format!("{payload}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// When a token expires, if it is ours, of this purpose, and has not.
fn check(secret: &Key, purpose: &str, token: &str, now: Timestamp) -> Option<Timestamp> {
    let (payload, signature) = token.rsplit_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    signer(secret, purpose, payload).verify_slice(&signature).ok()?;
    let expires = payload.split('.').next()?.parse().ok().map(Timestamp::from_millis)?;
    (expires > now).then_some(expires)
}

fn signer(secret: &Key, purpose: &str, payload: &str) -> Hmac<Sha256> {
    let mut signer = Hmac::<Sha256>::new(&secret.0.into());
    signer.update(purpose.as_bytes());
    signer.update(&[0]);
    signer.update(payload.as_bytes());
    signer
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sessions() -> (Sessions, Timestamp) {
        (Sessions::new(&[7; 32]), Timestamp::from_millis(1_760_000_000_000))
    }

    fn later(now: Timestamp, by: Duration) -> Timestamp {
        Timestamp::from_millis(now.as_millis() + by.as_millis() as i64)
    }

    #[test]
    fn a_link_opens_one_session() {
        let (sessions, now) = sessions();
        let link = sessions.link(now);
        let session = sessions.open(&link, now).unwrap();
        assert_eq!(sessions.session(&session.0, now), Some(session));
        assert_eq!(sessions.open(&link, now), None);
    }

    #[test]
    fn links_and_sessions_expire() {
        let (sessions, now) = sessions();
        let link = sessions.link(now);
        assert_eq!(sessions.open(&link, later(now, LINK_FOR)), None);
        let session = sessions.open(&link, now).unwrap();
        assert_eq!(sessions.session(&session.0, later(now, SESSION_FOR)), None);
    }

    #[test]
    fn what_was_signed_for_something_else_is_refused() {
        let (sessions, now) = sessions();
        let link = sessions.link(now);
        assert_eq!(sessions.session(&link, now), None);
        let other = Sessions::new(&[8; 32]);
        assert_eq!(other.open(&link, now), None);
        for broken in ["", ".", "..", "1.2.3", "999999999999999.AAAA.AAAA", &link[1..]] {
            assert_eq!(sessions.open(broken, now), None, "{broken}");
        }
    }

    #[test]
    fn a_csrf_token_is_good_for_its_session_alone() {
        let (sessions, now) = sessions();
        let [one, two] = [(), ()].map(|()| sessions.open(&sessions.link(now), now).unwrap());
        assert!(sessions.is_csrf(&one, &sessions.csrf(&one)));
        assert!(!sessions.is_csrf(&two, &sessions.csrf(&one)));
        assert!(!sessions.is_csrf(&one, ""));
    }
}
