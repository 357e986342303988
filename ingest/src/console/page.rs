//! The console's HTML. What moves in it is in `console.js`, how it looks in `console.css`.

use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use super::{BUSINESS, PHONES};

/// Browsers count UTF-16 units, of which a character has up to two. The API counts characters.
const CONTENT_UNITS: usize = 2 * eshaar_model::limits::CONTENT_CHARS;

fn document(body: &Markup, csrf: Option<&str>) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "eshaar console" }
                link rel="icon" type="image/svg+xml" href="/console/icon.svg";
                link rel="stylesheet" href="/console/console.css";
                @if let Some(csrf) = csrf {
                    meta name="csrf-token" content=(csrf);
                    @for script in ["client", "console", "agent"] {
                        script src={ "/console/" (script) ".js" } defer {}
                    }
                }
            }
            body { (body) }
        }
    }
}

/// What is shown without a session.
pub(super) fn locked(refused: bool) -> Markup {
    let body = html! {
        main class="locked card" {
            h1 { "eshaar console" }
            @if refused {
                p { "That link has expired or was used already. Each link opens one session, within an hour." }
            } @else {
                p { "There is no session in this browser." }
            }
            p {
                "Open the link that " code { "eshaar serve" } " printed when it started, or have a new one printed: "
                code { "eshaar console" } "."
            }
        }
    };
    document(&body, None)
}

/// A page beside the console itself, without a script.
pub(super) fn sheet(title: &str, about: &str, body: &Markup) -> Markup {
    let whole = html! {
        header class="top" {
            h1 { (title) " " span class="quiet" { "eshaar console" } }
            p class="quiet" { (about) }
            nav class="links" aria-label="Pages" {
                a href="/console" { "Try it" }
                (links())
            }
        }
        main class="sheet" { (body) }
    };
    document(&whole, None)
}

fn links() -> Markup {
    html! {
        a href="/console/conversations" { "Conversations" }
        a href="/console/dead-letters" { "Dead letters" }
        a href="/console/audit" { "Audit log" }
    }
}

/// An answer that is no page.
pub(super) fn refused(detail: &str) -> Markup {
    sheet("Not done", "", &html! { p class="card outcome" data-kind="bad" role="alert" { (detail) } })
}

/// A text of the API's answer; nothing where it is null.
pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// A list of the API's answer.
pub(super) fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The console itself.
pub(super) fn console(csrf: &str) -> Markup {
    let body = html! {
        header class="top" {
            h1 { "eshaar " span class="quiet" { "console" } }
            p class="quiet" { "Send a message as the demo business and see it arrive; or talk, as its agent and as a phone." }
            nav class="links" aria-label="Pages" { (links()) }
        }
        main class="desk" {
            div class="side" { (sender()) (timeline()) }
            div class="phones" {
                (agent_card())
                @for (name, phone) in ["A", "B"].into_iter().zip(PHONES) { (phone_card(name, phone)) }
            }
        }
    };
    document(&body, Some(csrf))
}

fn sender() -> Markup {
    html! {
        section class="card" aria-labelledby="sender-title" {
            h2 id="sender-title" { "Send" }
            form id="sender" {
                fieldset class="choice" {
                    legend { "To" }
                    @for (name, phone) in ["A", "B"].into_iter().zip(PHONES) {
                        label {
                            input type="radio" name="to" value=(phone) checked[name == "A"];
                            span { "Phone " (name) }
                        }
                    }
                }
                label class="field" {
                    span { "Message" }
                    textarea name="content" rows="3" dir="auto" required maxlength=(CONTENT_UNITS) {}
                }
                div class="pair" {
                    label class="field" {
                        span { "Priority" }
                        select name="priority" {
                            option value="high" { "High" }
                            option value="normal" selected { "Normal" }
                            option value="low" { "Low" }
                        }
                    }
                    label class="field" {
                        span { "Lifetime, seconds" }
                        input name="ttl" type="number" min="1" step="1" inputmode="numeric" placeholder="no limit";
                    }
                }
                label class="field" {
                    span { "Idempotency key" }
                    input name="key" type="text" maxlength="128" autocomplete="off" spellcheck="false"
                        placeholder="a new one each time";
                }
                div class="actions" {
                    button type="submit" class="primary" { "Send" }
                    button type="button" id="repeat" disabled title="The same body with the same key: one message" {
                        "Repeat with same key"
                    }
                }
                p id="outcome" class="outcome" role="status" { }
            }
        }
    }
}

fn timeline() -> Markup {
    html! {
        section class="card" aria-labelledby="timeline-title" {
            h2 id="timeline-title" { "Where messages are" }
            ol id="timeline" class="timeline" {}
            p id="timeline-empty" class="empty" { "Each message that you send is followed here." }
        }
    }
}

fn phone_card(name: &str, phone: &str) -> Markup {
    html! {
        section class="card phone" data-phone=(phone) data-business=(BUSINESS) data-name=(name) aria-label={ "Phone " (name) } {
            header {
                div {
                    h2 { "Phone " (name) }
                    p class="quiet number" dir="ltr" { (phone) }
                }
                p class="state" role="status" data-state="offline" { "Offline" }
            }
            ol class="screen" aria-live="polite" aria-label={ "Messages of phone " (name) } tabindex="0" {
                li class="empty" { "No messages yet." }
            }
            (composer("Write to the business"))
            footer {
                label class="switch" {
                    input type="checkbox" role="switch" class="connect" checked;
                    span { "Connected" }
                }
                label class="switch" {
                    input type="checkbox" role="switch" class="auto-ack" checked;
                    span { "Acknowledge at once" }
                }
                button type="button" class="ack" disabled { "Acknowledge" }
            }
        }
    }
}

fn agent_card() -> Markup {
    html! {
        section class="card agent" data-business=(BUSINESS) aria-label="Agent" {
            header {
                div {
                    h2 { "Agent" }
                    p class="quiet number" dir="ltr" { (BUSINESS) }
                }
                p class="state" role="status" data-state="offline" { "Offline" }
            }
            fieldset class="choice" {
                legend { "Conversation with" }
                @for (name, phone) in ["A", "B"].into_iter().zip(PHONES) {
                    label {
                        input type="radio" name="talk" value=(phone) checked[name == "A"];
                        span { "Phone " (name) " " b class="badge" hidden { } }
                    }
                }
            }
            ol class="screen" aria-live="polite" aria-label="Messages of the agent" tabindex="0" { }
            (composer("Write to the phone"))
        }
    }
}

fn composer(label: &str) -> Markup {
    html! {
        div {
            p class="typing quiet" role="status" { }
            form class="composer" {
                input type="text" maxlength=(CONTENT_UNITS) dir="auto" autocomplete="off" aria-label=(label) placeholder=(label);
                button type="submit" { "Send" }
            }
        }
    }
}
