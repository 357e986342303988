//! `GET /`: what answers here, and where to go on.

use axum::Extension;
use axum::response::{Html, IntoResponse as _, Response};
use eshaar_service::Json;
use eshaar_service::listener::PublicPrefix;
use http::{HeaderMap, header};
use serde_json::json;

/// Where to go on: a name, a path, and what is there.
const LINKS: [(&str, &str, &str); 4] = [
    ("docs", "/docs/", "the HTTP API, to be read and tried"),
    ("openapi", "/openapi.json", "its OpenAPI description"),
    ("websocket", "/v1/ws", "the WebSocket of mobile apps and agents"),
    ("health", "/health", "whether this process serves"),
];
const DESCRIPTION: &str = "Delivers messages of businesses to mobile users.";

/// JSON; HTML where a browser asks.
pub(crate) async fn show(headers: HeaderMap, prefix: Option<Extension<PublicPrefix>>) -> Response {
    let prefix = prefix.as_ref().map_or("", |Extension(PublicPrefix(prefix))| prefix);
    let vary = [(header::VARY, "accept")];
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("text/html") {
        return (vary, Html(page(prefix).into_string())).into_response();
    }
    let links: serde_json::Map<_, _> =
        LINKS.iter().map(|(name, path, _)| ((*name).to_owned(), format!("{prefix}{path}").into())).collect();
    let version = env!("CARGO_PKG_VERSION");
    let answer = json!({ "name": "eshaar", "version": version, "description": DESCRIPTION, "links": links });
    (vary, Json(answer)).into_response()
}

fn page(prefix: &str) -> maud::Markup {
    maud::html! {
        (maud::DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "eshaar" }
            }
            body {
                h1 { "eshaar" }
                p { (DESCRIPTION) }
                ul {
                    @for (_, path, what) in LINKS {
                        li { a href={ (prefix) (path) } { (path) } ": " (what) }
                    }
                }
            }
        }
    }
}
