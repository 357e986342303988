use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use eshaar_auth::jwt::Issuer;
use eshaar_auth::{AuthError, Authenticator, SetupError};
use eshaar_model::{Clock, Principal};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::fixture::{Fixture, MemoryKeys, NOW, NOW_S, claims, file, hs256, options, phone, private_keys, signed};

fn is_refused(result: &Result<eshaar_auth::Identity, AuthError>) -> bool {
    matches!(result, Err(AuthError::Refused(_)))
}

async fn verdict(claims: &Value) -> Result<eshaar_auth::Identity, AuthError> {
    Fixture::new(|_| ()).await.auth.authenticate(&hs256(claims)).await
}

#[tokio::test]
async fn a_good_token_is_its_phone_until_it_expires() {
    let identity = verdict(&claims(json!({}))).await.unwrap();
    assert_eq!(identity.principal, Principal::Phone(phone()));
    assert_eq!(identity.expires_at, Some(NOW.plus_millis(3_600_000)));
    assert!(identity.permissions.is_empty());
}

#[tokio::test]
async fn a_token_that_was_issued_here_is_accepted_here() {
    let secret = file(crate::fixture::SECRET);
    let mut options = options(&secret);
    (options.issuer, options.audience) = ("eshaar".to_owned(), "phones".to_owned());
    let token = Issuer::new(&options).await.unwrap().issue(phone(), Duration::from_mins(1), NOW).unwrap();
    let keys = std::sync::Arc::new(MemoryKeys::default());
    let auth = Authenticator::new(options, keys, Clock::manual(NOW)).await.unwrap();
    assert_eq!(auth.authenticate(&token).await.unwrap().principal, Principal::Phone(phone()));
}

#[tokio::test]
async fn a_cached_token_is_refused_once_it_has_expired_beyond_the_leeway() {
    let fixture = Fixture::new(|_| ()).await;
    let token = hs256(&claims(json!({ "exp": NOW_S + 10 })));
    fixture.auth.authenticate(&token).await.unwrap();
    fixture.clock.advance_millis(14_999);
    fixture.auth.authenticate(&token).await.unwrap();
    fixture.clock.advance_millis(1);
    assert_eq!(fixture.auth.authenticate(&token).await, Err(AuthError::Refused("the token has expired")));
}

#[tokio::test]
async fn times_are_required_and_obeyed() {
    assert!(verdict(&claims(json!({ "nbf": NOW_S + 5 }))).await.is_ok());
    assert!(verdict(&claims(json!({ "exp": NOW_S as f64 + 0.5 }))).await.is_ok());
    for wrong in [
        json!({ "exp": null }),
        json!({ "exp": NOW_S - 5 }),
        json!({ "exp": "tomorrow" }),
        json!({ "exp": -1 }),
        json!({ "exp": 1e300 }),
        json!({ "nbf": NOW_S + 6 }),
        json!({ "nbf": "later" }),
    ] {
        assert!(is_refused(&verdict(&claims(wrong.clone())).await), "{wrong}");
    }
}

#[tokio::test]
async fn a_subject_that_is_no_phone_is_refused() {
    for wrong in
        [json!({ "sub": null }), json!({ "sub": "acme" }), json!({ "sub": "" }), json!({ "sub": 966_501_234_567_u64 })]
    {
        assert!(is_refused(&verdict(&claims(wrong.clone())).await), "{wrong}");
    }
}

#[tokio::test]
async fn issuer_and_audience_must_be_those_configured() {
    let fixture = Fixture::new(|options| {
        (options.issuer, options.audience) = ("https://id.example".to_owned(), "eshaar".to_owned());
    })
    .await;
    let right = json!({ "iss": "https://id.example", "aud": ["other", "eshaar"] });
    fixture.auth.authenticate(&hs256(&claims(right))).await.unwrap();
    for wrong in [
        json!({}),
        json!({ "iss": "https://id.example" }),
        json!({ "aud": "eshaar" }),
        json!({ "iss": "https://other.example", "aud": "eshaar" }),
        json!({ "iss": "https://id.example", "aud": "other" }),
    ] {
        assert!(is_refused(&fixture.auth.authenticate(&hs256(&claims(wrong.clone()))).await), "{wrong}");
    }
}

#[tokio::test]
async fn a_token_without_a_signature_is_refused() {
    let fixture = Fixture::new(|_| ()).await;
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = part(claims(json!({})));
    for header in
        [json!({ "alg": "none" }), json!({ "alg": "NONE", "typ": "JWT" }), json!({ "alg": "HS256" }), json!({})]
    {
        for signature in ["", "AAAA"] {
            let token = format!("{}.{body}.{signature}", part(header.clone()));
            assert!(is_refused(&fixture.auth.authenticate(&token).await), "{header}");
        }
    }
}

#[tokio::test]
async fn other_algorithms_of_the_same_secret_are_refused() {
    let fixture = Fixture::new(|_| ()).await;
    let key = EncodingKey::from_secret(crate::fixture::SECRET.as_bytes());
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        assert!(is_refused(&fixture.auth.authenticate(&signed(None, algorithm, &key)).await), "{algorithm:?}");
    }
    for (kid, algorithm, key) in private_keys() {
        assert!(is_refused(&fixture.auth.authenticate(&signed(Some(kid), algorithm, &key)).await), "{kid}");
    }
}

#[tokio::test]
async fn a_token_cut_or_changed_anywhere_is_refused() {
    let fixture = Fixture::new(|_| ()).await;
    let whole = hs256(&claims(json!({})));
    for at in 0..whole.len() {
        let mut changed = whole.clone().into_bytes();
        // Base64 ignores the last bits of the last character: change one bit that counts.
        changed[at] = if changed[at] == b'Q' { b'A' } else { b'Q' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(is_refused(&fixture.auth.authenticate(&changed).await), "changed at {at}");
        let cut = fixture.auth.authenticate(&whole[..at]).await;
        assert!(is_refused(&cut) || cut == Err(AuthError::Missing), "cut at {at}");
    }
}

#[tokio::test]
async fn garbage_of_any_size_is_refused() {
    let fixture = Fixture::new(|_| ()).await;
    for garbage in ["...", "a.b.c", ".", "Bearer x", "\u{0}\u{ffff}", "é.é.é", &"a".repeat(8193), &"a.".repeat(4000)]
    {
        assert!(is_refused(&fixture.auth.authenticate(garbage).await), "{} bytes", garbage.len());
    }
    assert_eq!(fixture.auth.authenticate("").await, Err(AuthError::Missing));
}

#[tokio::test]
async fn a_token_with_critical_parameters_is_refused() {
    let fixture = Fixture::new(|_| ()).await;
    let mut header = jsonwebtoken::Header::new(Algorithm::HS256);
    header.crit = Some(vec!["b64".to_owned()]);
    let key = EncodingKey::from_secret(crate::fixture::SECRET.as_bytes());
    let token = jsonwebtoken::encode(&header, &claims(json!({})), &key).unwrap();
    assert!(is_refused(&fixture.auth.authenticate(&token).await));
}

#[tokio::test]
async fn a_short_or_missing_secret_is_an_error_at_the_start() {
    let short = file("only 31 bytes, which is too few\n\n");
    let keys = std::sync::Arc::new(MemoryKeys::default());
    let refused = Authenticator::new(options(&short), keys.clone(), Clock::manual(NOW)).await.err();
    assert!(matches!(refused, Some(SetupError::ShortSecret { length: 31 })));
    let mut missing = options(&short);
    missing.jwt_secret_file = "no/such/file".to_owned();
    let refused = Authenticator::new(missing.clone(), keys, Clock::manual(NOW)).await.err();
    assert!(matches!(refused, Some(SetupError::File { .. })));
    missing.jwt_secret_file = String::new();
    assert!(matches!(Issuer::new(&missing).await.err(), Some(SetupError::NoSecret)));
}
