//! Cross-origin requests (CORS): pages of configured origins may call the API from a browser. Never with cookies: the API has
//! none, and credentials are headers that the page sets itself.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may keep the answer to a preflight.
const MAX_AGE: Duration = Duration::from_mins(10);

/// An origin is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("http.cors_origins: expected `*` alone, or origins like https://app.example.com, without a path; got {0:?}")]
pub struct CorsError(String);

/// The layer of a router whose answers these origins may read; `None` where there are none.
///
/// # Errors
/// When one is not an origin.
pub fn layer(origins: &[String]) -> Result<Option<CorsLayer>, CorsError> {
    let allowed = match origins {
        [] => return Ok(None),
        [any] if any == "*" => AllowOrigin::any(),
        origins => AllowOrigin::list(origins.iter().map(|origin| value(origin)).collect::<Result<Vec<_>, _>>()?),
    };
    let named = |names: &[&'static str]| names.iter().map(|name| HeaderName::from_static(name)).collect::<Vec<_>>();
    let requests = [header::AUTHORIZATION, header::CONTENT_TYPE, header::CONTENT_ENCODING];
    let ours = named(&["idempotency-key", "x-correlation-id", "traceparent"]);
    let answers = [header::RETRY_AFTER, header::WWW_AUTHENTICATE];
    let told = named(&["ratelimit", "ratelimit-policy", "idempotency-replayed", "x-correlation-id"]);
    Ok(Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers(requests.into_iter().chain(ours).collect::<Vec<_>>())
            .expose_headers(answers.into_iter().chain(told).collect::<Vec<_>>())
            .max_age(MAX_AGE),
    ))
}

/// As browsers send it: scheme, host and port, in lower case.
fn value(origin: &str) -> Result<HeaderValue, CorsError> {
    let wrong = || CorsError(origin.to_owned());
    let (scheme, authority) = origin.split_once("://").ok_or_else(wrong)?;
    let is_host = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._[]:".contains(&byte);
    if !matches!(scheme, "http" | "https") || authority.is_empty() || !authority.bytes().all(is_host) {
        return Err(wrong());
    }
    HeaderValue::try_from(origin).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::response::Response;
    use axum::routing::post;
    use http::Request;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(origins: &[&str], method: Method, origin: &str) -> Response {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let router = Router::new().route("/", post(|| async { [("retry-after", "1")] }));
        let router = router.layer(layer(&origins).unwrap().unwrap());
        let request = Request::builder().method(method).uri("/").header("origin", origin);
        let request = request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,idempotency-key");
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    #[tokio::test]
    async fn pages_of_an_origin_that_is_configured_may_call_and_read_limits() {
        let ours = ["https://app.example.com", "http://localhost:3000"];
        for origin in ours {
            let preflight = ask(&ours, Method::OPTIONS, origin).await;
            assert_eq!(preflight.status(), 200);
            assert_eq!(header(&preflight, "access-control-allow-origin"), Some(origin));
            let headers = header(&preflight, "access-control-allow-headers").unwrap();
            assert!(headers.contains("authorization") && headers.contains("idempotency-key"), "{headers}");
            let answer = ask(&ours, Method::POST, origin).await;
            assert_eq!(header(&answer, "access-control-allow-origin"), Some(origin));
            let exposed = header(&answer, "access-control-expose-headers").unwrap();
            assert!(["ratelimit", "ratelimit-policy", "retry-after"].iter().all(|name| exposed.contains(name)));
            assert!(header(&answer, "vary").unwrap().contains("origin"));
            assert_eq!(header(&answer, "access-control-allow-credentials"), None);
        }
        for other in ["https://evil.example", "https://app.example.com.evil.example", "null"] {
            assert_eq!(header(&ask(&ours, Method::OPTIONS, other).await, "access-control-allow-origin"), None);
        }
    }

    #[tokio::test]
    async fn any_origin_is_allowed_without_cookies() {
        let answer = ask(&["*"], Method::POST, "https://anywhere.example").await;
        assert_eq!(header(&answer, "access-control-allow-origin"), Some("*"));
        assert_eq!(header(&answer, "access-control-allow-credentials"), None);
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for wrong in ["", "app.example.com", "https://", "https://a.example/", "https://a.example/x", "ftp://a", "null"]
        {
            assert!(layer(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        assert!(layer(&["*".to_owned(), "https://a.example".to_owned()]).is_err());
        assert!(layer(&[]).unwrap().is_none());
    }
}
