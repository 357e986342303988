//! The table of operations, walked: every frame of the WebSocket × every permission and kind of session.

use eshaar_auth::operations::{Access, Surface, TABLE};
use eshaar_model::Permission;
use eshaar_schemas::StatusHint;

use super::*;

const KEYS: [&str; 9] = [
    "acme#",
    "acme#messages:send",
    "acme#messages:read",
    "acme#broadcasts:send",
    "acme#chat",
    "acme#conversations:manage",
    "acme#media:upload",
    "acme#webhooks:manage",
    "acme#admin",
];

fn may(access: Access, credential: &str) -> bool {
    let Some((_, name)) = credential.split_once('#') else { return true };
    match access {
        Access::Authenticated => true,
        Access::Business(wanted) | Access::PhoneOrBusiness(wanted) => {
            name == "admin" || wanted.iter().any(|wanted: &Permission| wanted.as_str() == name)
        }
        _ => false,
    }
}

/// A frame of a client that does no harm.
fn frame(world: &World, op: &str) -> Value {
    match op {
        "ack" | "read" => json!({"op": op, "ids": [MessageId::new(world.clock.now())]}),
        "send" => json!({"op": op, "ref": "r", "conversation_id": world.id(), "content": "a"}),
        "typing" => json!({"op": op, "conversation_id": world.id(), "on": true, "ref": "r"}),
        _ => json!({"op": op, "conversation_id": world.id(), "ref": "r"}),
    }
}

#[tokio::test(start_paused = true)]
async fn every_frame_of_a_client_is_for_whom_the_table_says() {
    let world = World::new().await;
    let rows = TABLE.iter().filter(|row| row.surface == Surface::WebSocket && row.method == "client");
    let rows: Vec<_> = rows.filter(|row| row.access != Access::Authenticated).collect();
    assert_eq!(rows.len(), 6);
    for row in rows {
        for credential in KEYS.into_iter().chain(["+966501234567"]) {
            let mut client = world.connect(credential).await;
            client.send(json!({"op": "hello", "from": "head"})).await;
            while client.next().await["op"] != "caught_up" {}
            client.send(frame(&world, row.path)).await;
            client.send(json!({"op": "ping"})).await;
            let mut denied = false;
            loop {
                let answer = client.next().await;
                denied |= answer["code"] == "permission_missing";
                if answer["op"] == "pong" {
                    break;
                }
            }
            assert_eq!(denied, !may(row.access, credential), "{} by {credential}", row.path);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_frame_of_the_server_reaches_whom_the_table_says() {
    let world = World::new().await;
    for credential in KEYS {
        let mut client = world.connect(credential).await;
        client.send(json!({"op": "hello"})).await;
        while client.next().await["op"] != "caught_up" {}
        let id = MessageId::new(world.clock.now());
        let status = |of_chat, status: &str| {
            let status = StatusHint { id, status: status.to_owned(), at: 0, conversation: None, of_chat };
            world.hint("acme", Hint::Status(status))
        };
        let message = world.chat(true, "a");
        let hints = [
            status(false, "delivered"),
            status(true, "read"),
            world.conversation("acme", "closed", None),
            world.said("acme", &message, 7, Some(-1)),
        ];
        world.tell(&hints.each_ref()).await;
        // The clock is paused: what is under way comes first.
        tokio::time::sleep(Duration::from_secs(1)).await;
        client.send(json!({"op": "ping"})).await;
        let mut seen = Vec::new();
        loop {
            let frame = client.next().await;
            match frame["op"].as_str().unwrap() {
                "pong" => break,
                "status" => seen.push(format!("status {}", frame["status"].as_str().unwrap())),
                op => seen.push(op.to_owned()),
            }
        }
        let row = |op: &str| {
            let row =
                TABLE.iter().find(|row| (row.surface, row.method, row.path) == (Surface::WebSocket, "server", op));
            row.unwrap().access
        };
        let expected = [
            ("status delivered", eshaar_auth::operations::ONE_WAY_STATUS),
            ("status read", row("status")),
            ("conversation", row("conversation")),
            ("message", row("message")),
        ];
        let expected: Vec<_> =
            expected.iter().filter(|(_, access)| may(*access, credential)).map(|(op, _)| *op).collect();
        assert_eq!(seen, expected, "{credential}");
        drop(client);
    }
}
