//! Whole runs against a small server in memory, over real sockets: an honest one, and ones that lose, double, swap or cut
//! their answers, forget what was cancelled, or deny what they accepted. The accountant must find what is wrong, and nothing else.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::cancels::Totals;
use crate::drive::{Target, drive};
use crate::http_client::Endpoint;
use crate::report::Report;
use crate::run::Access;
use crate::scenario::Scenario;
use crate::token::Minter;

/// How late a server is that delivers what was cancelled: no stall of a test is as long.
const LATE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The 50th message is accepted and forgotten.
    Lose,
    /// The 50th message stands in its stream twice.
    Double,
    /// The 50th message stands behind the next one of its recipient.
    Swap,
    /// Every third answer is cut off behind its effect, every fifth request is answered 503 before it has any.
    CutAnswers,
    /// From the 50th request on every answer is 503.
    Fail,
    /// Cancellations are answered, and have no effect: what was cancelled is delivered a second later.
    Deliver,
    /// The history lags behind by ten look-ups, which are answered 404; and so are the cancellations of what it does not know.
    Deny,
}

struct Rehearsal {
    fault: Fault,
    state: Mutex<State>,
    appended: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    requests: usize,
    messages: usize,
    keys: HashSet<String>,
    streams: HashMap<String, Vec<String>>,
    held: Option<(String, String)>,
    cancelled: HashSet<String>,
    denials: usize,
}

impl State {
    fn append(&mut self, fault: Fault, phone: &str, reference: &str) {
        let stream = self.streams.entry(phone.to_owned()).or_default();
        self.messages += 1;
        if self.messages == 50 {
            match fault {
                Fault::Lose => return,
                Fault::Double => stream.push(reference.to_owned()),
                Fault::Swap => {
                    self.held = Some((phone.to_owned(), reference.to_owned()));
                    return;
                }
                _ => {}
            }
        }
        stream.push(reference.to_owned());
        if let Some((_, held)) = self.held.take_if(|(of, _)| of == phone) {
            stream.push(held);
        }
    }
}

/// A cut answer: hyper closes the connection on an error.
#[derive(Debug, thiserror::Error)]
#[error("cut")]
struct Cut;

async fn serve(rehearsal: Arc<Rehearsal>, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        let rehearsal = Arc::clone(&rehearsal);
        let service = service_fn(move |request| answer(Arc::clone(&rehearsal), request));
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(connection.with_upgrades());
    }
}

async fn answer(rehearsal: Arc<Rehearsal>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Cut> {
    if request.uri().path() == "/v1/ws" {
        return Ok(upgrade(rehearsal, request));
    }
    if let Some(path) = request.uri().path().strip_prefix("/v1/messages/r-") {
        let (reference, cancels) = match path.strip_suffix("/cancel") {
            Some(reference) => (format!("r-{reference}"), true),
            None => (format!("r-{path}"), false),
        };
        return Ok(answer_about(&rehearsal, reference, cancels));
    }
    let key = request.headers()["idempotency-key"].to_str().unwrap().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut state = rehearsal.state.lock();
    state.requests += 1;
    let fails = match rehearsal.fault {
        Fault::CutAnswers => state.requests.is_multiple_of(5),
        Fault::Fail => state.requests >= 50,
        _ => false,
    };
    if fails {
        return Ok(Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(Full::default()).unwrap());
    }
    let lines: Vec<serde_json::Value> =
        body.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    if state.keys.insert(key) {
        for line in &lines {
            state.append(rehearsal.fault, line["to"].as_str().unwrap(), line["reference"].as_str().unwrap());
        }
    }
    rehearsal.appended.send_replace(());
    if rehearsal.fault == Fault::CutAnswers && state.requests.is_multiple_of(3) {
        return Err(Cut);
    }
    // The id of a single message is its reference.
    let id = lines[0]["reference"].as_str().unwrap();
    let answer = format!("{{\"id\":\"{id}\",\"accepted\":{},\"rejected\":0}}\n", lines.len());
    Ok(Response::builder().status(StatusCode::ACCEPTED).body(Full::from(answer)).unwrap())
}

/// Answers a look-up or a cancellation: every third one first with 503. A message counts as delivered when it was appended
/// before the 200th request; a later one is cancelled.
fn answer_about(rehearsal: &Rehearsal, reference: String, cancels: bool) -> Response<Full<Bytes>> {
    let mut state = rehearsal.state.lock();
    state.requests += 1;
    let (status, body) = if rehearsal.fault == Fault::Deny && state.denials < 10 {
        state.denials += 1;
        (StatusCode::NOT_FOUND, r#"{"code":"message_not_found"}"#)
    } else if state.requests.is_multiple_of(3) {
        (StatusCode::SERVICE_UNAVAILABLE, r#"{"code":"not_yet_known"}"#)
    } else if !cancels {
        (StatusCode::OK, "{}")
    } else if state.requests < 200 {
        (StatusCode::CONFLICT, r#"{"code":"already_delivered"}"#)
    } else {
        if rehearsal.fault != Fault::Deliver {
            state.cancelled.insert(reference);
        }
        (StatusCode::ACCEPTED, "{}")
    };
    Response::builder().status(status).body(Full::from(body)).unwrap()
}

fn upgrade(rehearsal: Arc<Rehearsal>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let token = request.headers()[header::AUTHORIZATION].to_str().unwrap();
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    let phone = claims["sub"].as_str().unwrap().to_owned();
    let accept = derive_accept_key(request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes());
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let stream = TokioIo::new(upgraded.await.unwrap());
        hold(&rehearsal, &phone, WebSocketStream::from_raw_socket(stream, Role::Server, None).await).await
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .header(header::SEC_WEBSOCKET_PROTOCOL, "eshaar.v1.json")
        .body(Full::default())
        .unwrap()
}

/// Sends a phone's stream from where `hello` says, until the client is gone.
async fn hold<S>(rehearsal: &Rehearsal, phone: &str, mut socket: WebSocketStream<S>) -> Option<Infallible>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut appended = rehearsal.appended.subscribe();
    let hello: serde_json::Value = serde_json::from_str(socket.next().await?.ok()?.to_text().ok()?).unwrap();
    let mut place: usize = hello["after"].as_str().map_or(0, |cursor| cursor.parse().unwrap());
    let mut caught_up = false;
    if rehearsal.fault == Fault::Deliver {
        sleep(LATE).await;
    }
    loop {
        let waiting =
            rehearsal.state.lock().streams.get(phone).map_or_else(Vec::new, |stream| stream[place..].to_vec());
        for reference in waiting {
            place += 1;
            if rehearsal.state.lock().cancelled.contains(&reference) {
                continue;
            }
            let frame =
                format!(r#"{{"op":"message","content":"a \"text\"","reference":"{reference}","cursor":"{place}"}}"#);
            socket.send(Message::text(frame)).await.ok()?;
        }
        if !caught_up {
            caught_up = true;
            socket.send(Message::text(format!(r#"{{"op":"caught_up","cursor":"{place}"}}"#))).await.ok()?;
        }
        tokio::select! {
            changed = appended.changed() => changed.ok()?,
            frame = socket.next() => { frame?.ok()?; }
        }
    }
}

const MANY_SENDERS: &str = "messages = 300\nrate = 0\n\
    [[senders]]\nmode = \"single\"\nconnections = 4\n\
    [[senders]]\nmode = \"bulk\"\nconnections = 2\nbatch = 20\n\
    [recipients]\ncount = 20\nsteady = 0.5\nflapping = 0.2\nstay_ms = [2, 20]\naway_ms = [1, 5]\n\
    [checks]\ndrain_timeout_ms = 500\nsettle_ms = 20\nhistory_sample = 1.0\n";

async fn rehearse(fault: Fault) -> Report {
    rehearse_with(fault, MANY_SENDERS).await
}

async fn rehearse_with(fault: Fault, scenario: &str) -> Report {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint: Endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (appended, _) = watch::channel(());
    let rehearsal = Arc::new(Rehearsal { fault, state: Mutex::default(), appended });
    let server = tokio::spawn(serve(rehearsal, listener));
    let access = Access {
        ingest: endpoint.clone().into(),
        gateways: endpoint.into(),
        api_key: "esk_rehearsal".to_owned(),
        minter: Minter::new(b"secret").unwrap(),
    };
    let mut target = Target { access, spawned: None };
    let report = drive("rehearsal".to_owned(), Scenario::parse(scenario).unwrap(), &mut target, 7).await.unwrap();
    server.abort();
    report
}

#[tokio::test]
async fn an_honest_server_passes() {
    let report = rehearse(Fault::None).await;
    assert_eq!(report.failures, [""; 0]);
    assert_eq!((report.accounts.accepted, report.accounts.received), (300, 300));
    assert_eq!(report.history.unwrap().1.received, 300);
    assert!(report.steady_ms.count > 0 && report.accept_ms.count == 150 + 2 * 4);
}

#[tokio::test]
async fn a_recipient_to_whom_much_comes_at_once_misses_nothing() {
    let one_who_comes_at_the_end = "messages = 1_000\nrate = 0\n\
        [[senders]]\nmode = \"bulk\"\nconnections = 1\nbatch = 100\n\
        [recipients]\ncount = 1\nsteady = 0.0\n\
        [checks]\ndrain_timeout_ms = 500\nsettle_ms = 20\nhistory_sample = 1.0\n";
    let report = rehearse_with(Fault::None, one_who_comes_at_the_end).await;
    assert_eq!(report.failures, [""; 0]);
    assert_eq!(report.accounts.received, 1_000);
}

#[tokio::test]
async fn a_server_that_loses_a_message_fails() {
    assert_eq!(rehearse(Fault::Lose).await.failures, ["received: 1 lost", "history: 1 lost"]);
}

#[tokio::test]
async fn a_server_that_doubles_a_message_fails() {
    assert_eq!(rehearse(Fault::Double).await.failures, ["received: 1 duplicated", "history: 1 duplicated"]);
}

#[tokio::test]
async fn a_server_that_swaps_two_messages_fails() {
    assert_eq!(rehearse(Fault::Swap).await.failures, ["received: 1 out of order", "history: 1 out of order"]);
}

#[tokio::test]
async fn answers_that_are_cut_off_are_asked_for_again_and_nothing_is_sent_twice() {
    let report = rehearse(Fault::CutAnswers).await;
    assert_eq!(report.failures, [""; 0]);
    assert_eq!(report.accounts.received, 300);
    let (connection, _, status) = report.traffic.retries;
    assert!(connection > 0 && status > 0);
}

#[tokio::test]
async fn a_server_that_never_answers_again_ends_the_run_and_fails_it() {
    let impatient = MANY_SENDERS.replace("connections =", "give_up_ms = 300\nconnections =");
    let report = rehearse_with(Fault::Fail, &impatient).await;
    assert_eq!(report.failures, ["a sender had no answer for too long (give_up_ms): sending ended early"]);
    assert!(report.accounts.accepted < 300);
    assert_eq!(report.accounts.received, report.accounts.accepted);
}

/// Recipients that come at the end: what is cancelled meanwhile must not be there.
const WITH_CANCELLATIONS: &str = "messages = 300\nrate = 0\n\
    [[senders]]\nmode = \"single\"\nconnections = 4\ncancel = 0.3\ncancel_after_ms = [0, 20]\nlook_up = 0.5\n\
    [recipients]\ncount = 20\nsteady = 0.0\n\
    [checks]\ndrain_timeout_ms = 500\nsettle_ms = 20\nhistory_sample = 1.0\n\
    cancel_grace_ms = 0\nmin_withheld = 10\nmin_repeats = 10\nmin_cancelled_unseen = 10\n";

#[tokio::test]
async fn what_was_cancelled_does_not_arrive_and_nothing_else_is_missing() {
    let report = rehearse_with(Fault::None, WITH_CANCELLATIONS).await;
    assert_eq!(report.failures, [""; 0]);
    let (cancels, of) = (report.cancels.unwrap(), report.accounts.cancelled);
    assert_eq!((of.withheld, of.answered), (cancels.totals.cancelled_unseen, cancels.totals.cancelled_unseen));
    assert_eq!(report.accounts.received + of.withheld, 300);
    assert!(cancels.totals.too_late > 0 && cancels.totals.looked_up > 100 && cancels.repeats > 10);
}

#[tokio::test]
async fn a_server_that_delivers_what_was_cancelled_fails() {
    let patient = WITH_CANCELLATIONS.replace("drain_timeout_ms = 500", "drain_timeout_ms = 5_000");
    let report = rehearse_with(Fault::Deliver, &patient).await;
    let of = report.accounts.cancelled;
    assert!(of.after > 10, "{of:?}");
    assert_eq!(report.history.as_ref().unwrap().1.cancelled.after, of.after);
    assert_eq!((of.withheld, of.after, report.accounts.received), (0, of.answered, 300));
    assert_eq!(
        report.failures,
        [
            format!("received: {} after the cancellation was answered", of.after),
            format!("history: {} after the cancellation was answered", of.after),
            "only 0 cancelled messages were not received: at least 10 are needed to show anything".to_owned(),
        ]
    );
}

#[tokio::test]
async fn a_server_that_denies_what_it_has_accepted_fails() {
    let report = rehearse_with(Fault::Deny, WITH_CANCELLATIONS).await;
    let Totals { cancel_not_found, look_up_not_found, examples, .. } = report.cancels.unwrap().totals;
    assert_eq!(cancel_not_found + look_up_not_found, 10);
    assert_eq!(examples.len(), 10);
    assert!(report.failures.iter().all(|failure| failure.ends_with("were answered 404")), "{:?}", report.failures);
    assert!(!report.failures.is_empty());
}
