//! Mints the recipients' JWTs (HS256, RFC 7519), so that no identity provider is needed for a load test.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::phones::PhoneNumber;

/// Seconds for which a token is good: longer than any run.
const LIFETIME_S: u64 = 24 * 3600;

/// Signs tokens with the server's secret.
#[derive(Clone)]
pub struct Minter {
    keyed: Hmac<Sha256>,
}

impl Minter {
    /// A minter with an HS256 secret, as the server has it. HMAC takes a key of any length.
    pub fn new(secret: &[u8]) -> anyhow::Result<Self> {
        Ok(Self { keyed: Hmac::new_from_slice(secret)? })
    }

    /// A token of `phone`, good from `now_s` (seconds since the Unix epoch) for a day.
    pub fn mint(&self, phone: PhoneNumber, now_s: u64) -> String {
        let claims = format!(r#"{{"sub":"{phone}","iat":{now_s},"exp":{}}}"#, now_s + LIFETIME_S);
        self.sign(r#"{"alg":"HS256","typ":"JWT"}"#, &claims)
    }

    fn sign(&self, header: &str, claims: &str) -> String {
        let mut token = URL_SAFE_NO_PAD.encode(header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let mut keyed = self.keyed.clone();
        keyed.update(token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(keyed.finalize().into_bytes(), &mut token);
        token
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_signed_as_the_example_of_rfc_7515_appendix_a_1() {
        let secret = URL_SAFE_NO_PAD
            .decode("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
            .unwrap();
        let header = "{\"typ\":\"JWT\",\r\n \"alg\":\"HS256\"}";
        let claims = "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}";
        let token = Minter::new(&secret).unwrap().sign(header, claims);
        assert!(token.ends_with(".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"), "{token}");
    }
}
