//! One kept-alive HTTP/1.1 connection with one request under way: all that a sender needs, at the least CPU.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest answer that is read, in bytes: a bulk answer has a line for each line.
const ANSWER_LIMIT: usize = 64 << 20;

/// Longest time for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a server listens: plain HTTP, since TLS is for the proxy in front of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    /// What goes into `Host`.
    pub authority: String,
}

impl FromStr for Endpoint {
    type Err = anyhow::Error;

    fn from_str(url: &str) -> anyhow::Result<Self> {
        let Some(rest) = url.strip_prefix("http://") else {
            bail!("expected a URL that begins with http://, got {url}")
        };
        let authority = rest.trim_end_matches('/');
        let resolved = std::net::ToSocketAddrs::to_socket_addrs(authority)
            .with_context(|| format!("finding the address of {authority} (host:port)"))?;
        let address = resolved.into_iter().next().with_context(|| format!("{authority} has no address"))?;
        Ok(Self { address, authority: authority.to_owned() })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// Where the processes of a role listen, as a load balancer in front of them would know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(Arc<[Endpoint]>);

impl Endpoints {
    /// At least one.
    pub fn new(endpoints: Vec<Endpoint>) -> anyhow::Result<Self> {
        ensure!(!endpoints.is_empty(), "there is no server to talk to");
        Ok(Self(endpoints.into()))
    }

    /// One of them: those who take turns reach all.
    pub fn of_turn(&self, turn: usize) -> &Endpoint {
        &self.0[turn % self.0.len()]
    }
}

impl From<Endpoint> for Endpoints {
    fn from(only: Endpoint) -> Self {
        Self(Arc::new([only]))
    }
}

/// Why there is no answer. What became of the request is not known.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection, or it broke.
    #[error("the connection failed: {0}")]
    Connection(Box<dyn std::error::Error + Send + Sync>),
    /// No whole answer in time.
    #[error("no answer in {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// `Retry-After`, where it was given in seconds.
    pub retry_after: Option<Duration>,
    /// Its body.
    pub body: Bytes,
}

/// A request to be posted, once or again.
#[derive(Clone, Debug)]
pub struct Post {
    /// Path.
    pub path: Cow<'static, str>,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// `Idempotency-Key`.
    pub key: Option<HeaderValue>,
    /// Body.
    pub body: Bytes,
}

/// A client that connects when it must; where that fails, or no answer comes, to the next endpoint.
pub struct Client {
    endpoints: Endpoints,
    turn: usize,
    authorization: HeaderValue,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client that shows `api_key`. It connects with the first request, to the endpoint of `turn`.
    pub fn new(endpoints: Endpoints, turn: usize, api_key: &str) -> anyhow::Result<Self> {
        let mut authorization = HeaderValue::from_str(&format!("Bearer {api_key}")).context("the API key")?;
        authorization.set_sensitive(true);
        Ok(Self { endpoints, turn, authorization, connection: None })
    }

    /// Posts, and reads the whole answer. After an error the next call connects anew.
    pub async fn post(&mut self, post: Post, patience: Duration) -> Result<Answer, CallError> {
        let Post { path, content_type, key, body } = post;
        let mut request = Request::post(&*path)
            .header(header::HOST, &self.endpoints.of_turn(self.turn).authority)
            .header(header::AUTHORIZATION, &self.authorization)
            .header(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(Full::new(body)).map_err(connection_failed)?;
        self.call(request, patience).await
    }

    /// As [`Client::get`], as somebody else: `bearer` instead of what it shows.
    pub async fn get_as(&mut self, bearer: &HeaderValue, path: &str, patience: Duration) -> Result<Answer, CallError> {
        let own = std::mem::replace(&mut self.authorization, bearer.clone());
        let answer = self.get(path, patience).await;
        self.authorization = own;
        answer
    }

    /// Gets a path.
    pub async fn get(&mut self, path: &str, patience: Duration) -> Result<Answer, CallError> {
        let request = Request::get(path)
            .header(header::HOST, &self.endpoints.of_turn(self.turn).authority)
            .header(header::AUTHORIZATION, &self.authorization)
            .body(Full::default())
            .map_err(connection_failed)?;
        self.call(request, patience).await
    }

    async fn call(&mut self, request: Request<Full<Bytes>>, patience: Duration) -> Result<Answer, CallError> {
        let called = self.call_this(request, patience).await;
        if called.is_err() {
            self.turn += 1;
        }
        called
    }

    async fn call_this(&mut self, request: Request<Full<Bytes>>, patience: Duration) -> Result<Answer, CallError> {
        let mut connection = match self.connection.take() {
            Some(connection) if connection.is_ready() => connection,
            _ => self.connect().await?,
        };
        match timeout(patience, exchange(&mut connection, request)).await {
            Ok(Ok(answer)) => {
                self.connection = Some(connection);
                Ok(answer)
            }
            Ok(Err(error)) => Err(CallError::Connection(error)),
            Err(_) => Err(CallError::Timeout(patience)),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, CallError> {
        let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(self.endpoints.of_turn(self.turn).address)).await
        {
            Ok(stream) => stream.map_err(connection_failed)?,
            Err(_) => return Err(CallError::Timeout(CONNECT_TIMEOUT)),
        };
        stream.set_nodelay(true).map_err(connection_failed)?;
        let (connection, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(connection_failed)?;
        // Ends when `connection` is dropped or the server hangs up; a failure is also seen by the request under way.
        tokio::spawn(driver);
        Ok(connection)
    }
}

async fn exchange(
    connection: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    connection.ready().await?;
    let response = connection.send_request(request).await?;
    let status = response.status();
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await?.to_bytes();
    Ok(Answer { status, retry_after: retry_after.map(Duration::from_secs), body })
}

fn connection_failed(error: impl std::error::Error + Send + Sync + 'static) -> CallError {
    CallError::Connection(Box::new(error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_http_url_with_a_port() {
        let endpoint: Endpoint = "http://127.0.0.1:8080/".parse().unwrap();
        assert_eq!(endpoint.authority, "127.0.0.1:8080");
        assert_eq!(endpoint.to_string(), "http://127.0.0.1:8080");
        assert!("https://127.0.0.1:8080".parse::<Endpoint>().is_err());
        assert!("http://127.0.0.1".parse::<Endpoint>().is_err());
    }
}
