//! The try-it console at `/console`: a sender and an agent beside two phones, and where each message is; the business's
//! [`conversations`]; and operators' pages, of dead letters and the audit log ([`letters`]).
//!
//! It has no way of its own to a message: what the page sends goes through the HTTP API as a request of the demo
//! business, and its phones are WebSocket clients like any other. It must not be reachable without a session.

mod asking;
mod conversations;
mod conversations_page;
mod letters;
mod letters_page;
mod page;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Router, http};
use axum_extra::extract::CookieJar;
use axum_extra::extract::cookie::{Cookie, SameSite};
use eshaar_auth::jwt::Issuer;
use eshaar_model::{Clock, MessageId, Phone, Timestamp};
use eshaar_service::listener::PublicPrefix;
use eshaar_service::{Json, Problem};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use serde::{Deserialize, Serialize};
use tower::ServiceExt as _;

use session::{Session, Sessions};

/// The phones of the page.
pub const PHONES: [&str; 2] = ["+966500000001", "+966500000002"];
/// The business that the page sends as, and whose agent is on it.
const BUSINESS: &str = "demo";

/// How long a phone's token is good; the page renews it before.
const TOKEN_FOR: Duration = Duration::from_mins(10);
/// Longest body that is handed to the API, in bytes.
const MAX_BODY: usize = eshaar_model::limits::MESSAGE_BYTES_DEFAULT;

/// Longest page, in bytes.
const MAX_PAGE: usize = 16 << 20;

const COOKIE: &str = "eshaar_console";
const CSRF_HEADER: &str = "x-csrf-token";
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Nothing but our own files and our own sockets.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                                       img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What the console rests on.
pub struct Deps {
    /// The HTTP API, called as its clients call it.
    pub api: Router,
    /// API key of the business that the page sends as.
    pub api_key: String,
    /// API key with the permission `admin`, for the operators' pages.
    pub operator_key: String,
    /// Issues the phones' tokens.
    pub issuer: Arc<Issuer>,
    /// Signs links and sessions; at least 32 random bytes.
    pub secret: Vec<u8>,
    /// The present.
    pub clock: Clock,
}

#[derive(Clone)]
struct Console(Arc<Inner>);

struct Inner {
    api: Router,
    api_key: String,
    operator_key: String,
    issuer: Arc<Issuer>,
    sessions: Sessions,
    clock: Clock,
}

impl std::ops::Deref for Console {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// The path of a link that opens one session within an hour, to be printed where only an operator reads it.
pub fn link(secret: &[u8], now: Timestamp) -> String {
    format!("/console?token={}", Sessions::new(secret).link(now))
}

/// The console, to be merged into the router of the port.
pub fn router(deps: Deps) -> Router {
    let Deps { api, api_key, operator_key, issuer, secret, clock } = deps;
    let console =
        Console(Arc::new(Inner { api, api_key, operator_key, issuer, sessions: Sessions::new(&secret), clock }));
    Router::new()
        .route("/console", get(show))
        .route("/console/console.css", get(async || asset("text/css; charset=utf-8", include_str!("console.css"))))
        .route("/console/console.js", get(async || asset("text/javascript; charset=utf-8", include_str!("console.js"))))
        .route("/console/client.js", get(async || asset("text/javascript; charset=utf-8", include_str!("client.js"))))
        .route("/console/agent.js", get(async || asset("text/javascript; charset=utf-8", include_str!("agent.js"))))
        .route("/console/icon.svg", get(async || asset("image/svg+xml", include_str!("icon.svg"))))
        .route("/console/messages", post(send))
        .route("/console/messages/{id}", get(status))
        .route("/console/tokens", post(token))
        .route("/console/agent", post(agent))
        .route("/console/conversations", get(conversations::list))
        .route("/console/conversations/{id}", get(conversations::show))
        .route("/console/conversations/{id}/{action}", post(conversations::act))
        .route("/console/dead-letters", get(letters::list))
        .route("/console/dead-letters/{id}", get(letters::show).post(letters::act))
        .route("/console/audit", get(letters::audit))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(prefixed))
        .layer(map_response(guarded))
        .with_state(console)
}

fn asset(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// Where a proxy serves this under a prefix: puts it before the addresses that pages, redirects and the cookie have. Pages
/// quote addresses, and escape quotes in what they show: nothing but an address begins with a quote and `/console`.
async fn prefixed(request: axum::extract::Request, next: Next) -> Response {
    let prefix = request.extensions().get::<PublicPrefix>().cloned();
    let response = next.run(request).await;
    let Some(PublicPrefix(prefix)) = prefix else { return response };
    let (mut parts, body) = response.into_parts();
    if let Some(location) = parts.headers.get(header::LOCATION).and_then(|value| value.to_str().ok())
        && location.starts_with("/console")
        && let Ok(location) = HeaderValue::try_from(format!("{prefix}{location}"))
    {
        parts.headers.insert(header::LOCATION, location);
    }
    if let Some(cookie) = parts.headers.get(header::SET_COOKIE).and_then(|value| value.to_str().ok())
        && let Ok(cookie) = HeaderValue::try_from(cookie.replace("Path=/console", &format!("Path={prefix}/console")))
    {
        parts.headers.insert(header::SET_COOKIE, cookie);
    }
    let is_page =
        parts.headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/html"));
    if !is_page {
        return Response::from_parts(parts, body);
    }
    match to_bytes(body, MAX_PAGE).await {
        Ok(page) => {
            let page = String::from_utf8_lossy(&page).replace("\"/console", &format!("\"{prefix}/console"));
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, page.into())
        }
        Err(_) => internal(),
    }
}

/// Sets what keeps the page to itself.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // the link holds a token
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

impl FromRequestParts<Console> for Session {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Problem> {
        session_of(console, &CookieJar::from_headers(&parts.headers)).ok_or_else(|| {
            let detail = "no console session, or one that has ended: open the link that the server printed";
            Problem::new(StatusCode::UNAUTHORIZED, "no_session", detail)
        })
    }
}

fn session_of(console: &Console, cookies: &CookieJar) -> Option<Session> {
    console.sessions.session(cookies.get(COOKIE)?.value(), console.clock.now())
}

/// A session whose own page made the request: what changes something asks for this.
struct FromThePage;

impl FromRequestParts<Console> for FromThePage {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Problem> {
        let session = Session::from_request_parts(parts, console).await?;
        let given = parts.headers.get(CSRF_HEADER).and_then(|value| value.to_str().ok());
        if given.is_some_and(|token| console.sessions.is_csrf(&session, token)) {
            return Ok(Self);
        }
        let detail = "the request did not come from the console's page, or from one that is too old: reload it";
        Err(Problem::new(StatusCode::FORBIDDEN, "csrf", detail))
    }
}

#[derive(Deserialize)]
struct Login {
    token: Option<String>,
}

async fn show(State(console): State<Console>, Query(login): Query<Login>, cookies: CookieJar) -> Response {
    let current = session_of(&console, &cookies);
    match (login.token, current) {
        // used once already, but by this browser: take the token out of the address
        (Some(_), Some(_)) => Redirect::to("/console").into_response(),
        (Some(token), None) => match console.sessions.open(&token, console.clock.now()) {
            Some(session) => (cookies.add(cookie(session)), Redirect::to("/console")).into_response(),
            None => locked(true),
        },
        (None, Some(session)) => Html(page::console(&console.sessions.csrf(&session)).into_string()).into_response(),
        (None, None) => locked(false),
    }
}

fn locked(refused: bool) -> Response {
    (StatusCode::UNAUTHORIZED, Html(page::locked(refused).into_string())).into_response()
}

/// Gone with the browser, and after 12 hours in any case: the session inside says so itself.
fn cookie(session: Session) -> Cookie<'static> {
    Cookie::build((COOKIE, session.0)).path("/console").http_only(true).same_site(SameSite::Strict).build()
}

/// Hands a submission to the API, as the demo business.
async fn send(State(console): State<Console>, _: FromThePage, headers: HeaderMap, body: Bytes) -> Response {
    let mut request = console.request(Method::POST, "/v1/messages");
    request = request.header(header::CONTENT_TYPE, "application/json");
    if let Some(key) = headers.get(IDEMPOTENCY_KEY) {
        request = request.header(IDEMPOTENCY_KEY, key);
    }
    console.call(request.body(body.into())).await
}

/// Where a message is.
async fn status(State(console): State<Console>, _: Session, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<MessageId>() else {
        return Problem::new(StatusCode::NOT_FOUND, "message_not_found", "no such message").into_response();
    };
    console.call(console.request(Method::GET, &format!("/v1/messages/{id}")).body(Body::empty())).await
}

impl Inner {
    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let bearer = format!("Bearer {}", self.api_key);
        Request::builder().method(method).uri(path).header(header::AUTHORIZATION, bearer)
    }

    async fn call(&self, request: Result<Request<Body>, http::Error>) -> Response {
        match request {
            Ok(request) => match self.api.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Err(error) => {
                tracing::error!(%error, "the console could not make a request of the API");
                internal()
            }
        }
    }
}

fn internal() -> Response {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the console failed; try again").into_response()
}

#[derive(Deserialize)]
struct TokenRequest {
    phone: String,
}

#[derive(Serialize)]
struct TokenAnswer {
    access_token: String,
    /// Milliseconds: the page's own clock may be wrong, so how long, not until when.
    valid_for_ms: u64,
}

#[derive(Serialize)]
struct AgentAnswer {
    access_token: String,
}

/// What the page's agent connects with: the key that the page sends with, which whoever has a session may use already.
async fn agent(State(console): State<Console>, _: FromThePage) -> Json<AgentAnswer> {
    Json(AgentAnswer { access_token: console.api_key.clone() })
}

/// A short-lived token for one of the page's phones, and for no other.
async fn token(
    State(console): State<Console>,
    _: FromThePage,
    Json(wanted): Json<TokenRequest>,
) -> Result<Json<TokenAnswer>, Response> {
    let phone = PHONES.into_iter().find(|phone| *phone == wanted.phone).and_then(|phone| phone.parse::<Phone>().ok());
    let Some(phone) = phone else {
        let detail = "only the phones of the page have tokens";
        return Err(Problem::field("phone", "unknown_phone", detail).into_response());
    };
    match console.issuer.issue(phone, TOKEN_FOR, console.clock.now()) {
        Ok(access_token) => {
            let valid_for_ms = TOKEN_FOR.as_millis() as u64;
            Ok(Json(TokenAnswer { access_token, valid_for_ms }))
        }
        Err(error) => {
            tracing::error!(%error, "a token for the console's phones could not be issued");
            Err(internal())
        }
    }
}
