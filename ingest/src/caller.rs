//! Who calls, and whether they may.

use axum::extract::FromRequestParts;
use eshaar_auth::{AuthError, Identity};
use eshaar_model::{BusinessId, Permission, Phone, Principal};
use eshaar_service::Problem;
use http::request::Parts;
use http::{HeaderMap, header};

use crate::{App, problems};

/// An authenticated caller.
pub(crate) struct Caller(pub(crate) Identity);

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let authenticated = match credential(&parts.headers) {
            Ok(credential) => app.deps.auth.authenticate(credential).await,
            Err(error) => Err(error),
        };
        authenticated.map(Self).map_err(|error| problems::unauthenticated(&error))
    }
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

impl Caller {
    /// The business that may do what `wanted` allows.
    pub(crate) fn business_with(&self, wanted: Permission) -> Result<&BusinessId, Problem> {
        match self.0.principal.business() {
            Some(business) if self.0.may(wanted) => Ok(business),
            _ => Err(problems::forbidden(wanted)),
        }
    }

    /// Whoever may chat: a phone, or a business whose key says so.
    pub(crate) fn chatter(&self) -> Result<&Principal, Problem> {
        allowed(&self.0, &[Permission::Chat])
    }

    /// Whoever may see conversations: those of their own.
    pub(crate) fn of_conversations(&self) -> Result<&Principal, Problem> {
        allowed(&self.0, &Permission::OF_CONVERSATIONS)
    }

    pub(crate) fn business(&self) -> Result<&BusinessId, Problem> {
        self.0.principal.business().ok_or_else(problems::business_only)
    }

    pub(crate) fn phone(&self) -> Result<Phone, Problem> {
        self.0.principal.phone().ok_or_else(problems::phone_only)
    }
}

/// The principal, if it is a phone, which needs no permission, or may do what one of `wanted` allows; the first is named
/// where it may not.
pub(crate) fn allowed<'a>(identity: &'a Identity, wanted: &[Permission]) -> Result<&'a Principal, Problem> {
    let may = identity.principal.phone().is_some() || wanted.iter().any(|wanted| identity.may(*wanted));
    may.then_some(&identity.principal).ok_or_else(|| problems::forbidden(wanted[0]))
}
