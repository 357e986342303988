//! The HTML of dead letters and the audit log.

use maud::{Markup, html};
use serde_json::Value;

use super::asking::query;
use super::letters::{AuditFilter, Filter};
use super::page::{items, sheet, text};

/// Most tasks shown above the list.
const TASKS: usize = 5;

/// What the list shows.
pub(super) struct Listing<'a> {
    pub(super) filter: &'a Filter,
    /// The API's page.
    pub(super) letters: &'a Value,
    /// The API's tasks.
    pub(super) tasks: &'a Value,
    pub(super) csrf: &'a str,
    pub(super) wrong: Option<&'a str>,
}

/// The list of dead letters.
pub(super) fn list(listing: &Listing<'_>) -> Markup {
    let letters = items(listing.letters, "dead_letters");
    let next = text(listing.letters, "next_cursor");
    let body = html! {
        @if let Some(wrong) = listing.wrong {
            p class="card outcome" data-kind="bad" role="alert" { (wrong) }
        }
        (tasks(listing.tasks))
        (filter_form(listing.filter))
        form method="post" class="card letters-form" aria-label="Dead letters" {
            input type="hidden" name="csrf" value=(listing.csrf);
            @for (name, value) in listing.filter.narrowing() {
                input type="hidden" name=(name) value=(value);
            }
            @if letters.is_empty() {
                p class="empty" { "No dead letters here." }
            } @else {
                ol class="letters" {
                    @for letter in letters { (line(letter)) }
                }
                div class="actions" {
                    button type="submit" class="primary" name="which" value="selected"
                        formaction="/console/dead-letters/redrive" { "Redrive chosen" }
                    button type="submit" name="which" value="selected"
                        formaction="/console/dead-letters/discard" { "Discard chosen" }
                }
                details {
                    summary { "All open ones that the filter names" }
                    div class="actions" {
                        button type="submit" name="which" value="all"
                            formaction="/console/dead-letters/redrive" { "Redrive all of them" }
                        button type="submit" name="which" value="all"
                            formaction="/console/dead-letters/discard" { "Discard all of them" }
                    }
                }
            }
            @if !next.is_empty() {
                p { a href={ "/console/dead-letters?" (listing.filter.query(next)) } { "Older ones" } }
            }
        }
    };
    sheet("Dead letters", "Records that a stage gave up on, kept for 7 days. A redrive sends a record again.", &body)
}

fn filter_form(filter: &Filter) -> Markup {
    let field = |label: &str, name: &str, value: &str, hint: &str| {
        html! {
            label class="field" {
                span { (label) }
                input type="text" name=(name) value=(value) placeholder=(hint) autocomplete="off" spellcheck="false";
            }
        }
    };
    html! {
        form method="get" action="/console/dead-letters" class="card filter" aria-label="Filter" {
            div class="fields" {
                (field("Stage", "stage", &filter.stage, "any"))
                (field("Code", "code", &filter.code, "any"))
                (field("Business", "business", &filter.business, "any"))
                label class="field" {
                    span { "State" }
                    select name="state" {
                        @for state in ["open", "redriven", "discarded", "all"] {
                            option value=(state) selected[state == filter.state()] { (state) }
                        }
                    }
                }
                (field("From", "from", &filter.from, "2026-01-31T12:00:00Z"))
                (field("Until", "until", &filter.until, "2026-01-31T13:00:00Z"))
            }
            div class="actions" { button type="submit" { "Filter" } }
        }
    }
}

fn tasks(tasks: &Value) -> Markup {
    let tasks = items(tasks, "tasks");
    html! {
        @if !tasks.is_empty() {
            section class="card" aria-labelledby="tasks-title" {
                h2 id="tasks-title" { "Lately asked for" }
                ol class="tasks" {
                    @for task in tasks.iter().take(TASKS) {
                        li data-action=(text(task, "action")) data-finished=(task["finished"].to_string()) {
                            span {
                                (text(task, "action")) ", "
                                @if task["finished"] == true { "finished" } @else { "under way" }
                            }
                            " " span class="quiet" {
                                (task["done"]) " done, " (task["refused"]) " refused, " (task["skipped"])
                                " passed over · " (text(task, "by")) " · " (text(task, "requested_at"))
                            }
                        }
                    }
                }
            }
        }
    }
}

fn line(letter: &Value) -> Markup {
    let (id, state) = (text(letter, "id"), text(letter, "state"));
    html! {
        li data-id=(id) data-state=(state) {
            input type="checkbox" name="id" value=(id) disabled[state != "open"]
                aria-label={ "Choose " (text(letter, "code")) " of " (text(letter, "stage")) " " (id) };
            div {
                p {
                    a href={ "/console/dead-letters/" (id) } { (text(letter, "code")) }
                    " in " strong { (text(letter, "stage")) }
                    @if state != "open" { " " span class="quiet" { (state) } }
                }
                p class="quiet" { (text(letter, "reason")) }
                p class="quiet" {
                    (text(letter, "at")) " · " (text(letter, "topic")) "[" (letter["partition"]) "]@" (letter["offset"])
                    @if let Some(business) = letter["business"].as_str() { " · " (business) }
                    " · tried " (letter["attempts"]) " times, redriven " (letter["redrives"])
                }
            }
        }
    }
}

/// A dead letter with its content.
pub(super) fn show(letter: &Value, csrf: &str) -> Markup {
    let state = text(letter, "state");
    let fact = |name: &str, value: &Value| {
        let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        html! { @if value != "null" { dt { (name) } dd { (value) } } }
    };
    let body = html! {
        section class="card" aria-labelledby="letter-title" {
            h2 id="letter-title" { (text(letter, "code")) " in " (text(letter, "stage")) }
            dl class="facts" {
                @for name in [
                    "id", "state", "reason", "at", "topic", "partition", "offset", "attempts", "redrives", "business",
                    "event_id", "correlation_id", "settled_at", "settled_by", "key", "size_bytes",
                ] { (fact(name, &letter[name])) }
                @if let Some(headers) = letter["headers"].as_object() {
                    @for (name, value) in headers { (fact(name, value)) }
                }
            }
            h2 { "Content" }
            @if letter["payload"].is_null() {
                p class="quiet" {
                    "Cannot be decoded: " (text(letter, "payload_error")) ". Its " (letter["size_bytes"])
                    " bytes in base64:"
                }
                pre class="payload" { (text(letter, "payload_base64")) }
            } @else {
                pre class="payload" dir="auto" { (serde_json::to_string_pretty(&letter["payload"]).unwrap_or_default()) }
            }
            @if state == "open" {
                form method="post" aria-label="This dead letter" {
                    input type="hidden" name="csrf" value=(csrf);
                    input type="hidden" name="id" value=(text(letter, "id"));
                    div class="actions" {
                        button type="submit" class="primary" formaction="/console/dead-letters/redrive" { "Redrive" }
                        button type="submit" formaction="/console/dead-letters/discard" { "Discard" }
                    }
                }
            }
        }
    };
    sheet("Dead letter", "That it was looked at is in the audit log.", &body)
}

/// The audit log.
pub(super) fn audit(entries: &Value, filter: &AuditFilter) -> Markup {
    let next = text(entries, "next_cursor");
    let body = html! {
        form method="get" action="/console/audit" class="card filter" aria-label="Filter" {
            label class="field" {
                span { "Actor" }
                input type="text" name="actor" value=(filter.actor) placeholder="any" autocomplete="off";
            }
            div class="actions" { button type="submit" { "Filter" } }
        }
        section class="card" aria-label="Entries" {
            ol class="letters" {
                @for entry in items(entries, "entries") {
                    li data-action=(text(entry, "action")) {
                        div {
                            p { strong { (text(entry, "action")) } " " (text(entry, "subject")) }
                            p class="quiet" { (text(entry, "at")) " · " (text(entry, "actor")) }
                            p class="quiet" { code { (entry["detail"]) } }
                        }
                    }
                }
            }
            @if items(entries, "entries").is_empty() { p class="empty" { "Nothing yet." } }
            @if !next.is_empty() {
                p { a href={ "/console/audit?" (query(&[("actor", &filter.actor), ("cursor", next)])) } { "Older ones" } }
            }
        }
    };
    sheet("Audit log", "Who did what. Entries never change.", &body)
}
