//! What surrounds every request: its correlation id and trace, its measure and its log line, a panic caught, and the
//! promise that every error is a problem document.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use eshaar_service::{Problem, TraceContext, metrics as names};
use eshaar_topics::flow;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use crate::{App, problems};

/// The request's and the answer's header.
pub(crate) const CORRELATION: HeaderName = HeaderName::from_static("x-correlation-id");
/// Longest correlation id, in characters.
pub(crate) const CORRELATION_CHARS: usize = 64;
const TRACEPARENT: &str = "traceparent";

/// The request that something comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) correlation: String,
    pub(crate) trace: TraceContext,
}

impl Origin {
    /// Of what was not asked for over HTTP: a trace of its own.
    pub(crate) fn new() -> Self {
        let trace = TraceContext::new();
        Self { correlation: trace.trace_id(), trace }
    }

    /// As the headers of records have it, with the text of the trace.
    pub(crate) fn joined<'a>(&'a self, trace: &'a str) -> flow::Origin<'a> {
        flow::Origin { traceparent: Some(trace), correlation: Some(&self.correlation) }
    }

    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let trace = TraceContext::continued(headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()));
        let Some(given) = headers.get(CORRELATION) else { return Ok(Self { correlation: trace.trace_id(), trace }) };
        let visible = |text: &&str| {
            (1..=CORRELATION_CHARS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match given.to_str().ok().filter(visible) {
            Some(text) => Ok(Self { correlation: text.to_owned(), trace }),
            None => Err(problems::invalid_header("X-Correlation-Id", "invalid_correlation_id", CORRELATION_CHARS)),
        }
    }
}

/// The outermost layer.
pub(crate) async fn around(mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let method = known(request.method());
    let (correlation, mut response) = match Origin::of(request.headers()) {
        Ok(origin) => {
            let correlation = origin.correlation.clone();
            request.extensions_mut().insert(origin);
            (Some(correlation), next.run(request).await)
        }
        Err(problem) => (None, problem.into_response()),
    };
    response = as_problem(response);
    let status = response.status();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Some(value) = correlation.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
        response.headers_mut().insert(CORRELATION, value);
    }
    measure(route, method, status, begun);
    let elapsed_ms = begun.elapsed().as_secs_f64() * 1000.0;
    tracing::debug!(method, route, status = status.as_u16(), elapsed_ms, correlation, "answered");
    response
}

/// Methods are said by clients: only those known may become a label.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn measure(route: &str, method: &'static str, status: StatusCode, begun: Instant) {
    let route = route.to_owned();
    metrics::counter!(names::HTTP_REQUESTS, "route" => route.clone(), "method" => method, "status" => status.as_u16().to_string())
        .increment(1);
    metrics::histogram!(names::HTTP_SECONDS, "route" => route).record(begun.elapsed().as_secs_f64());
}

/// Errors that are not ours (a path that is no UTF-8, a method that a route has not) become problems too.
fn as_problem(response: Response) -> Response {
    let status = response.status();
    let is_problem =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == "application/problem+json");
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let problem = match status {
        StatusCode::NOT_FOUND => problems::no_such_path(),
        StatusCode::METHOD_NOT_ALLOWED => {
            Problem::new(status, "method_not_allowed", "this path has no such method; see the header `Allow`")
        }
        _ if status.is_client_error() => Problem::new(status, "bad_request", "the request cannot be understood"),
        _ => problems::internal(),
    };
    let mut converted = problem.into_response();
    if let Some(allow) = response.headers().get(header::ALLOW) {
        converted.headers_mut().insert(header::ALLOW, allow.clone());
    }
    converted
}

/// What is answered when a handler panicked; the panic itself is logged by the hook of the process.
#[allow(clippy::needless_pass_by_value, reason = "the signature is tower-http's")]
pub(crate) fn panicked(_cause: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!("a request handler panicked");
    problems::internal().into_response()
}

/// Bounds everything but bulk requests in time.
pub(crate) async fn in_time(State(app): State<App>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(app.options.request_timeout(), next.run(request)).await {
        Ok(response) => response,
        Err(_) => problems::timed_out().into_response(),
    }
}
