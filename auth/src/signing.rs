//! What signs webhooks (Standard Webhooks 1.0): HMAC-SHA256 over `<id>.<timestamp>.<body>`, with a secret of the endpoint's
//! own.
//!
//! Secrets are not kept anywhere. Each is made, when it is needed, from a master key, the webhook's id and the number of its
//! generation: so a stolen database, backup or log holds none, a rotation is a number that grows, and what must be guarded is
//! one file (`webhooks.key_file`), which every process that signs or shows a secret has.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use eshaar_model::{Timestamp, WebhookId};
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::SetupError;

/// What every secret begins with.
pub const SECRET_PREFIX: &str = "whsec_";

/// Shortest master key, in bytes.
pub const KEY_BYTES: usize = 32;

/// How long the secret before a rotation is valid, in milliseconds: 24 hours. Meanwhile requests carry both signatures.
pub const OVERLAP_MS: i64 = 24 * 3_600 * 1_000;

/// The master keys. The first makes the secrets of new webhooks; one that is behind it still makes those of the webhooks that
/// were made with it.
#[derive(Clone, Default)]
pub struct SigningKeys(Vec<(String, Vec<u8>)>);

/// Only how many.
impl fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKeys({})", self.0.len())
    }
}

/// The secret of a webhook.
pub struct WebhookSecret([u8; 32]);

impl SigningKeys {
    /// Reads the keys of a file, one a line, the newest first. A file that is not there holds none: webhooks can then be
    /// neither made nor told.
    ///
    /// # Errors
    /// When the file cannot be read, or a key is too short.
    pub fn read(path: &Path) -> Result<Self, SetupError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => {
                Err(SetupError::File { option: "webhooks.key_file", path: path.display().to_string(), source })
            }
        }
    }

    /// Keys, one a line, the newest first.
    ///
    /// # Errors
    /// When one is too short.
    pub fn parse(text: &str) -> Result<Self, SetupError> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys = lines.map(|line| match line.len() {
            length if length < KEY_BYTES => Err(SetupError::ShortSigningKey { length }),
            _ => Ok((name(line.as_bytes()), line.as_bytes().to_vec())),
        });
        keys.collect::<Result<_, _>>().map(Self)
    }

    /// The name of the key for new webhooks; `None` where there is none.
    pub fn newest(&self) -> Option<&str> {
        self.0.first().map(|(name, _)| name.as_str())
    }

    /// The secret of a generation of a webhook that was made with the key of this name; `None` where that key is not here.
    pub fn secret(&self, key: &str, webhook: WebhookId, generation: u32) -> Option<WebhookSecret> {
        let (_, key) = self.0.iter().find(|(name, _)| name == key)?;
        let mut mac = hmac(key);
        mac.update(b"eshaar webhook secret 1\0");
        mac.update(webhook.as_bytes());
        mac.update(&generation.to_be_bytes());
        Some(WebhookSecret(mac.finalize().into_bytes().into()))
    }
}

impl WebhookSecret {
    /// As its owner is shown it, once.
    pub fn expose(&self) -> String {
        format!("{SECRET_PREFIX}{}", STANDARD.encode(self.0))
    }

    /// One signature, as the header has it: `v1,<base64>`.
    pub fn sign(&self, id: &str, at: Timestamp, body: &[u8]) -> String {
        let mut mac = hmac(&self.0);
        mac.update(format!("{id}.{}.", at.as_millis().div_euclid(1_000)).as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// Not of the secret.
impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(…)")
    }
}

/// A key's name: 8 bytes of its hash. It says nothing of the key, and changes when the key does.
fn name(key: &[u8]) -> String {
    let hash: [u8; 32] = Sha256::digest(key).into();
    let (first, _) = hash.split_first_chunk().expect("a hash has 32 bytes");
    format!("{:016x}", u64::from_be_bytes(*first))
}

fn hmac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ONE: &str = "a master key of the tests, long enough for it";
    const TWO: &str = "another master key of the tests, long enough";

    fn id() -> WebhookId {
        "019b7600-0000-7000-8000-000000000000".parse().unwrap()
    }

    #[test]
    fn signatures_are_those_of_the_specification() {
        // The example of the Standard Webhooks libraries.
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let mut mac = hmac(&secret);
        mac.update(b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{\"test\": 2432232314}");
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        assert_eq!(signature, "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let (secret, at) = (WebhookSecret([7; 32]), Timestamp::from_millis(1_614_265_330_999));
        let mut mac = hmac(&[7; 32]);
        mac.update(b"m.1614265330.body");
        assert_eq!(secret.sign("m", at, b"body"), format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())));
    }

    #[test]
    fn a_secret_is_of_its_key_its_webhook_and_its_generation() {
        let keys = SigningKeys::parse(&format!("{ONE}\n{TWO}\n")).unwrap();
        let newest = keys.newest().unwrap().to_owned();
        let secret = |keys: &SigningKeys, key: &str, generation| keys.secret(key, id(), generation).unwrap().expose();
        assert!(secret(&keys, &newest, 0).starts_with("whsec_") && secret(&keys, &newest, 0).len() == 50);
        assert_eq!(secret(&keys, &newest, 0), secret(&keys, &newest, 0));
        assert_ne!(secret(&keys, &newest, 0), secret(&keys, &newest, 1));
        // A new key in front: what was made with the old one stays.
        let later = SigningKeys::parse(&format!("{TWO}\n{ONE}")).unwrap();
        assert_ne!(later.newest(), Some(newest.as_str()));
        assert_eq!(secret(&later, &newest, 0), secret(&keys, &newest, 0));
        assert!(SigningKeys::parse(TWO).unwrap().secret(&newest, id(), 0).is_none());
    }

    #[test]
    fn keys_are_never_printed_and_never_too_short() {
        let keys = SigningKeys::parse(ONE).unwrap();
        assert_eq!(format!("{keys:?}"), "SigningKeys(1)");
        let secret = keys.secret(keys.newest().unwrap(), id(), 0).unwrap();
        assert_eq!(format!("{secret:?}"), "WebhookSecret(…)");
        assert!(SigningKeys::parse("short").is_err());
        assert_eq!(SigningKeys::parse("\n").unwrap().newest(), None);
        assert_eq!(SigningKeys::read(Path::new("/nowhere/key")).unwrap().newest(), None);
    }
}
