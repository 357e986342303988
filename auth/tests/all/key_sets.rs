use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use eshaar_auth::{AuthError, Authenticator, SetupError, jwks};
use eshaar_model::Clock;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::fixture::{Fixture, MemoryKeys, NOW, claims, file, options, private_keys, signed};

fn public(kid: &str, algorithm: Algorithm, key: &EncodingKey) -> Value {
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(key, algorithm).unwrap()).unwrap();
    jwk["kid"] = kid.into();
    jwk["use"] = "sig".into();
    jwk
}

fn document() -> Value {
    let keys: Vec<_> = private_keys().iter().map(|(kid, algorithm, key)| public(kid, *algorithm, key)).collect();
    json!({ "keys": keys })
}

async fn with_file(document: &Value) -> (Fixture, tempfile::NamedTempFile) {
    let file = file(document.to_string());
    let path = file.path().display().to_string();
    (Fixture::new(|options| options.jwks = path).await, file)
}

#[tokio::test]
async fn tokens_of_each_algorithm_are_accepted_by_their_key() {
    let (fixture, _file) = with_file(&document()).await;
    for (kid, algorithm, key) in private_keys() {
        fixture.auth.authenticate(&signed(Some(kid), algorithm, &key)).await.unwrap();
        fixture.auth.authenticate(&signed(None, algorithm, &key)).await.unwrap();
    }
}

#[tokio::test]
async fn a_token_that_names_another_kind_of_key_is_refused() {
    let (fixture, _file) = with_file(&document()).await;
    for (_, algorithm, key) in private_keys() {
        for (other, other_algorithm, _) in private_keys() {
            let result = fixture.auth.authenticate(&signed(Some(other), algorithm, &key)).await;
            assert_eq!(result.is_ok(), algorithm == other_algorithm, "{algorithm:?} with {other}");
        }
    }
}

/// The classic attack: the public key, which everybody has, used as an HMAC secret.
#[tokio::test]
async fn a_public_key_is_no_hmac_secret() {
    let (fixture, _file) = with_file(&document()).await;
    let forged = EncodingKey::from_secret(include_bytes!("pem/rsa_public.pem"));
    for kid in [None, Some("rsa-1")] {
        let result = fixture.auth.authenticate(&signed(kid, Algorithm::HS256, &forged)).await;
        assert!(matches!(result, Err(AuthError::Refused(_))));
    }
}

#[tokio::test]
async fn keys_that_are_short_symmetric_or_for_encryption_are_not_used() {
    let short = EncodingKey::from_rsa_pem(include_bytes!("pem/rsa_short.pem")).unwrap();
    let [(_, _, rsa), (_, _, ec), _] = private_keys();
    let mut encryption = public("enc", Algorithm::RS256, &rsa);
    encryption["use"] = "enc".into();
    let mut otherwise = public("other", Algorithm::ES256, &ec);
    otherwise["alg"] = "ES384".into();
    let symmetric =
        json!({ "kty": "oct", "kid": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "alg": "HS256" });
    let unknown = json!({ "kty": "AKP", "kid": "pq", "alg": "ML-DSA-44", "pub": "AAAA" });
    let document =
        json!({ "keys": [public("short", Algorithm::RS256, &short), encryption, otherwise, symmetric, unknown] });
    let (fixture, _file) = with_file(&document).await;
    for (kid, algorithm, key) in
        [("short", Algorithm::RS256, &short), ("enc", Algorithm::RS256, &rsa), ("other", Algorithm::ES256, &ec)]
    {
        let result = fixture.auth.authenticate(&signed(Some(kid), algorithm, key)).await;
        assert!(matches!(result, Err(AuthError::Refused(_))), "{kid}");
    }
}

#[tokio::test]
async fn a_file_is_read_again_when_it_has_changed_and_its_unknown_keys_are_refused_at_once() {
    let [(first, algorithm, first_key), (second, second_algorithm, second_key), _] = private_keys();
    let (fixture, file) = with_file(&json!({ "keys": [public(first, algorithm, &first_key)] })).await;
    let rotated = signed(Some(second), second_algorithm, &second_key);
    for _ in 0..2 {
        assert!(matches!(fixture.auth.authenticate(&rotated).await, Err(AuthError::Refused(_))));
    }
    std::fs::write(file.path(), document().to_string()).unwrap();
    fixture.auth.authenticate(&rotated).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_key_set_is_an_error_at_the_start() {
    let (secret, keys) = (file(crate::fixture::SECRET), Arc::new(MemoryKeys::default()));
    let large = format!("{{\"keys\": [], \"x\": \"{}\"}}", "a".repeat(jwks::DOCUMENT_BYTES));
    for document in ["", "[]", "{\"keys\": 1}", &large] {
        let document = file(document);
        let mut options = options(&secret);
        options.jwks = document.path().display().to_string();
        let refused = Authenticator::new(options, keys.clone(), Clock::manual(NOW)).await.err();
        assert!(matches!(refused, Some(SetupError::Jwks(_))));
    }
}

/// An identity provider that publishes what it is told, and counts how often it is asked.
#[derive(Clone, Default)]
struct Provider {
    document: Arc<Mutex<Option<Value>>>,
    asked: Arc<AtomicUsize>,
}

impl Provider {
    #[allow(clippy::disallowed_types, reason = "a key set of others has no text that HTML would act on")]
    async fn serve(&self) -> String {
        let provider = self.clone();
        let answer = move || {
            provider.asked.fetch_add(1, Ordering::SeqCst);
            let document = provider.document.lock().clone();
            async move { document.map(axum::Json).ok_or(axum::http::StatusCode::BAD_GATEWAY) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let app = axum::Router::new().route("/keys", axum::routing::get(answer));
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }
}

#[tokio::test]
async fn a_rotated_key_is_fetched_when_a_token_names_it_but_not_for_every_unknown_name() {
    let provider = Provider::default();
    let [(first, algorithm, first_key), (second, second_algorithm, second_key), _] = private_keys();
    *provider.document.lock() = Some(json!({ "keys": [public(first, algorithm, &first_key)] }));
    let url = provider.serve().await;
    let fixture = Fixture::new(|options| options.jwks = url).await;
    fixture.auth.authenticate(&signed(Some(first), algorithm, &first_key)).await.unwrap();
    assert_eq!(provider.asked.load(Ordering::SeqCst), 1);

    *provider.document.lock() = Some(json!({ "keys": [public(second, second_algorithm, &second_key)] }));
    let rotated = signed(Some(second), second_algorithm, &second_key);
    let early = fixture.auth.authenticate(&rotated).await;
    assert!(matches!(early, Err(AuthError::KeyUnknownYet { retry_after_s: 1..=31 })), "{early:?}");
    assert_eq!(provider.asked.load(Ordering::SeqCst), 1, "asked again within the shortest interval");
    pass(jwks::MIN_INTERVAL).await;
    fixture.auth.authenticate(&rotated).await.unwrap();
    assert_eq!(provider.asked.load(Ordering::SeqCst), 2);

    for number in 0..100 {
        let made_up = signed(Some(&format!("made-up-{number}")), algorithm, &first_key);
        fixture.auth.authenticate(&made_up).await.unwrap_err();
    }
    assert_eq!(provider.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_key_that_is_not_published_is_refused_once_the_document_was_read_after_the_token_came() {
    let provider = Provider::default();
    *provider.document.lock() = Some(document());
    let url = provider.serve().await;
    let fixture = Fixture::new(|options| options.jwks = url).await;
    let [(_, algorithm, key), ..] = private_keys();
    let (made_up, another) = (signed(Some("made-up"), algorithm, &key), signed(Some("another"), algorithm, &key));
    assert!(matches!(fixture.auth.authenticate(&made_up).await, Err(AuthError::KeyUnknownYet { .. })));
    pass(jwks::MIN_INTERVAL).await;
    for _ in 0..3 {
        assert!(matches!(fixture.auth.authenticate(&made_up).await, Err(AuthError::Refused(_))));
    }
    assert!(matches!(fixture.auth.authenticate(&another).await, Err(AuthError::KeyUnknownYet { .. })));
    assert_eq!(provider.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_provider_that_is_down_is_no_verdict_and_known_keys_stay_good() {
    let provider = Provider::default();
    let url = provider.serve().await;
    let fixture = Fixture::new(|options| options.jwks = url).await;
    let [(kid, algorithm, key), ..] = private_keys();
    let token = signed(Some(kid), algorithm, &key);
    assert!(matches!(fixture.auth.authenticate(&token).await, Err(AuthError::Unavailable(_))));

    *provider.document.lock() = Some(document());
    pass(jwks::MIN_INTERVAL).await;
    fixture.auth.authenticate(&token).await.unwrap();

    *provider.document.lock() = None;
    pass(jwks::MAX_AGE).await;
    let mut header = Header::new(algorithm);
    header.kid = Some(kid.to_owned());
    let another = jsonwebtoken::encode(&header, &claims(json!({ "jti": "2" })), &key).unwrap();
    fixture.auth.authenticate(&another).await.unwrap();
}

/// Lets time pass for timers without waiting for it.
async fn pass(duration: std::time::Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}
