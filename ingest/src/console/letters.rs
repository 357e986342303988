//! The console's pages for operators: dead letters (list, look into, redrive, discard) and the audit log.
//!
//! Forms and links alone, no script. All of it goes through the HTTP API with the operators' key, so what is done here is
//! audited like anything else; what changes something carries the session's CSRF token in its form.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum_extra::extract::CookieJar;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::asking::{By, Refused, encoded, query};
use super::letters_page::{self as page, Listing};
use super::session::Session;
use super::{Console, locked, session_of};

/// What the form above the list says. Empty fields say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Filter {
    pub(super) stage: String,
    pub(super) code: String,
    pub(super) business: String,
    pub(super) state: Option<String>,
    pub(super) from: String,
    pub(super) until: String,
    pub(super) cursor: String,
}

impl Filter {
    /// Open letters are listed when nothing is said.
    pub(super) fn state(&self) -> &str {
        self.state.as_deref().unwrap_or("open")
    }

    /// What narrows the list, as the API takes it.
    pub(super) fn narrowing(&self) -> Vec<(&'static str, &str)> {
        let fields = [
            ("stage", &self.stage),
            ("code", &self.code),
            ("business", &self.business),
            ("from", &self.from),
            ("until", &self.until),
        ];
        let given = fields.into_iter().map(|(name, value)| (name, value.trim()));
        given.filter(|(_, value)| !value.is_empty()).collect()
    }

    /// The list's own query, for links to it.
    pub(super) fn query(&self, cursor: &str) -> String {
        let mut fields = self.narrowing();
        fields.push(("state", self.state()));
        fields.push(("cursor", cursor));
        query(&fields)
    }
}

/// Dead letters, newest first.
pub(super) async fn list(State(console): State<Console>, cookies: CookieJar, Query(filter): Query<Filter>) -> Response {
    match session_of(&console, &cookies) {
        Some(session) => listed(&console, &session, &filter, None).await,
        None => locked(false),
    }
}

/// The list, with what went wrong with a request made on it.
async fn listed(console: &Console, session: &Session, filter: &Filter, wrong: Option<Refused>) -> Response {
    let mut fields = filter.narrowing();
    fields.push(("state", Some(filter.state()).filter(|state| *state != "all").unwrap_or_default()));
    fields.push(("cursor", &filter.cursor));
    let path = format!("/v1/admin/dead-letters?{}", query(&fields));
    let (letters, tasks) = tokio::join!(
        console.ask(By::Operator, Method::GET, &path, None),
        console.ask(By::Operator, Method::GET, "/v1/admin/dead-letters/tasks", None)
    );
    let wrong = wrong.or_else(|| letters.as_ref().err().cloned());
    let (letters, tasks) = (letters.unwrap_or_default(), tasks.unwrap_or_default());
    let status = wrong.as_ref().map_or(StatusCode::OK, |refused| refused.status);
    let csrf = console.sessions.csrf(session);
    let wrong = wrong.map(|refused| refused.detail);
    let listing = Listing { filter, letters: &letters, tasks: &tasks, csrf: &csrf, wrong: wrong.as_deref() };
    (status, Html(page::list(&listing).into_string())).into_response()
}

/// One dead letter, with its content.
pub(super) async fn show(State(console): State<Console>, cookies: CookieJar, Path(id): Path<String>) -> Response {
    let Some(session) = session_of(&console, &cookies) else { return locked(false) };
    match console.ask(By::Operator, Method::GET, &format!("/v1/admin/dead-letters/{}", encoded(&id)), None).await {
        Ok(letter) => Html(page::show(&letter, &console.sessions.csrf(&session)).into_string()).into_response(),
        Err(refused) => refused.into_response(),
    }
}

/// What a form of the list asks for.
#[derive(Debug, Default)]
struct Asked {
    csrf: String,
    all: bool,
    ids: Vec<String>,
    filter: Filter,
}

impl Asked {
    /// Fields may be repeated: a form has an `id` for each letter that is chosen.
    fn parse(form: &[u8]) -> Option<Self> {
        let uri: http::Uri = format!("/?{}", std::str::from_utf8(form).ok()?).parse().ok()?;
        let Query(fields) = Query::<Vec<(String, String)>>::try_from_uri(&uri).ok()?;
        let mut asked = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                "csrf" => asked.csrf = value,
                "which" => asked.all = value == "all",
                "id" => asked.ids.push(value),
                "stage" => asked.filter.stage = value,
                "code" => asked.filter.code = value,
                "business" => asked.filter.business = value,
                "from" => asked.filter.from = value,
                "until" => asked.filter.until = value,
                _ => return None,
            }
        }
        Some(asked)
    }

    fn selection(&self) -> Value {
        if self.all {
            let filter: serde_json::Map<String, Value> =
                self.filter.narrowing().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
            return json!({ "filter": filter });
        }
        json!({ "ids": self.ids })
    }
}

/// Has letters redriven or discarded, as the last part of the path says.
pub(super) async fn act(
    State(console): State<Console>,
    cookies: CookieJar,
    Path(action): Path<String>,
    form: Bytes,
) -> Response {
    let Some(session) = session_of(&console, &cookies) else { return locked(false) };
    let Some(asked) = Asked::parse(&form) else { return Refused::unreadable().into_response() };
    if !console.sessions.is_csrf(&session, &asked.csrf) {
        return Refused::forged().into_response();
    }
    if !asked.all && asked.ids.is_empty() {
        let detail = "Choose some dead letters first.".to_owned();
        return listed(&console, &session, &asked.filter, Some(Refused { status: StatusCode::BAD_REQUEST, detail }))
            .await;
    }
    let path = match action.as_str() {
        "redrive" => "/v1/admin/dead-letters/redrive",
        "discard" => "/v1/admin/dead-letters/discard",
        _ => return Refused::no_page().into_response(),
    };
    match console.ask(By::Operator, Method::POST, path, Some(asked.selection())).await {
        // By a redirect, so that a reload does not ask again.
        Ok(_) => Redirect::to(&format!("/console/dead-letters?{}", asked.filter.query(""))).into_response(),
        Err(refused) => listed(&console, &session, &asked.filter, Some(refused)).await,
    }
}

/// What the audit log is narrowed by.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AuditFilter {
    pub(super) actor: String,
    pub(super) cursor: String,
}

/// The audit log, newest first.
pub(super) async fn audit(
    State(console): State<Console>,
    cookies: CookieJar,
    Query(filter): Query<AuditFilter>,
) -> Response {
    if session_of(&console, &cookies).is_none() {
        return locked(false);
    }
    let query = query(&[("actor", filter.actor.trim()), ("cursor", &filter.cursor)]);
    match console.ask(By::Operator, Method::GET, &format!("/v1/admin/audit?{query}"), None).await {
        Ok(entries) => Html(page::audit(&entries, &filter).into_string()).into_response(),
        Err(refused) => refused.into_response(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_form_names_chosen_letters_or_all_that_its_filter_names() {
        let asked = Asked::parse(b"csrf=c&id=a&id=b&which=selected&stage=route").unwrap();
        assert_eq!((asked.csrf.as_str(), asked.selection()), ("c", json!({"ids": ["a", "b"]})));
        let asked = Asked::parse(b"csrf=c&which=all&stage=route&business=+&from=2026-01-31T12%3A00%3A00Z").unwrap();
        let filter = json!({"stage": "route", "from": "2026-01-31T12:00:00Z"});
        assert_eq!(asked.selection(), json!({ "filter": filter }));
        for form in [&b"action=redrive"[..], b"id=a b", b"\xff"] {
            assert!(Asked::parse(form).is_none(), "{form:?}");
        }
    }

    #[test]
    fn links_keep_the_filter_and_hold_nothing_that_is_not_encoded() {
        let filter = Filter { code: "a&b=<c>".to_owned(), state: Some("all".to_owned()), ..Filter::default() };
        assert_eq!(filter.query("next"), "code=a%26b%3D%3Cc%3E&state=all&cursor=next");
        assert_eq!(Filter::default().query(""), "state=open");
    }
}
