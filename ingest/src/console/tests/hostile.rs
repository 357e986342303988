//! Text of senders, headers of records and names of actors on every page, with all that HTML could make of it.

use super::*;

const ID: &str = "019a0000-0000-7000-8000-000000000001";

/// Ends an attribute, an element, a comment and a script, and begins what would run.
const HOSTILE: &str = "'\" onmouseover=\"alert(1)\" --></p></pre></title></textarea><script>alert(1)</script><img src=x onerror=alert(1)>&\u{2028}";

/// What must never stand in a page: each begins markup, or ends a value.
const MARKUP: [&str; 6] = ["<script", "<img", "</pre></title>", "-->", "\" onmouseover", "'\" "];

/// An answer to any request, with hostile text wherever there is text.
async fn answer(request: Request<Body>) -> Json<Value> {
    let path = request.uri().path();
    let h = HOSTILE;
    let message = json!({"id": h, "from": h, "status": h, "content": h, "sent_at": h});
    let letter = json!({"id": h, "state": "open", "stage": h, "code": h, "reason": h, "at": h, "topic": h, "partition": 1,
        "offset": 1, "attempts": 1, "redrives": 0, "business": h, "event_id": h, "correlation_id": h, "settled_at": h,
        "settled_by": h, "key": h, "size_bytes": 1, "headers": {HOSTILE: h}, "payload": {HOSTILE: h}});
    let unreadable =
        json!({"id": h, "state": h, "headers": {}, "payload": null, "payload_error": h, "payload_base64": h});
    let conversation = json!({"id": h, "with": h, "business": "demo", "phone": h, "status": h, "created_at": h,
        "last_activity_at": h, "last_message": {"from": h}, "unread": 1, "more_unread": true});
    Json(match path {
        "/v1/conversations" => json!({"conversations": [conversation], "next_cursor": h}),
        _ if path.ends_with("/messages") => json!({"messages": [message], "oldest": h, "more": true}),
        _ if path.starts_with("/v1/conversations/") => conversation,
        "/v1/admin/dead-letters" => json!({"dead_letters": [letter], "next_cursor": h}),
        "/v1/admin/dead-letters/tasks" => json!({"tasks": [
            {"action": h, "finished": true, "done": 1, "refused": 0, "skipped": 0, "by": h, "requested_at": h}]}),
        "/v1/admin/audit" => json!({"entries": [
            {"action": h, "subject": h, "at": h, "actor": h, "detail": {HOSTILE: h}}], "next_cursor": h}),
        _ if path.ends_with("unreadable") => unreadable,
        _ => letter,
    })
}

/// An API that refuses everything, with hostile words.
async fn refusal() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "refused", HOSTILE)
}

#[tokio::test]
async fn no_text_becomes_markup_on_any_page() {
    let hostile = super::super::asking::encoded(HOSTILE);
    for api in [Router::new().fallback(answer), Router::new().fallback(refusal)] {
        let mut browser = Browser::before(api).await;
        browser.log_in().await;
        for path in [
            "/console/conversations".to_owned(),
            format!("/console/conversations?status={hostile}&cursor={hostile}"),
            format!("/console/conversations/{ID}"),
            format!("/console/conversations/{hostile}"),
            "/console/dead-letters".to_owned(),
            format!(
                "/console/dead-letters?stage={hostile}&code={hostile}&business={hostile}&from={hostile}&until={hostile}"
            ),
            format!("/console/dead-letters?state={hostile}"),
            format!("/console/dead-letters/{ID}"),
            "/console/dead-letters/unreadable".to_owned(),
            format!("/console/audit?actor={hostile}"),
            format!("/console?token={hostile}"),
        ] {
            let (_, page) = browser.get(&path).await;
            for markup in MARKUP {
                assert!(!page.contains(markup), "{path} has {markup}: {page}");
            }
        }
    }
}

/// The page's scripts make elements and set text: nothing in them reads HTML.
#[test]
fn the_scripts_never_read_html() {
    let scripts = [include_str!("../client.js"), include_str!("../console.js"), include_str!("../agent.js")];
    for script in scripts {
        for way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            "srcdoc",
            "DOMParser",
        ] {
            assert!(!script.contains(way), "{way}");
        }
    }
}
