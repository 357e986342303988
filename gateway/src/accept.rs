//! The way in: `GET /v1/ws`, upgraded once the caller is known.
//!
//! A credential comes as `Authorization`, or, from browsers, which cannot set headers on a WebSocket, as a subprotocol beside
//! ours: `eshaar.token.<base64url of the credential>`. As a query parameter it ends up in logs of proxies: that way is
//! deprecated, and closed to API keys, which do not expire.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use eshaar_auth::AuthError;
use eshaar_auth::keys::PREFIX as KEY_PREFIX;
use eshaar_service::Problem;
use eshaar_service::listener::Connection;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::session;
use crate::shared::Shared;

/// The one subprotocol.
pub const SUBPROTOCOL: &str = "eshaar.v1.json";

/// What the subprotocol begins with that holds a credential. It is never answered.
const TOKEN_PROTOCOL: &str = "eshaar.token.";

/// The deprecated way of browsers.
#[derive(Deserialize)]
struct Access {
    access_token: Option<String>,
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new().route("/v1/ws", get(upgrade)).with_state(shared)
}

async fn upgrade(State(shared): State<Arc<Shared>>, mut request: Request) -> Response {
    let token = Query::<Access>::try_from_uri(request.uri()).ok().and_then(|Query(access)| access.access_token);
    match admit(&shared, token, request.headers()).await {
        Ok((identity, accept)) => {
            if let Some(connection) = request.extensions().get::<Connection>()
                && let Err(problem) = connection.authenticated()
            {
                return problem.into_response();
            }
            let upgraded = hyper::upgrade::on(&mut request);
            // The task holds nothing of the request: its headers alone would cost more than the session.
            tokio::spawn(session::run(Box::pin(async move {
                let gone = |error: &hyper::Error| tracing::debug!(%error, "a client was gone before its upgrade");
                let stream = upgraded.await.inspect_err(gone).ok()?;
                session::open(shared, TokioIo::new(stream), identity).await
            })));
            switching(accept)
        }
        Err(problem) => problem.into_response(),
    }
}

/// Decides whether a request is upgraded: who calls, and the value of `Sec-WebSocket-Accept`.
async fn admit(
    shared: &Shared,
    token: Option<String>,
    headers: &HeaderMap,
) -> Result<(eshaar_auth::Identity, String), Problem> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_upgrade(headers)).ok_or_else(|| {
        Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", "this address speaks WebSocket, version 13")
    })?;
    if !lists(headers, &header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        let detail = format!("offer the subprotocol {SUBPROTOCOL}");
        return Err(Problem::new(StatusCode::BAD_REQUEST, "subprotocol_required", detail));
    }
    if !shared.ready() {
        let detail = "this process is shutting down: connect again";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "draining", detail).retry_after(1));
    }
    if shared.hub.count() >= shared.options.sessions {
        let detail = format!("this process holds {} sessions already", shared.options.sessions);
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_sessions", detail).retry_after(5));
    }
    if let Some(away) = shared.admission.refusal() {
        let detail = "many clients connect at the moment: come back later";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(away.as_secs() + 1));
    }
    let identity = match credential(token, headers)? {
        Ok(credential) => shared.credentials.authenticate(&credential).await,
        Err(refused) => Err(refused),
    };
    let identity = identity.map_err(|error| match error {
        AuthError::Unavailable(_) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error.to_string()).retry_after(1)
        }
        AuthError::KeyUnknownYet { retry_after_s } => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error.to_string()).retry_after(retry_after_s)
        }
        error => Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", error.to_string()),
    })?;
    Ok((identity, derive_accept_key(key.as_bytes())))
}

/// The credential of a request: of the header, else of the subprotocol, else of the query.
fn credential(query: Option<String>, headers: &HeaderMap) -> Result<Result<String, AuthError>, Problem> {
    if query.as_deref().is_some_and(|token| token.trim_start().starts_with(KEY_PREFIX)) {
        let detail = "an API key does not belong in an address, where logs keep it: use `Authorization`, or the subprotocol \
                      `eshaar.token.…`; this one should be revoked";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "key_in_query", detail));
    }
    if let Some(credential) = bearer(headers) {
        return Ok(Ok(credential.to_owned()));
    }
    let mut tokens = protocols(headers).filter_map(|protocol| protocol.strip_prefix(TOKEN_PROTOCOL));
    let Some(encoded) = tokens.next() else { return Ok(query.ok_or(AuthError::Missing)) };
    if tokens.next().is_some() {
        let detail = "offer one subprotocol `eshaar.token.…`";
        return Err(Problem::new(StatusCode::BAD_REQUEST, "repeated_token", detail));
    }
    let decoded = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok();
    let credential = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(credential.ok_or(AuthError::Refused("the subprotocol `eshaar.token.…` must hold base64url of the credential")))
}

/// The subprotocols that a client offers.
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    lists(headers, &header::UPGRADE, "websocket")
        && lists(headers, &header::CONNECTION, "upgrade")
        && headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13")
}

/// Whether a header that lists values holds `wanted`, whatever its case.
fn lists(headers: &HeaderMap, name: &http::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(wanted))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credential) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credential.trim())
}

fn switching(accept: String) -> Response {
    let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    if let Ok(accept) = HeaderValue::try_from(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}
