//! Lets a request through to its handler only as the table of operations allows
//! ([`eshaar_auth::operations`]): a handler cannot forget to check its caller, and a route that the table does
//! not have is not answered.

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use eshaar_auth::operations::{self, Access, Denied, Operation, Surface};
use eshaar_auth::{AuthError, Identity};
use eshaar_service::Problem;
use eshaar_service::listener::Connection;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::caller::Caller;
use crate::costs::{self, Cost};
use crate::{App, problems};

/// The middleware of every route of the API.
pub(crate) async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let Some(path) = request.extensions().get::<MatchedPath>().cloned() else {
        return problems::no_such_path().into_response();
    };
    let Some(operation) = operations::find(Surface::Api, request.method().as_str(), path.as_str()) else {
        return method_not_allowed(path.as_str());
    };
    if operation.access == Access::Public {
        return next.run(request).await;
    }
    let Some(cost) = costs::cost(request.method(), path.as_str()) else {
        tracing::error!(method = %request.method(), path = path.as_str(), "an operation without a cost is refused");
        return problems::internal().into_response();
    };
    match admit(&app, (operation, cost), request.headers()).await {
        Ok(identity) => {
            if let Some(connection) = request.extensions().get::<Connection>()
                && let Err(problem) = connection.authenticated()
            {
                return problem.into_response();
            }
            request.extensions_mut().insert(Caller(identity));
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

async fn admit(app: &App, (operation, cost): (&Operation, Cost), headers: &HeaderMap) -> Result<Identity, Problem> {
    let authenticated = match credential(headers) {
        Ok(credential) => app.deps.auth.authenticate(credential).await,
        Err(error) => Err(error),
    };
    let identity = authenticated.map_err(|error| problems::unauthenticated(&error))?;
    // First: an operation that is refused costs its caller as much.
    app.admission.operation(&identity, cost).await?;
    operation.check(&identity).map_err(|denied| match denied {
        Denied::Unauthenticated => problems::unauthenticated(&AuthError::Missing),
        Denied::BusinessOnly => problems::business_only(),
        Denied::PhoneOnly => problems::phone_only(),
        Denied::Permission(permissions) => problems::forbidden(permissions),
    })?;
    Ok(identity)
}

/// The credential of `Authorization: Bearer …`; the scheme in any case (RFC 9110, 11.1).
fn credential(headers: &HeaderMap) -> Result<&str, AuthError> {
    let value = headers.get(header::AUTHORIZATION).ok_or(AuthError::Missing)?;
    let text = value.to_str().map_err(|_| AuthError::Refused("it is not visible ASCII"))?;
    match text.split_once(' ') {
        Some((scheme, credential)) if scheme.eq_ignore_ascii_case("bearer") => Ok(credential.trim()),
        _ => Err(AuthError::Refused("the scheme must be `Bearer`")),
    }
}

fn method_not_allowed(path: &str) -> Response {
    let methods = operations::methods(Surface::Api, path);
    let methods: Vec<_> = methods.map(|method| if method == "GET" { "GET,HEAD" } else { method }).collect();
    let detail = "this path has no such method; see the header `Allow`";
    let mut response = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail).into_response();
    if let Ok(allow) = HeaderValue::try_from(methods.join(",")) {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}
