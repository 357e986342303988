//! The console's server side, with an API that answers what it was asked.
#![allow(clippy::unwrap_used)]

mod conversations;
mod hostile;

use axum::body::to_bytes;
use eshaar_model::Timestamp;
use serde_json::{Value, json};

use super::*;

const SECRET: &[u8] = &[7; 32];

struct Browser {
    router: Router,
    clock: Clock,
    cookie: Option<String>,
    csrf: Option<String>,
}

/// Answers with what it got.
async fn echo(request: Request<Body>) -> Json<Value> {
    let (parts, body) = request.into_parts();
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let (authorization, key) = (header("authorization"), header("idempotency-key"));
    let path = format!("{} {}", parts.method, parts.uri.path());
    let body = to_bytes(body, 1_000_000).await.unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Json(json!({"path": path, "authorization": authorization, "key": key, "body": body}))
}

impl Browser {
    async fn new() -> Self {
        Self::before(Router::new().fallback(echo)).await
    }

    /// Of a console with this API.
    async fn before(api: Router) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let jwt_secret_file = dir.path().join("jwt").to_str().unwrap().to_owned();
        std::fs::write(&jwt_secret_file, "0123456789abcdef0123456789abcdef").unwrap();
        let options = eshaar_auth::Options {
            jwt_secret_file,
            jwks: String::new(),
            issuer: String::new(),
            audience: String::new(),
        };
        let clock = Clock::manual(Timestamp::from_millis(1_760_000_000_000));
        let router = router(Deps {
            api,
            api_key: "esk_demo".to_owned(),
            operator_key: "esk_operator".to_owned(),
            issuer: Arc::new(Issuer::new(&options).await.unwrap()),
            secret: SECRET.to_vec(),
            clock: clock.clone(),
        });
        Self { router, clock, cookie: None, csrf: None }
    }

    async fn logged_in() -> Self {
        let mut browser = Self::new().await;
        browser.log_in().await;
        browser
    }

    async fn log_in(&mut self) {
        let (status, _) = self.get(&link(SECRET, self.clock.now())).await;
        assert_eq!(status, StatusCode::SEE_OTHER);
        let (status, page) = self.get("/console").await;
        assert_eq!(status, StatusCode::OK);
        let after = page.split_once(r#"name="csrf-token" content=""#).unwrap().1;
        self.csrf = Some(after.split_once('"').unwrap().0.to_owned());
    }

    async fn get(&mut self, path: &str) -> (StatusCode, String) {
        self.call(Method::GET, path, None).await
    }

    async fn post(&mut self, path: &str, body: Value) -> (StatusCode, Value) {
        let (status, text) = self.call(Method::POST, path, Some(("application/json", body.to_string()))).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    async fn submit(&mut self, path: &str, form: &str) -> (StatusCode, String) {
        self.call(Method::POST, path, Some(("application/x-www-form-urlencoded", form.to_owned()))).await
    }

    async fn call(&mut self, method: Method, path: &str, body: Option<(&str, String)>) -> (StatusCode, String) {
        let (media_type, body) = body.unwrap_or(("application/json", String::new()));
        let mut request = Request::builder().method(method).uri(path).header("content-type", media_type);
        request = request.header("idempotency-key", "k-1");
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        if let Some(csrf) = &self.csrf {
            request = request.header("x-csrf-token", csrf);
        }
        let response = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let headers = response.headers();
        assert_eq!(headers["content-security-policy"], CONTENT_SECURITY_POLICY);
        assert_eq!(
            (&headers["cache-control"], &headers["referrer-policy"]),
            (&"no-store".parse().unwrap(), &"no-referrer".parse().unwrap())
        );
        if let Some(set) = headers.get("set-cookie") {
            let set = set.to_str().unwrap();
            assert!(
                set.contains("HttpOnly") && set.contains("SameSite=Strict") && set.contains("Path=/console"),
                "{set}"
            );
            self.cookie = Some(set.split(';').next().unwrap().to_owned());
        }
        let status = response.status();
        let body = to_bytes(response.into_body(), 1_000_000).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[tokio::test]
async fn every_operation_of_the_console_needs_a_session_as_the_table_says() {
    use eshaar_auth::operations::{Access, Surface, TABLE};
    let rows: Vec<_> = TABLE.iter().filter(|row| row.surface == Surface::Console).collect();
    assert!(rows.len() >= 17);
    for row in rows {
        let mut browser = Browser::new().await;
        let path = row.path.replace("{id}", "019b7600-0000-7000-8000-000000000000").replace("{action}", "close");
        let (status, _) = browser.call(row.method.parse().unwrap(), &path, None).await;
        let wanted = if row.access == Access::Public { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        assert_eq!(status, wanted, "{} {path}", row.method);
    }
}

#[tokio::test]
async fn behind_a_prefix_pages_redirects_and_the_cookie_have_it() {
    let browser = Browser::new().await;
    let prefix = PublicPrefix("/gate".into());
    let ask = async |path: &str, cookie: &str| {
        let request = Request::builder().uri(path).header("cookie", cookie).extension(prefix.clone());
        browser.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    };
    let opened = ask(&link(SECRET, browser.clock.now()), "").await;
    assert_eq!(opened.headers()["location"], "/gate/console");
    let cookie = opened.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("Path=/gate/console"), "{cookie}");
    for path in ["/console", "/console/dead-letters", "/console/conversations", "/console/audit"] {
        let page = ask(path, cookie.split(';').next().unwrap()).await;
        let page = to_bytes(page.into_body(), 1_000_000).await.unwrap();
        let page = String::from_utf8(page.to_vec()).unwrap();
        assert!(page.contains("\"/gate/console/console.css\""), "{path}: {page}");
        assert!(!page.contains("\"/console"), "{path}: {page}");
    }
}

#[tokio::test]
async fn without_a_session_there_is_only_a_page_that_says_how_to_get_one() {
    let mut browser = Browser::new().await;
    let (status, page) = browser.get("/console").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(page.contains("eshaar serve") && !page.contains("<script"), "{page}");
    assert_eq!(browser.get("/console/messages/x").await.0, StatusCode::UNAUTHORIZED);
    for path in ["/console/messages", "/console/tokens", "/console/agent"] {
        let (status, problem) = browser.post(path, json!({"phone": PHONES[0]})).await;
        assert_eq!((status, &problem["code"]), (StatusCode::UNAUTHORIZED, &json!("no_session")), "{path}");
    }
}

#[tokio::test]
async fn a_link_opens_one_browser() {
    let mut first = Browser::logged_in().await;
    let link = link(SECRET, first.clock.now());
    assert_eq!(first.get(&link).await.0, StatusCode::SEE_OTHER, "in a session already");
    let mut second = Browser { router: first.router.clone(), clock: first.clock.clone(), cookie: None, csrf: None };
    assert_eq!(second.get(&link).await.0, StatusCode::SEE_OTHER, "still unused: the first browser did not need it");
    let mut third = Browser { router: first.router.clone(), clock: first.clock.clone(), cookie: None, csrf: None };
    assert_eq!(third.get(&link).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(third.get("/console?token=forged").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_session_ends() {
    let mut browser = Browser::logged_in().await;
    browser.clock.advance_millis(session::SESSION_FOR.as_millis() as i64);
    assert_eq!(browser.get("/console").await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn changes_need_the_pages_token() {
    let mut browser = Browser::logged_in().await;
    browser.csrf = None;
    for path in ["/console/messages", "/console/tokens", "/console/agent"] {
        let (status, problem) = browser.post(path, json!({"phone": PHONES[0]})).await;
        assert_eq!((status, &problem["code"]), (StatusCode::FORBIDDEN, &json!("csrf")), "{path}");
    }
}

#[tokio::test]
async fn a_message_goes_through_the_api_as_the_demo_business() {
    let mut browser = Browser::logged_in().await;
    let (_, seen) = browser.post("/console/messages", json!({"content": "مرحبا"})).await;
    let expected = json!({
        "path": "POST /v1/messages", "authorization": "Bearer esk_demo", "key": "k-1",
        "body": r#"{"content":"مرحبا"}"#,
    });
    assert_eq!(seen, expected);
    let id = MessageId::new(browser.clock.now());
    let (_, seen) = browser.get(&format!("/console/messages/{id}")).await;
    assert!(seen.contains(&format!("GET /v1/messages/{id}")), "{seen}");
    let (status, _) = browser.get("/console/messages/..%2F..%2Fadmin").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn only_the_pages_phones_get_tokens() {
    let mut browser = Browser::logged_in().await;
    for phone in PHONES {
        let (status, answer) = browser.post("/console/tokens", json!({"phone": phone})).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(
            (answer["access_token"].as_str().unwrap().split('.').count(), &answer["valid_for_ms"]),
            (3, &json!(600_000))
        );
    }
    let (status, problem) = browser.post("/console/tokens", json!({"phone": "+966500000009"})).await;
    assert_eq!((status, &problem["code"]), (StatusCode::BAD_REQUEST, &json!("unknown_phone")));
}

#[tokio::test]
async fn the_page_holds_nothing_inline_and_nothing_from_elsewhere() {
    let mut browser = Browser::logged_in().await;
    let (_, page) = browser.get("/console").await;
    assert!(!page.contains("style=") && !page.contains("onclick") && !page.contains("://"), "{page}");
    for asset in ["/console/console.css", "/console/client.js", "/console/console.js", "/console/agent.js"] {
        assert!(page.contains(asset));
        let (status, text) = browser.get(asset).await;
        assert!(status == StatusCode::OK && !text.contains("https://"));
    }
}
