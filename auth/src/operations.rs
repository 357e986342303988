//! Operations × permissions × tenants: the one table of everything that can be called, of who may call it, and of whose data
//! it shows ([ADR 0028](../../docs/adr/0028-operations-permissions-and-tenants-in-one-table.md)).
//!
//! The HTTP API lets a request through only where this table has its method and path, and checks the row before the handler
//! runs. OpenAPI descriptions name the permissions of the row. The gateway asks it for each frame of a WebSocket. Tests walk
//! it: every row, every permission, every kind of caller, the caller's own tenant and another.

use eshaar_model::{Permission, Principal};

use crate::Identity;

use Permission::{Admin, BroadcastsSend, Chat, ConversationsManage, MessagesRead, MessagesSend, WebhooksManage};

/// Callers that an operation admits. A key with the permission `admin` has all permissions, but is still a business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everyone who reaches the listener.
    Public,
    /// Everyone with a valid credential.
    Authenticated,
    /// An API key with at least one of these permissions.
    Business(&'static [Permission]),
    /// A mobile user.
    Phone,
    /// A mobile user; or an API key with at least one of these permissions.
    PhoneOrBusiness(&'static [Permission]),
    /// A browser with a session of the console.
    ConsoleSession,
}

/// The owner of the data that an operation shows or changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// None.
    Nothing,
    /// The caller's own. What belongs to others is answered as if it was not there.
    Own,
    /// That of all tenants.
    All,
}

/// Where an operation is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// The HTTP API.
    Api,
    /// The WebSocket: frames of clients (`method` is `client`), and of the server (`server`).
    WebSocket,
    /// The console.
    Console,
    /// The state of the process itself, and the embedded registry.
    Process,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Where it is called.
    pub surface: Surface,
    /// HTTP method.
    pub method: &'static str,
    /// Path with its parameters, as the router has it. Of a frame: its `op`.
    pub path: &'static str,
    /// Callers that it admits.
    pub access: Access,
    /// The owner of the data that it shows.
    pub scope: Scope,
    /// True if only operators need it: with `internal_listen` it is not answered on the public listener.
    pub is_internal: bool,
}

/// Why an identity may not call an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It needs a credential, and there is none.
    Unauthenticated,
    /// It is for API keys of businesses.
    BusinessOnly,
    /// It is for mobile users.
    PhoneOnly,
    /// The key needs one of these permissions.
    Permission(&'static [Permission]),
}

impl Operation {
    /// Checks that an identity may call it.
    pub fn check(&self, identity: &Identity) -> Result<(), Denied> {
        self.access.check(identity)
    }

    /// The sentence that describes who may call it; empty where everyone may.
    pub fn requirement(&self) -> String {
        let names = |permissions: &[Permission]| {
            let names: Vec<String> = permissions.iter().map(|permission| format!("`{permission}`")).collect();
            names.join(" or ")
        };
        match self.access {
            Access::Public => String::new(),
            Access::Authenticated => "Needs a credential.".to_owned(),
            Access::Business(permissions) => {
                format!("Needs an API key with the permission {}.", names(permissions))
            }
            Access::Phone => "For mobile users.".to_owned(),
            Access::PhoneOrBusiness(permissions) => {
                format!("For mobile users, and for API keys with the permission {}.", names(permissions))
            }
            Access::ConsoleSession => "Needs a session of the console.".to_owned(),
        }
    }
}

impl Access {
    /// Checks that an identity has it.
    pub fn check(self, identity: &Identity) -> Result<(), Denied> {
        let is_phone = matches!(identity.principal, Principal::Phone(_));
        match self {
            Self::Public | Self::Authenticated => Ok(()),
            Self::Phone => {
                if is_phone {
                    Ok(())
                } else {
                    Err(Denied::PhoneOnly)
                }
            }
            Self::PhoneOrBusiness(_) if is_phone => Ok(()),
            Self::Business(_) if is_phone => Err(Denied::BusinessOnly),
            Self::Business(permissions) | Self::PhoneOrBusiness(permissions) => {
                let is_allowed = permissions.iter().any(|permission| identity.may(*permission));
                if is_allowed { Ok(()) } else { Err(Denied::Permission(permissions)) }
            }
            Self::ConsoleSession => Err(Denied::Unauthenticated),
        }
    }
}

/// The row of a method and a path; `HEAD` is the `GET` of its path.
pub fn find(surface: Surface, method: &str, path: &str) -> Option<&'static Operation> {
    let method = if method == "HEAD" { "GET" } else { method };
    let is_wanted = |row: &&Operation| row.surface == surface && row.path == path && row.method == method;
    TABLE.iter().find(is_wanted)
}

/// The methods of a path.
pub fn methods(surface: Surface, path: &str) -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(move |row| row.surface == surface && row.path == path).map(|row| row.method)
}

/// Returns true if a path belongs to an operation that only operators need, or lies below one.
pub fn is_internal(path: &str) -> bool {
    TABLE.iter().filter(|row| row.is_internal).any(|row| {
        let base = row.path.split("/{").next().unwrap_or(row.path);
        path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// The row of a frame that a client sends.
pub fn client_frame(op: &str) -> Option<&'static Operation> {
    find(Surface::WebSocket, "client", op)
}

/// Access to one-way messages and their statuses.
const READ_MESSAGES: Access = Access::PhoneOrBusiness(&[MessagesRead]);
/// Access to conversations, and to what happens in them.
const SEE_CONVERSATIONS: Access = Access::PhoneOrBusiness(&[Chat, ConversationsManage]);
const CHAT: Access = Access::PhoneOrBusiness(&[Chat]);
const OPERATOR: Access = Access::Business(&[Admin]);
const BROADCASTS: Access = Access::Business(&[BroadcastsSend]);
const WEBHOOKS: Access = Access::Business(&[WebhooksManage]);

/// Statuses of one-way messages, sent to sessions of their sender.
pub const ONE_WAY_STATUS: Access = READ_MESSAGES;
/// Chat messages by their ids, and their statuses, sent to sessions of their sender.
pub const CHAT_STATUS: Access = Access::PhoneOrBusiness(&[Chat, ConversationsManage, MessagesRead]);
/// Messages and changes of conversations, sent to sessions of their two sides.
pub const CONVERSATION_EVENT: Access = SEE_CONVERSATIONS;

const fn row(surface: Surface, method: &'static str, path: &'static str, access: Access, scope: Scope) -> Operation {
    Operation { surface, method, path, access, scope, is_internal: false }
}

const fn api(method: &'static str, path: &'static str, access: Access, scope: Scope) -> Operation {
    row(Surface::Api, method, path, access, scope)
}

const fn own(method: &'static str, path: &'static str, access: Access) -> Operation {
    api(method, path, access, Scope::Own)
}

const fn operator(method: &'static str, path: &'static str) -> Operation {
    Operation { is_internal: true, ..api(method, path, OPERATOR, Scope::All) }
}

const fn process(path: &'static str, scope: Scope, is_internal: bool) -> Operation {
    Operation { is_internal, ..row(Surface::Process, "GET", path, Access::Public, scope) }
}

const fn console(method: &'static str, path: &'static str, scope: Scope) -> Operation {
    Operation { is_internal: true, ..row(Surface::Console, method, path, Access::ConsoleSession, scope) }
}

const fn asset(path: &'static str) -> Operation {
    Operation { is_internal: true, ..row(Surface::Console, "GET", path, Access::Public, Scope::Nothing) }
}

const fn client(op: &'static str, access: Access) -> Operation {
    row(Surface::WebSocket, "client", op, access, Scope::Own)
}

const fn server(op: &'static str, access: Access) -> Operation {
    row(Surface::WebSocket, "server", op, access, Scope::Own)
}

/// The table.
#[rustfmt::skip]
pub const TABLE: &[Operation] = &[
    api("GET", "/", Access::Public, Scope::Nothing),
    api("GET", "/openapi.json", Access::Public, Scope::Nothing),
    api("GET", "/docs", Access::Public, Scope::Nothing),
    // One-way messages need `messages:send`, chat messages `chat`: the body says which, so the handler checks again.
    own("POST", "/v1/messages", Access::PhoneOrBusiness(&[MessagesSend, Chat])),
    own("GET", "/v1/messages", Access::Business(&[MessagesRead])),
    own("POST", "/v1/messages/bulk", Access::Business(&[MessagesSend])),
    // Of one-way messages `messages:read` alone: the handler checks again.
    own("GET", "/v1/messages/{id}", CHAT_STATUS),
    own("POST", "/v1/messages/{id}/read", CHAT),
    own("POST", "/v1/messages/{id}/cancel", Access::Business(&[MessagesSend])),
    own("POST", "/v1/conversations", CHAT),
    own("GET", "/v1/conversations", SEE_CONVERSATIONS),
    own("GET", "/v1/conversations/unread-count", SEE_CONVERSATIONS),
    own("GET", "/v1/conversations/{id}", SEE_CONVERSATIONS),
    own("GET", "/v1/conversations/{id}/messages", SEE_CONVERSATIONS),
    own("POST", "/v1/conversations/{id}/read", CHAT),
    own("POST", "/v1/conversations/{id}/archive", Access::Business(&[ConversationsManage])),
    own("POST", "/v1/conversations/{id}/close", Access::Business(&[ConversationsManage])),
    own("POST", "/v1/broadcasts", BROADCASTS),
    own("GET", "/v1/broadcasts", BROADCASTS),
    own("GET", "/v1/broadcasts/{id}", BROADCASTS),
    own("POST", "/v1/broadcasts/{id}/cancel", BROADCASTS),
    own("GET", "/v1/audiences", BROADCASTS),
    own("PUT", "/v1/audiences/{name}", BROADCASTS),
    own("GET", "/v1/audiences/{name}", BROADCASTS),
    own("DELETE", "/v1/audiences/{name}", BROADCASTS),
    own("GET", "/v1/stream", Access::Phone),
    own("POST", "/v1/webhooks", WEBHOOKS),
    own("GET", "/v1/webhooks", WEBHOOKS),
    own("DELETE", "/v1/webhooks/{id}", WEBHOOKS),
    own("POST", "/v1/webhooks/{id}/enable", WEBHOOKS),
    own("POST", "/v1/webhooks/{id}/rotate-secret", WEBHOOKS),
    operator("GET", "/v1/admin/dead-letters"),
    operator("POST", "/v1/admin/dead-letters/redrive"),
    operator("POST", "/v1/admin/dead-letters/discard"),
    operator("GET", "/v1/admin/dead-letters/tasks"),
    operator("GET", "/v1/admin/dead-letters/tasks/{id}"),
    operator("GET", "/v1/admin/dead-letters/{id}"),
    operator("GET", "/v1/admin/audit"),

    row(Surface::WebSocket, "GET", "/v1/ws", Access::Authenticated, Scope::Own),
    client("hello", Access::Authenticated),
    client("ping", Access::Authenticated),
    client("renew", Access::Authenticated),
    client("ack", CHAT),
    client("read", CHAT),
    client("send", CHAT),
    client("join", SEE_CONVERSATIONS),
    client("leave", SEE_CONVERSATIONS),
    client("typing", SEE_CONVERSATIONS),
    server("message", SEE_CONVERSATIONS),
    server("conversation", SEE_CONVERSATIONS),
    server("typing", SEE_CONVERSATIONS),
    server("status", CHAT_STATUS),

    process("/health", Scope::Nothing, false),
    process("/health/live", Scope::Nothing, false),
    process("/health/ready", Scope::Nothing, false),
    process("/health/details", Scope::Nothing, true),
    process("/metrics", Scope::All, true),
    process("/registry", Scope::Nothing, true),

    // The console acts as the demo business; its operators' pages show all tenants.
    console("GET", "/console", Scope::Own),
    asset("/console/console.css"),
    asset("/console/console.js"),
    asset("/console/client.js"),
    asset("/console/agent.js"),
    asset("/console/icon.svg"),
    console("POST", "/console/messages", Scope::Own),
    console("GET", "/console/messages/{id}", Scope::Own),
    console("POST", "/console/tokens", Scope::Own),
    console("POST", "/console/agent", Scope::Own),
    console("GET", "/console/conversations", Scope::Own),
    console("GET", "/console/conversations/{id}", Scope::Own),
    console("POST", "/console/conversations/{id}/{action}", Scope::Own),
    console("GET", "/console/dead-letters", Scope::All),
    console("GET", "/console/dead-letters/{id}", Scope::All),
    console("POST", "/console/dead-letters/{id}", Scope::All),
    console("GET", "/console/audit", Scope::All),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_method_and_a_path_have_one_row() {
        let mut seen = HashSet::new();
        for row in TABLE {
            assert!(seen.insert((row.method, row.path)), "{} {}", row.method, row.path);
        }
    }

    #[test]
    fn nothing_that_shows_a_tenants_data_on_the_api_is_public() {
        for row in TABLE.iter().filter(|row| row.surface == Surface::Api && row.scope != Scope::Nothing) {
            assert_ne!(row.access, Access::Public, "{} {}", row.method, row.path);
        }
    }

    #[test]
    fn what_operators_alone_need_is_internal_and_plain_health_is_not() {
        for path in [
            "/metrics",
            "/health/details",
            "/registry",
            "/registry/",
            "/registry/subjects/x",
            "/console",
            "/console/agent",
            "/v1/admin/audit",
            "/v1/admin/dead-letters/7",
            "/v1/admin/dead-letters/",
        ] {
            assert!(is_internal(path), "{path}");
        }
        for path in ["/", "/health", "/health/live", "/health/ready", "/v1/messages", "/v1/ws", "/docs/", "/registryx"]
        {
            assert!(!is_internal(path), "{path}");
        }
    }

    #[test]
    fn only_operators_see_all_tenants_through_the_api() {
        for row in TABLE.iter().filter(|row| row.surface == Surface::Api && row.scope == Scope::All) {
            assert_eq!(row.access, OPERATOR, "{} {}", row.method, row.path);
        }
    }
}
