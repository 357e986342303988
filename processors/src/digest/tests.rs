//! Digests over a real SMTP conversation with a server of the test's own.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use eshaar_topics::{Headers, NewRecord};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::testing::Engines;

/// What a mail server was told, line by line: the commands, and the mail.
struct Conversation {
    commands: Vec<String>,
    mail: String,
}

/// A mail server (RFC 5321) that takes every mail, and wants a password.
struct MailServer {
    port: u16,
    taken: mpsc::UnboundedReceiver<Conversation>,
}

impl MailServer {
    async fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (told, taken) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // A client may hang up whenever it likes.
                if let Ok(conversation) = converse(socket).await {
                    let _ = told.send(conversation);
                }
            }
        });
        Self { port, taken }
    }
}

async fn converse(socket: TcpStream) -> std::io::Result<Conversation> {
    let (read, mut write) = socket.into_split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"220 test ESMTP\r\n").await?;
    let (mut commands, mut mail) = (Vec::new(), String::new());
    while let Some(line) = lines.next_line().await? {
        let answer = match line.split(' ').next().unwrap_or_default() {
            "EHLO" => "250-test\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 AUTH PLAIN\r\n",
            "AUTH" => "235 welcome\r\n",
            "DATA" => {
                write.write_all(b"354 go on\r\n").await?;
                while let Some(line) = lines.next_line().await?.filter(|line| line != ".") {
                    mail.push_str(line.strip_prefix('.').unwrap_or(&line));
                    mail.push('\n');
                }
                "250 taken\r\n"
            }
            "QUIT" => "221 bye\r\n",
            _ => "250 ok\r\n",
        };
        write.write_all(answer.as_bytes()).await?;
        commands.push(line);
        if commands.last().is_some_and(|command| command == "QUIT") {
            break;
        }
    }
    Ok(Conversation { commands, mail })
}

/// The text of a mail, whatever it was encoded in.
fn text_of(mail: &str) -> String {
    let (head, body) = mail.split_once("\n\n").unwrap();
    if head.to_lowercase().contains("content-transfer-encoding: base64") {
        return String::from_utf8(STANDARD.decode(body.replace('\n', "")).unwrap()).unwrap();
    }
    body.replace("=\n", "").replace("=E2=80=93", "–")
}

async fn die(engines: &Engines, stage: &str, code: &str, business: &str, count: usize) {
    let letter = DeadLetter {
        stage: stage.to_owned(),
        topic: "messages.accepted".to_owned(),
        partition: 0,
        offset: 0,
        key: Bytes::from_static(b"key"),
        value: Bytes::from_static(b"a secret of a customer"),
        headers: BTreeMap::new(),
        code: code.to_owned(),
        reason: "it would not do".to_owned(),
        attempts: 1,
        at: engines.clock.now().as_millis(),
    };
    let record = |number: usize| NewRecord {
        topic: Topic::DeadLetters,
        partition: None,
        key: Bytes::from(format!("key-{number}")),
        value: engines.codecs.encode(&letter).unwrap(),
        headers: Headers::new([(eshaar_topics::headers::FROM, business.as_bytes())]),
        timestamp: engines.clock.now(),
    };
    engines.log.append((0..count).map(record).collect()).await.unwrap();
}

async fn digest(engines: &Engines, port: u16) -> Digest {
    let password: Secret = "tell nobody".to_owned().into();
    let smtp = Smtp {
        host: "127.0.0.1".to_owned(),
        port,
        tls: Tls::None,
        username: "eshaar".to_owned(),
        password,
        timeout_s: 5,
        ..Smtp::default()
    };
    let to = vec!["Ops <ops@example.com>".to_owned(), "root@example.com".to_owned()];
    let options = Options { to, from: "eshaar@example.com".to_owned(), interval_s: 300, smtp };
    let ports = Ports {
        log: Arc::new(engines.log.clone()),
        store: engines.store.clone(),
        codecs: engines.codecs.clone(),
        clock: engines.clock.clone(),
    };
    let mailer = Mailer::new(&options).await.unwrap();
    Digest { ports, mailer, holder: Holder::new(), every: Duration::from_secs(options.interval_s) }
}

#[tokio::test]
async fn one_digest_tells_every_administrator_how_many_and_nothing_else() {
    let (engines, mut server) = (Engines::open().await, MailServer::start(0).await);
    die(&engines, "archive", "undecodable", "acme-bank", 30).await;
    die(&engines, "route", "retries_exhausted", "globex", 2).await;
    assert_eq!(digest(&engines, server.port).await.look().await.unwrap(), 32);

    let Conversation { commands, mail } = server.taken.recv().await.unwrap();
    let has = |wanted: &str| assert!(commands.iter().any(|command| command.starts_with(wanted)), "{commands:?}");
    for wanted in ["EHLO", "AUTH PLAIN", "MAIL FROM:<eshaar@example.com>", "RCPT TO:<ops@example.com>"] {
        has(wanted);
    }
    has("RCPT TO:<root@example.com>");
    let text = text_of(&mail);
    assert!(mail.contains("Subject: eshaar: 32 dead letters"), "{mail}");
    assert!(text.contains("30  archive        undecodable          acme-bank"), "{text}");
    assert!(text.contains("2  route          retries_exhausted    globex"), "{text}");
    assert!(!text.contains("secret") && !text.contains("would not do"), "{text}");
}

#[tokio::test]
async fn of_several_processes_one_tells_and_only_once_an_interval() {
    let (engines, mut server) = (Engines::open().await, MailServer::start(0).await);
    let processes = [digest(&engines, server.port).await, digest(&engines, server.port).await];
    die(&engines, "archive", "undecodable", "acme-bank", 3).await;
    let (one, other) = tokio::join!(processes[0].look(), processes[1].look());
    assert_eq!(one.unwrap() + other.unwrap(), 3);
    die(&engines, "archive", "undecodable", "acme-bank", 4).await;
    engines.clock.advance_millis(299_999);
    for process in &processes {
        assert_eq!(process.look().await.unwrap(), 0, "not due yet");
    }
    engines.clock.advance_millis(1);
    assert_eq!(processes[1].look().await.unwrap(), 4);
    engines.clock.advance_millis(300_000);
    assert_eq!(processes[0].look().await.unwrap(), 0, "nothing new");
    let subjects = [server.taken.recv().await.unwrap(), server.taken.recv().await.unwrap()].map(|told| told.mail);
    assert!(subjects[0].contains("eshaar: 3 dead letters") && subjects[1].contains("eshaar: 4 dead letters"));
    assert!(server.taken.try_recv().is_err());
}

#[tokio::test]
async fn what_died_while_the_mail_server_was_down_is_told_when_it_is_back() {
    let engines = Engines::open().await;
    // A port that nobody listens on.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    die(&engines, "archive", "undecodable", "acme-bank", 5).await;
    let first = digest(&engines, gone).await;
    for _ in 0..2 {
        assert!(matches!(first.look().await, Err(DigestError::Mail(_))));
        die(&engines, "archive", "undecodable", "acme-bank", 1).await;
        engines.clock.advance_millis(300_000);
    }
    // Another process goes on at once: the one that failed let go.
    let mut server = MailServer::start(gone).await;
    assert_eq!(digest(&engines, gone).await.look().await.unwrap(), 7);
    assert!(server.taken.recv().await.unwrap().mail.contains("eshaar: 7 dead letters"));
}
