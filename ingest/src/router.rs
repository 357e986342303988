//! Which path is answered by which file, and what surrounds them.

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post, put};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    App, Deps, Options, admin, audiences, broadcasts, bulk, cancel, context, conversations, guard, messages, openapi,
    problems, read, root, stream, unread, webhooks,
};

/// The HTTP API. It answers every path that it does not know with a problem: merge other routers into it, not it into one
/// that has a fallback of its own.
pub fn router(deps: Deps, options: Options) -> Router {
    let app = App::new(deps, options);
    let bounded = Router::new()
        .route("/v1/messages", post(messages::send).get(messages::list))
        .route("/v1/messages/{id}", get(messages::get))
        .route("/v1/messages/{id}/read", post(read::mark))
        .route("/v1/messages/{id}/cancel", post(cancel::cancel))
        .route("/v1/conversations", post(conversations::start).get(conversations::list))
        .route("/v1/conversations/unread-count", get(conversations::unread_count))
        .route("/v1/conversations/{id}", get(conversations::get))
        .route("/v1/conversations/{id}/messages", get(conversations::history::read))
        .route("/v1/conversations/{id}/read", post(conversations::reading::mark))
        .route("/v1/conversations/{id}/archive", post(conversations::standing::archive))
        .route("/v1/conversations/{id}/close", post(conversations::standing::close))
        .route("/v1/broadcasts", post(broadcasts::send).get(broadcasts::list))
        .route("/v1/broadcasts/{id}", get(broadcasts::get))
        .route("/v1/broadcasts/{id}/cancel", post(broadcasts::cancel))
        .route("/v1/audiences", get(audiences::list))
        .route("/v1/audiences/{name}", get(audiences::get).delete(audiences::delete))
        .route("/v1/stream", get(stream::read))
        .route("/v1/webhooks", get(webhooks::list).post(webhooks::make))
        .route("/v1/webhooks/{id}", delete(webhooks::delete))
        .route("/v1/webhooks/{id}/enable", post(webhooks::enable))
        .route("/v1/webhooks/{id}/rotate-secret", post(webhooks::rotate))
        .merge(admin::router())
        .route_layer(from_fn_with_state(app.clone(), guard::guard))
        .layer(from_fn_with_state(app.clone(), context::in_time));
    // Bulk requests last as long as there is something to read; they are bounded by how long nothing moves.
    let unbounded = Router::new()
        .route("/v1/messages/bulk", post(bulk::send))
        .route("/v1/audiences/{name}", put(audiences::upload))
        .route_layer(from_fn_with_state(app.clone(), guard::guard));
    Router::new()
        .merge(bounded)
        .merge(unbounded)
        .merge(openapi::router())
        .route("/", get(root::show))
        .fallback(async || problems::no_such_path())
        .with_state(app)
        .layer(from_fn(unread::discarded))
        .layer(CatchPanicLayer::custom(context::panicked))
        .layer(from_fn(context::around))
}
