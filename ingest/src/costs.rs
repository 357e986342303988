//! The cost of each operation of the API, and with it the limit that it takes from. The [`guard`](crate::guard) takes it
//! before a handler runs; an operation that is missing here is refused.

use http::Method;

/// The limit that an operation takes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// One of the caller's look-ups.
    Read,
    /// One of the caller's writes other than messages.
    Request,
    /// The caller's messages. The handler takes them, since the body says how many there are, and an answer that is
    /// repeated takes none.
    Messages,
}

/// Every operation that writes.
const WRITES: [(Method, &str, Cost); 18] = [
    (Method::POST, "/v1/messages", Cost::Messages),
    (Method::POST, "/v1/messages/bulk", Cost::Messages),
    (Method::POST, "/v1/messages/{id}/read", Cost::Request),
    (Method::POST, "/v1/messages/{id}/cancel", Cost::Request),
    (Method::POST, "/v1/conversations", Cost::Messages),
    (Method::POST, "/v1/conversations/{id}/read", Cost::Request),
    (Method::POST, "/v1/conversations/{id}/archive", Cost::Request),
    (Method::POST, "/v1/conversations/{id}/close", Cost::Request),
    (Method::POST, "/v1/broadcasts", Cost::Messages),
    (Method::POST, "/v1/broadcasts/{id}/cancel", Cost::Request),
    (Method::PUT, "/v1/audiences/{name}", Cost::Request),
    (Method::DELETE, "/v1/audiences/{name}", Cost::Request),
    (Method::POST, "/v1/webhooks", Cost::Request),
    (Method::DELETE, "/v1/webhooks/{id}", Cost::Request),
    (Method::POST, "/v1/webhooks/{id}/enable", Cost::Request),
    (Method::POST, "/v1/webhooks/{id}/rotate-secret", Cost::Request),
    (Method::POST, "/v1/admin/dead-letters/redrive", Cost::Request),
    (Method::POST, "/v1/admin/dead-letters/discard", Cost::Request),
];

/// The cost of an operation; `None` where it has none yet.
pub(crate) fn cost(method: &Method, path: &str) -> Option<Cost> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return Some(Cost::Read);
    }
    WRITES.iter().find(|(known, of, _)| known == method && *of == path).map(|(_, _, cost)| *cost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_that_is_described_and_writes_has_a_cost_and_no_other() {
        let mut described = Vec::new();
        for (path, item) in crate::openapi::document().paths.paths {
            let methods = [
                (Method::POST, item.post.is_some()),
                (Method::PUT, item.put.is_some()),
                (Method::DELETE, item.delete.is_some()),
                (Method::PATCH, item.patch.is_some()),
            ];
            described.extend(
                methods.into_iter().filter(|(_, is_there)| *is_there).map(|(method, _)| (method, path.clone())),
            );
        }
        for (method, path) in &described {
            assert!(cost(method, path).is_some_and(|cost| cost != Cost::Read), "{method} {path}");
        }
        for (method, path, _) in &WRITES {
            assert!(described.iter().any(|(known, of)| known == method && of == path), "{method} {path}");
        }
    }
}
