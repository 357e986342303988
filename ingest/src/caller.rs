//! Who calls, and what they may do beyond what the table of operations says of their request (`guard`).

use axum::extract::FromRequestParts;
use eshaar_auth::Identity;
use eshaar_model::{BusinessId, Permission, Phone, Principal};
use eshaar_service::Problem;
use http::request::Parts;

use crate::{App, problems};

/// A caller whom the table of operations lets through.
#[derive(Clone)]
pub(crate) struct Caller(pub(crate) Identity);

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        parts.extensions.remove().ok_or_else(|| {
            tracing::error!(path = parts.uri.path(), "a route asks for a caller, but is public");
            problems::internal()
        })
    }
}

impl Caller {
    /// The business that has a permission, where the body of a request decides which is needed.
    pub(crate) fn business_with(&self, wanted: Permission) -> Result<&BusinessId, Problem> {
        match self.0.principal.business() {
            Some(business) if self.0.may(wanted) => Ok(business),
            _ => Err(problems::forbidden(&[wanted])),
        }
    }

    /// Whoever may chat: a phone, or a business whose key says so.
    pub(crate) fn chatter(&self) -> Result<&Principal, Problem> {
        allowed(&self.0, &[Permission::Chat])
    }

    /// The business or the phone.
    pub(crate) fn principal(&self) -> &Principal {
        &self.0.principal
    }

    pub(crate) fn business(&self) -> Result<&BusinessId, Problem> {
        self.0.principal.business().ok_or_else(problems::business_only)
    }

    pub(crate) fn phone(&self) -> Result<Phone, Problem> {
        self.0.principal.phone().ok_or_else(problems::phone_only)
    }
}

/// The principal, if it is a phone, which needs no permission, or has one of `wanted`.
pub(crate) fn allowed<'a>(identity: &'a Identity, wanted: &[Permission]) -> Result<&'a Principal, Problem> {
    let may = identity.principal.phone().is_some() || wanted.iter().any(|wanted| identity.may(*wanted));
    may.then_some(&identity.principal).ok_or_else(|| problems::forbidden(wanted))
}
