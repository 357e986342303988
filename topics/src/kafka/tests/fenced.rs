//! A broker that can be fenced at will, as no real one can: it speaks as much of Kafka's protocol as a client needs to learn
//! which brokers there are (ApiVersions 0 and Metadata 1).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, BufMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;
const UNSUPPORTED_VERSION: i16 = 35;
const LEADER_NOT_AVAILABLE: i16 = 5;
const NODE: i32 = 1;

/// The broker. It ends with the test's runtime.
pub struct Broker {
    port: u16,
    fenced: Arc<AtomicBool>,
}

impl Broker {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fenced = Arc::new(AtomicBool::new(false));
        tokio::spawn({
            let fenced = Arc::clone(&fenced);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, port, Arc::clone(&fenced)));
                }
            }
        });
        Self { port, fenced }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From here on its answers name no broker, or itself again.
    pub fn fence(&self, fenced: bool) {
        self.fenced.store(fenced, Ordering::SeqCst);
    }
}

/// Answers until the client goes.
async fn serve(mut stream: TcpStream, port: u16, fenced: Arc<AtomicBool>) {
    while let Ok(length) = stream.read_i32().await {
        let mut request = vec![0; length as usize];
        if stream.read_exact(&mut request).await.is_err() {
            return;
        }
        let mut request = &request[..];
        let (api, version, correlation) = (request.get_i16(), request.get_i16(), request.get_i32());
        let client_id = request.get_i16().max(0) as usize;
        request.advance(client_id);
        let mut answer = Vec::new();
        answer.put_i32(correlation);
        match api {
            API_VERSIONS => put_versions(&mut answer, version),
            METADATA => put_metadata(&mut answer, request, port, fenced.load(Ordering::SeqCst)),
            _ => return,
        }
        let sent = async {
            stream.write_i32(answer.len() as i32).await?;
            stream.write_all(&answer).await
        };
        if sent.await.is_err() {
            return;
        }
    }
}

fn put_versions(answer: &mut Vec<u8>, version: i16) {
    answer.put_i16(if version == 0 { 0 } else { UNSUPPORTED_VERSION });
    answer.put_i32(2);
    for (api, newest) in [(METADATA, 1), (API_VERSIONS, 0)] {
        answer.put_i16(api);
        answer.put_i16(0);
        answer.put_i16(newest);
    }
}

/// One partition of each topic that is asked about.
fn put_metadata(answer: &mut Vec<u8>, mut request: &[u8], port: u16, fenced: bool) {
    answer.put_i32(i32::from(!fenced));
    if !fenced {
        answer.put_i32(NODE);
        put_text(answer, b"127.0.0.1");
        answer.put_i32(i32::from(port));
        answer.put_i16(-1); // no rack
    }
    answer.put_i32(NODE); // the controller
    let topics = request.get_i32().max(0);
    answer.put_i32(topics);
    for _ in 0..topics {
        let length = request.get_i16() as usize;
        answer.put_i16(0);
        put_text(answer, &request[..length]);
        request.advance(length);
        answer.put_u8(0); // not internal
        answer.put_i32(1);
        answer.put_i16(if fenced { LEADER_NOT_AVAILABLE } else { 0 });
        answer.put_i32(0);
        answer.put_i32(if fenced { -1 } else { NODE });
        for _replicas_and_in_sync in 0..2 {
            answer.put_i32(1);
            answer.put_i32(NODE);
        }
    }
}

fn put_text(answer: &mut Vec<u8>, text: &[u8]) {
    answer.put_i16(text.len() as i16);
    answer.put_slice(text);
}
