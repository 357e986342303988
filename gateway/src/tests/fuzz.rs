//! Whatever becomes of hints and connections, a client that resumes by cursor sees each message once, in lane order.

use proptest::prelude::*;

use super::*;

/// What happens next.
#[derive(Clone, Debug)]
enum Event {
    /// A message is appended; its hint meets a fate.
    Append(usize, Fate),
    /// Hints that were held back arrive.
    Release,
    /// The client reads what is there, and acknowledges so many of the newest, one by one or by cursor.
    Read { ack: Option<bool> },
    /// The connection breaks, and the client comes back with its cursor, after so many turns of the scheduler.
    Reconnect { clean: bool },
    /// Time passes: timers run, a rescue may come.
    Wait,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    Lost,
    Doubled,
    Late,
    WithoutPrev,
}

fn event() -> impl Strategy<Value = Event> {
    let fate = prop_oneof![
        4 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Doubled),
        2 => Just(Fate::Late),
        1 => Just(Fate::WithoutPrev),
    ];
    prop_oneof![
        8 => (0..4_usize, fate).prop_map(|(lane, fate)| Event::Append(lane, fate)),
        2 => Just(Event::Release),
        3 => prop_oneof![Just(None), Just(Some(true)), Just(Some(false))].prop_map(|ack| Event::Read { ack }),
        1 => any::<bool>().prop_map(|clean| Event::Reconnect { clean }),
        1 => Just(Event::Wait),
    ]
}

/// A client that keeps its cursor over reconnects, as the documents tell it to.
struct App {
    client: Client,
    cursor: Option<Value>,
    got: Vec<MessageId>,
    unacked: Vec<MessageId>,
    /// How often it waited since it last answered a ping: a phone that is silent for longer is disconnected.
    silent: u32,
}

impl App {
    async fn connect(world: &World, cursor: Option<&Value>) -> Client {
        let mut client = world.connect("+966501234567").await;
        let hello = cursor.map_or(json!({"op": "hello"}), |after| json!({"op": "hello", "after": after}));
        client.send(hello).await;
        client
    }

    /// Takes what comes within a second.
    async fn read(&mut self) {
        self.silent = 0;
        while let Ok(frame) = tokio::time::timeout(Duration::from_secs(3), self.client.next()).await {
            assert!(matches!(frame["op"].as_str(), Some("message" | "welcome" | "caught_up")), "{frame}");
            if let Some(cursor) = frame.get("cursor") {
                self.cursor = Some(cursor.clone());
            }
            if let Some(id) = frame.get("id") {
                let id = id.as_str().unwrap().parse().unwrap();
                self.got.push(id);
                self.unacked.push(id);
            }
        }
    }

    async fn ack(&mut self, by_cursor: bool) {
        if by_cursor {
            if let Some(cursor) = &self.cursor {
                self.client.send(json!({"op": "ack", "cursor": cursor})).await;
            }
        } else {
            self.client.send(json!({"op": "ack", "ids": self.unacked})).await;
        }
        self.unacked.clear();
    }

    async fn reconnect(&mut self, world: &World, clean: bool) {
        if clean {
            self.read().await;
            self.client.0.close(None).await.unwrap();
        }
        self.unacked.clear();
        self.silent = 0;
        self.client = Self::connect(world, self.cursor.as_ref()).await;
    }
}

fn without_prev(world: &World, appended: &Appended) -> NewRecord {
    let Delivery { hint: Hint::Message(mut hint), principal } = world.codecs.decode(&appended.hint.value).unwrap()
    else {
        panic!("a message's hint")
    };
    hint.prev = None;
    world.hint(&principal, Hint::Message(hint))
}

async fn play(events: Vec<Event>) -> Result<(), TestCaseError> {
    let mut world = World::with(Options { window: 12, hints: 4, page: 5, ..Options::default() }).await;
    let client = App::connect(&world, None).await;
    let mut app = App { client, cursor: None, got: vec![], unacked: vec![], silent: 0 };
    let (mut appended, mut held): (Vec<Appended>, Vec<NewRecord>) = (vec![], vec![]);
    for event in events {
        match event {
            Event::Append(lane, fate) => {
                let new = world.append(Lane::ALL[lane], "x").await;
                match fate {
                    Fate::Arrives => world.tell(&[&new.hint]).await,
                    Fate::Lost => {}
                    Fate::Doubled => world.tell(&[&new.hint, &new.hint]).await,
                    Fate::Late => held.insert(0, new.hint.clone()),
                    Fate::WithoutPrev => world.tell(&[&without_prev(&world, &new)]).await,
                }
                appended.push(new);
            }
            Event::Release => world.tell(&std::mem::take(&mut held).iter().collect::<Vec<_>>()).await,
            Event::Read { ack } => {
                app.read().await;
                if let Some(by_cursor) = ack {
                    app.ack(by_cursor).await;
                }
            }
            Event::Reconnect { clean } => app.reconnect(&world, clean).await,
            Event::Wait if app.silent == 2 => {}
            Event::Wait => {
                app.silent += 1;
                tokio::time::sleep(Duration::from_secs(15)).await;
            }
        }
    }
    app.reconnect(&world, false).await;
    for _ in 0..=appended.len() / 12 {
        app.read().await;
        app.ack(true).await;
    }
    app.read().await;
    for lane in Lane::ALL {
        let of_lane: Vec<_> = appended.iter().filter(|appended| appended.position.lane == lane).cloned().collect();
        let ids = ids(&of_lane);
        let got: Vec<_> = app.got.iter().copied().filter(|id| ids.contains(id)).collect();
        prop_assert_eq!(got, ids, "lane {}", lane);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_message_arrives_once_in_lane_order_whatever_becomes_of_its_hint(
        events in proptest::collection::vec(event(), 1..80)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(events))?;
    }

    #[test]
    fn no_frame_whatever_it_holds_does_more_than_close_its_session(
        frames in proptest::collection::vec((0_u8..=255, proptest::collection::vec(any::<u8>(), 0..200)), 1..6)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let world = World::new().await;
            let mut client = world.connect("+966501234567").await;
            client.send(json!({"op": "hello"})).await;
            for (kind, bytes) in frames {
                let sent = match kind {
                    0..64 => tokio::io::AsyncWriteExt::write_all(client.0.get_mut(), &bytes).await.is_ok(),
                    64..192 => client.0.send(Frame::text(String::from_utf8_lossy(&bytes).into_owned())).await.is_ok(),
                    _ => client.0.send(Frame::binary(bytes)).await.is_ok(),
                };
                if !sent {
                    break;
                }
            }
            drop(client);
            tokio::time::sleep(Duration::from_secs(90)).await;
            assert_eq!(world.gateway.sessions(), 0);
            world.phone(json!({"op": "hello"})).await;
        });
    }
}
