//! The HTML of conversations.

use maud::{Markup, html};
use serde_json::Value;

use super::asking::query;
use super::conversations::Filter;
use super::page::{items, sheet, text};

/// The list of conversations.
pub(super) fn list(conversations: &Value, filter: &Filter) -> Markup {
    let next = text(conversations, "next_cursor");
    let body = html! {
        form method="get" action="/console/conversations" class="card filter" aria-label="Filter" {
            label class="field" {
                span { "Status" }
                select name="status" {
                    @for (status, name) in [("", "all"), ("active", "active"), ("archived", "archived"), ("closed", "closed")] {
                        option value=(status) selected[status == filter.status] { (name) }
                    }
                }
            }
            div class="actions" { button type="submit" { "Filter" } }
        }
        section class="card" aria-label="Conversations" {
            ol class="letters conversations" {
                @for conversation in items(conversations, "conversations") { (line(conversation)) }
            }
            @if items(conversations, "conversations").is_empty() {
                p class="empty" {
                    @if filter.status.is_empty() {
                        "No conversations yet. Write to a phone, or from one, on the " a href="/console" { "try-it page" } "."
                    } @else {
                        "No conversation is " (filter.status) "."
                    }
                }
            }
            @if !next.is_empty() {
                p { a href={ "/console/conversations?" (filter.query(next)) } { "Older ones" } }
            }
        }
    };
    sheet("Conversations", "What the demo business and phones say to each other, newest activity first.", &body)
}

fn line(conversation: &Value) -> Markup {
    let (id, status, with) = (text(conversation, "id"), text(conversation, "status"), text(conversation, "with"));
    let unread = conversation["unread"].as_u64().unwrap_or_default();
    let more = if conversation["more_unread"] == true { "+" } else { "" };
    html! {
        li data-id=(id) data-status=(status) {
            div {
                p {
                    a href={ "/console/conversations/" (id) } dir="ltr" { (with) }
                    " " span class="standing" data-status=(status) { (status) }
                    @if unread > 0 { " " b class="badge" { (unread) (more) " unread" } }
                }
                p class="quiet" {
                    @if conversation["last_message"].is_null() {
                        "Started " (time(text(conversation, "created_at"))) ", nothing said yet"
                    } @else {
                        "Last message from " span dir="ltr" { (text(&conversation["last_message"], "from")) } ", "
                        (time(text(conversation, "last_activity_at")))
                    }
                }
            }
        }
    }
}

/// To the second; the page has no script that knows where it is looked at.
fn time(at: &str) -> Markup {
    let shown = at.get(..19).unwrap_or(at).replace('T', " ");
    html! { time datetime=(at) { (shown) " UTC" } }
}

/// A part of a conversation.
pub(super) struct Chat<'a> {
    pub(super) conversation: &'a Value,
    pub(super) messages: &'a Value,
    /// Whether it is the newest part.
    pub(super) is_newest: bool,
}

/// A conversation as a chat.
pub(super) fn show(chat: &Chat<'_>, csrf: &str) -> Markup {
    let Chat { conversation, messages, is_newest } = chat;
    let (id, status, with) = (text(conversation, "id"), text(conversation, "status"), text(conversation, "with"));
    let here = format!("/console/conversations/{id}");
    let said = items(messages, "messages");
    let body = html! {
        section class="card" aria-labelledby="chat-title" {
            h2 id="chat-title" {
                span dir="ltr" { (with) } " " span class="standing" data-status=(status) { (status) }
            }
            dl class="facts" {
                dt { "id" } dd { code { (id) } }
                dt { "started" } dd { (time(text(conversation, "created_at"))) }
                dt { "last activity" } dd { (time(text(conversation, "last_activity_at"))) }
                dt { "unread" } dd { (conversation["unread"]) @if conversation["more_unread"] == true { "+" } }
            }
            @if messages["more"] == true {
                p { a href={ (here) "?" (query(&[("before", text(messages, "oldest"))])) } { "Earlier messages" } }
            }
            ol class="screen chat" aria-label="Messages" {
                @for message in said { (bubble(message, text(conversation, "business"))) }
                @if said.is_empty() { li class="empty" { "Nothing was said here." } }
            }
            @if !is_newest { p { a href=(here) { "Newest messages" } } }
            @if status != "closed" { (forms(&here, status, csrf)) }
        }
    };
    sheet("Conversation", "As the business sees it.", &body)
}

fn forms(here: &str, status: &str, csrf: &str) -> Markup {
    html! {
        @if status == "active" {
            form method="post" action={ (here) "/archive" } aria-label="Archive" {
                input type="hidden" name="csrf" value=(csrf);
                p class="quiet" { "Archived, it leaves the list of active ones until somebody writes in it." }
                div class="actions" { button type="submit" { "Archive" } }
            }
        }
        details {
            summary { "Close it for good" }
            form method="post" action={ (here) "/close" } aria-label="Close" {
                input type="hidden" name="csrf" value=(csrf);
                p class="quiet" { "Nobody can write in a closed conversation again. Either side may start another." }
                div class="actions" { button type="submit" { "Close for good" } }
            }
        }
    }
}

fn bubble(message: &Value, business: &str) -> Markup {
    let (from, status) = (text(message, "from"), text(message, "status"));
    let ticks = match status {
        "sent" => "\u{2713}",
        "delivered" | "read" => "\u{2713}\u{2713}",
        _ => "\u{2717}",
    };
    html! {
        li class=[(from == business).then_some("own")] data-id=(text(message, "id")) {
            article class="message" aria-label={ "From " (from) } {
                p class="content" dir="auto" { (text(message, "content")) }
                p class="meta" {
                    (time(text(message, "sent_at")))
                    span class="status" { (status) }
                    span class="ticks" data-step=(status) aria-hidden="true" { (ticks) }
                }
            }
        }
    }
}
