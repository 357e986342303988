//! The console's pages of the demo business's conversations: the list, and each as a chat, to be archived or closed.
//!
//! Forms and links alone, no script, like the operators' pages. All of it goes through the HTTP API with the business's key.

use axum::Form;
use axum::extract::rejection::FormRejection;
use axum::extract::{Path, Query, State};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum_extra::extract::CookieJar;
use http::Method;
use serde::Deserialize;

use super::asking::{By, Refused, encoded, query};
use super::conversations_page as page;
use super::{Console, locked, session_of};

/// What the list is narrowed by. Empty fields say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Filter {
    pub(super) status: String,
    cursor: String,
}

impl Filter {
    /// The list's own query, for links to it.
    pub(super) fn query(&self, cursor: &str) -> String {
        query(&[("status", &self.status), ("cursor", cursor)])
    }
}

/// Conversations, newest activity first.
pub(super) async fn list(State(console): State<Console>, cookies: CookieJar, Query(filter): Query<Filter>) -> Response {
    if session_of(&console, &cookies).is_none() {
        return locked(false);
    }
    let path = format!("/v1/conversations?{}", filter.query(&filter.cursor));
    match console.ask(By::Business, Method::GET, &path, None).await {
        Ok(conversations) => Html(page::list(&conversations, &filter).into_string()).into_response(),
        Err(refused) => refused.into_response(),
    }
}

/// Which part of a conversation is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Part {
    before: String,
}

/// A conversation, as a chat: its newest messages, or those before a position.
pub(super) async fn show(
    State(console): State<Console>,
    cookies: CookieJar,
    Path(id): Path<String>,
    Query(part): Query<Part>,
) -> Response {
    let Some(session) = session_of(&console, &cookies) else { return locked(false) };
    let conversation = format!("/v1/conversations/{}", encoded(&id));
    let messages = format!("{conversation}/messages?{}", query(&[("before", &part.before)]));
    let (conversation, messages) = tokio::join!(
        console.ask(By::Business, Method::GET, &conversation, None),
        console.ask(By::Business, Method::GET, &messages, None)
    );
    match (conversation, messages) {
        (Ok(conversation), Ok(messages)) => {
            let chat =
                page::Chat { conversation: &conversation, messages: &messages, is_newest: part.before.is_empty() };
            Html(page::show(&chat, &console.sessions.csrf(&session)).into_string()).into_response()
        }
        (Err(refused), _) | (_, Err(refused)) => refused.into_response(),
    }
}

/// What a form of a conversation carries.
#[derive(Deserialize)]
pub(super) struct Asked {
    csrf: String,
}

/// Archives or closes a conversation, as the last part of the path says.
pub(super) async fn act(
    State(console): State<Console>,
    cookies: CookieJar,
    Path((id, action)): Path<(String, String)>,
    form: Result<Form<Asked>, FormRejection>,
) -> Response {
    let Some(session) = session_of(&console, &cookies) else { return locked(false) };
    let Ok(Form(asked)) = form else { return Refused::unreadable().into_response() };
    if !console.sessions.is_csrf(&session, &asked.csrf) {
        return Refused::forged().into_response();
    }
    if !["archive", "close"].contains(&action.as_str()) {
        return Refused::no_page().into_response();
    }
    let id = encoded(&id);
    match console.ask(By::Business, Method::POST, &format!("/v1/conversations/{id}/{action}"), None).await {
        // By a redirect, so that a reload does not ask again.
        Ok(_) => Redirect::to(&format!("/console/conversations/{id}")).into_response(),
        Err(refused) => refused.into_response(),
    }
}
