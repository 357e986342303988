//! The pages of conversations, before an API that answers what a test has it answer.

use std::future::ready;
use std::sync::Mutex;

use super::*;

const ID: &str = "019a0000-0000-7000-8000-000000000001";
/// What a message or a name may hold, and what of it must never be in a page.
const HOSTILE: &str = r#"<script>alert("1")</script>"#;

/// Pages, and what they asked of the API.
struct Desk {
    browser: Browser,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Desk {
    /// The API answers these, as `METHOD path?query`; anything else is not found.
    async fn new(answers: Vec<(String, Value)>) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&asked);
        let api = Router::new().fallback(move |request: Request<Body>| {
            assert_eq!(request.headers()["authorization"], "Bearer esk_demo", "as the business, not as an operator");
            let wanted = format!("{} {}", request.method(), request.uri());
            record.lock().unwrap().push(wanted.clone());
            let found = answers.iter().find(|(path, _)| *path == wanted).map(|(_, answer)| Json(answer.clone()));
            let missing = Problem::new(StatusCode::NOT_FOUND, "conversation_not_found", "no such conversation");
            ready(found.map_or_else(|| missing.into_response(), IntoResponse::into_response))
        });
        let mut browser = Browser::before(api).await;
        browser.log_in().await;
        Self { browser, asked }
    }

    /// One with this conversation and what was said in it.
    async fn with(status: &str, messages: Value) -> Self {
        let path = format!("/v1/conversations/{ID}");
        Self::new(vec![
            (format!("GET {path}"), conversation(status)),
            (format!("GET {path}/messages?"), messages),
            (format!("POST {path}/archive"), conversation("archived")),
        ])
        .await
    }

    async fn page(&mut self, path: &str) -> String {
        let (status, page) = self.browser.get(&format!("/console/conversations{path}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        page
    }

    async fn submit(&mut self, action: &str, form: &str) -> (StatusCode, String) {
        self.browser.submit(&format!("/console/conversations/{ID}/{action}"), form).await
    }

    /// A form as the page sends it.
    fn form(&self) -> String {
        format!("csrf={}", self.browser.csrf.as_ref().unwrap())
    }

    fn changes(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().filter(|wanted| wanted.starts_with("POST")).cloned().collect()
    }
}

fn conversation(status: &str) -> Value {
    json!({
        "id": ID, "with": "+966500000011", "business": "demo", "phone": "+966500000011", "status": status,
        "created_at": "2026-01-31T12:00:00.000Z", "last_activity_at": "2026-01-31T12:05:00.000Z",
        "last_message": {"from": "+966500000011"}, "unread": 1000, "more_unread": true,
    })
}

fn message(from: &str, status: &str, content: &str) -> Value {
    json!({"id": status, "from": from, "status": status, "content": content, "sent_at": "2026-01-31T12:05:00.000Z"})
}

#[tokio::test]
async fn without_a_session_nothing_is_asked_of_the_api() {
    let mut desk = Desk::new(Vec::new()).await;
    let form = desk.form();
    desk.browser.cookie = None;
    for path in ["", "/x"] {
        let (status, _) = desk.browser.get(&format!("/console/conversations{path}")).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
    }
    for form in [form.as_str(), "unreadable"] {
        assert_eq!(desk.submit("close", form).await.0, StatusCode::UNAUTHORIZED, "{form}");
    }
    assert!(desk.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_list_is_narrowed_by_the_api_and_its_links_keep_what_narrows_it() {
    let list = json!({"conversations": [conversation("archived")], "next_cursor": "a&b"});
    let mut desk = Desk::new(vec![("GET /v1/conversations?status=archived&cursor=c%261".to_owned(), list)]).await;
    let page = desk.page("?status=archived&cursor=c%261").await;
    for part in [ID, "+966500000011", "1000+ unread", "2026-01-31T12:05:00.000Z", "status=archived&amp;cursor=a%26b"] {
        assert!(page.contains(part), "{part}: {page}");
    }
}

#[tokio::test]
async fn a_message_stands_on_its_senders_side_with_its_status_in_words() {
    let steps = ["sent", "delivered", "read", "cancelled", "expired", "failed"];
    let mut said: Vec<_> = steps.iter().map(|step| message("demo", step, "ours")).collect();
    said.push(message("+966500000011", "received", "theirs"));
    let mut desk = Desk::with("active", json!({"messages": said, "oldest": "3-7", "more": true})).await;
    let page = desk.page(&format!("/{ID}")).await;
    for step in steps {
        assert!(page.contains(&format!(r#"<li class="own" data-id="{step}">"#)), "{step}: {page}");
        assert!(page.contains(&format!(r#"<span class="status">{step}</span>"#)), "{step}: {page}");
    }
    assert!(page.contains(r#"<li data-id="received">"#), "{page}");
    assert!(page.contains(&format!("/console/conversations/{ID}?before=3-7")), "{page}");
}

#[tokio::test]
async fn what_was_said_is_text() {
    let said = json!({"messages": [message("+966500000011", "sent", HOSTILE)], "more": false});
    let mut desk = Desk::with("active", said).await;
    let page = desk.page(&format!("/{ID}")).await;
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(&quot;1&quot;)"), "{page}");
    // Of the address too, where it names no status.
    let mut desk = Desk::new(vec![("GET /v1/conversations?status=%3Cscript%3E".to_owned(), json!({}))]).await;
    let page = desk.page("?status=%3Cscript%3E").await;
    assert!(!page.contains("<script"), "{page}");
}

#[tokio::test]
async fn there_is_a_button_only_for_what_would_change_something() {
    for (status, archive, close) in [("active", true, true), ("archived", false, true), ("closed", false, false)] {
        let mut desk = Desk::with(status, json!({"messages": [], "more": false})).await;
        let page = desk.page(&format!("/{ID}")).await;
        let has = |action: &str| page.contains(&format!(r#"action="/console/conversations/{ID}/{action}""#));
        assert_eq!((has("archive"), has("close")), (archive, close), "{status}");
    }
}

#[tokio::test]
async fn a_change_is_made_by_the_pages_own_form_alone() {
    let mut desk = Desk::with("active", json!({"messages": []})).await;
    let form = desk.form();
    for (action, form, refused) in [
        ("archive", "csrf=AAAA", StatusCode::FORBIDDEN),
        ("archive", "unreadable", StatusCode::BAD_REQUEST),
        ("read", form.as_str(), StatusCode::NOT_FOUND),
    ] {
        let (status, page) = desk.submit(action, form).await;
        assert_eq!(status, refused, "{action} {form}");
        assert!(page.contains(r#"role="alert""#), "{page}");
    }
    assert!(desk.changes().is_empty());
    assert_eq!(desk.submit("archive", &form).await.0, StatusCode::SEE_OTHER);
    assert_eq!(desk.changes(), [format!("POST /v1/conversations/{ID}/archive")]);
}

#[tokio::test]
async fn what_the_api_refuses_is_shown_with_its_code() {
    let mut desk = Desk::new(Vec::new()).await;
    let (status, page) = desk.browser.get("/console/conversations/..%2F..%2Fadmin").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(page.contains("no such conversation (conversation_not_found)"), "{page}");
    let asked = desk.asked.lock().unwrap().join(" ");
    assert!(asked.contains("/v1/conversations/..%2F..%2Fadmin") && !asked.contains("/../"), "{asked}");
}
