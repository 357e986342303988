//! What an operator may set of Redis, and what can be wrong with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use eshaar_model::Secret;
use redis::{ConnectionAddr, RedisError};
use serde::Deserialize;

/// How Redis is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One server.
    #[default]
    Single,
    /// A master and its replicas, watched by Redis Sentinel.
    Sentinel,
    /// Redis Cluster.
    Cluster,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "single",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        })
    }
}

/// Section `redis` of the configuration. Every key may be left out. Redis 6.2 or later, or what speaks as it does.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How Redis is run: `single`, `sentinel` or `cluster`.
    pub mode: Mode,
    /// `host:port` of the server, of each sentinel, or of some nodes of the cluster (which names the others).
    pub addresses: Vec<String>,
    /// Name of the master that the sentinels watch. For mode `sentinel`.
    pub master: String,
    /// User of the ACL. Empty: the default user.
    pub username: String,
    /// Password of that user, best given in the environment or in `password_file`.
    pub password: Option<Secret>,
    /// File with the password, read again at each connection. White space at its end is left out.
    pub password_file: Option<PathBuf>,
    /// User that the sentinels know. Empty: their default user.
    pub sentinel_username: String,
    /// Password that the sentinels ask for, if they do.
    pub sentinel_password: Option<Secret>,
    /// File with that password.
    pub sentinel_password_file: Option<PathBuf>,
    /// Whether servers and sentinels are spoken to with TLS.
    pub tls: bool,
    /// Certificates, PEM, of the authorities that are trusted. Unset: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// What every key and channel begins with. Without braces, which would put all keys on one node of a cluster.
    pub prefix: String,
    /// Milliseconds that a call may take, whatever happens.
    pub response_timeout_ms: u64,
    /// Milliseconds that making a connection may take.
    pub connect_timeout_ms: u64,
    /// Milliseconds before the first attempt to connect again; each further one waits twice as long.
    pub reconnect_min_ms: u64,
    /// Most milliseconds between attempts to connect again.
    pub reconnect_max_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Single,
            addresses: vec!["127.0.0.1:6379".to_owned()],
            master: "mymaster".to_owned(),
            username: String::new(),
            password: None,
            password_file: None,
            sentinel_username: String::new(),
            sentinel_password: None,
            sentinel_password_file: None,
            tls: false,
            ca_file: None,
            prefix: "eshaar:".to_owned(),
            response_timeout_ms: 500,
            connect_timeout_ms: 2_000,
            reconnect_min_ms: 100,
            reconnect_max_ms: 5_000,
        }
    }
}

impl Options {
    pub(super) fn response_timeout(&self) -> Duration {
        Duration::from_millis(self.response_timeout_ms)
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// The addresses, for messages to people.
    pub(super) fn places(&self) -> String {
        self.addresses.join(", ")
    }

    /// Sees that the options can be used at all.
    pub(super) fn validate(&self) -> Result<(), SetupError> {
        let refuse = |key, reason: &str| Err(SetupError::Option { key, reason: reason.to_owned() });
        if self.prefix.contains(['{', '}']) {
            return refuse("prefix", "it must not contain braces");
        }
        if self.response_timeout_ms == 0 || self.connect_timeout_ms == 0 {
            return refuse("response_timeout_ms, connect_timeout_ms", "they must be 1 or more");
        }
        if self.reconnect_min_ms == 0 || self.reconnect_min_ms > self.reconnect_max_ms {
            return refuse("reconnect_min_ms", "it must be 1 or more, and at most reconnect_max_ms");
        }
        if self.mode == Mode::Sentinel && self.master.is_empty() {
            return refuse("master", "mode sentinel needs the name of the master");
        }
        match (self.mode, self.addresses.len()) {
            (_, 0) => return refuse("addresses", "there is none"),
            (Mode::Single, 2..) => return refuse("addresses", "mode single has one server"),
            _ => {}
        }
        self.addresses.iter().try_for_each(|address| self.address(address).map(drop))
    }

    /// Parses one of the addresses.
    pub(super) fn address(&self, text: &str) -> Result<ConnectionAddr, SetupError> {
        let split = text.rsplit_once(':').and_then(|(host, port)| {
            let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
            Some((host.to_owned(), port.parse::<u16>().ok()?))
        });
        match split {
            Some((host, port)) if !host.is_empty() && self.tls => {
                Ok(ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None })
            }
            Some((host, port)) if !host.is_empty() => Ok(ConnectionAddr::Tcp(host, port)),
            _ => Err(SetupError::Option { key: "addresses", reason: format!("{text:?} is not host:port") }),
        }
    }

    /// The user and password for the servers, read from where they are.
    pub(super) async fn credentials(&self) -> Result<Credentials, SetupError> {
        Credentials::read("password_file", &self.username, self.password.as_ref(), self.password_file.as_deref()).await
    }

    /// The user and password for the sentinels.
    pub(super) async fn sentinel_credentials(&self) -> Result<Credentials, SetupError> {
        let (username, password) = (&self.sentinel_username, self.sentinel_password.as_ref());
        Credentials::read("sentinel_password_file", username, password, self.sentinel_password_file.as_deref()).await
    }

    /// The trusted certificates, if they are not the system's.
    pub(super) async fn authorities(&self) -> Result<Option<Vec<u8>>, SetupError> {
        match &self.ca_file {
            Some(path) if self.tls => read("ca_file", path).await.map(Some),
            _ => Ok(None),
        }
    }
}

async fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, SetupError> {
    tokio::fs::read(path).await.map_err(|source| SetupError::File { key, path: path.to_owned(), source })
}

/// Who we say we are.
pub(super) struct Credentials {
    pub(super) username: Option<String>,
    pub(super) password: Option<Secret>,
}

impl Credentials {
    async fn read(
        key: &'static str,
        username: &str,
        password: Option<&Secret>,
        file: Option<&Path>,
    ) -> Result<Self, SetupError> {
        let password = match file {
            None => password.cloned(),
            Some(path) => {
                let text = String::from_utf8(read(key, path).await?)
                    .map_err(|_| SetupError::Option { key, reason: "the file is not UTF-8".to_owned() })?;
                Some(Secret::from_file(&text))
            }
        };
        Ok(Self {
            username: Some(username.to_owned()).filter(|name| !name.is_empty()),
            password: password.filter(|password| !password.expose().is_empty()),
        })
    }
}

/// Redis cannot be used as it is configured, or not now.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A key of the configuration has a value that cannot be.
    #[error("redis.{key}: {reason}")]
    Option {
        /// The key.
        key: &'static str,
        /// Why not.
        reason: String,
    },
    /// A file that the configuration names cannot be read.
    #[error("cannot read {} (redis.{key}): {source}", path.display())]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Nobody answers there as Redis would.
    #[error("cannot use Redis at {addresses} (mode {mode}): {reason}")]
    Unreachable {
        /// Where it was looked for.
        addresses: String,
        /// How it is said to be run.
        mode: Mode,
        /// What happened.
        reason: String,
    },
    /// It answers, and does not let us in.
    #[error("Redis at {addresses} does not accept redis.username and redis.password_file: {reason}")]
    Refused {
        /// Where.
        addresses: String,
        /// Its own words.
        reason: String,
    },
    /// It is run in another way than the configuration says.
    #[error("redis.mode is {configured}, but {address} runs as {actual}")]
    Mode {
        /// As configured.
        configured: Mode,
        /// Which server.
        address: String,
        /// What it says it is.
        actual: String,
    },
}

impl SetupError {
    /// What a failed attempt to connect means.
    pub(super) fn of(options: &Options, error: &RedisError) -> Self {
        let (addresses, reason) = (options.places(), error.to_string());
        let is_refusal = error.kind() == redis::ErrorKind::AuthenticationFailed
            || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"));
        if is_refusal {
            Self::Refused { addresses, reason }
        } else {
            Self::Unreachable { addresses, mode: options.mode, reason }
        }
    }

    /// Nothing came within the time for connecting.
    pub(super) fn timed_out(options: &Options) -> Self {
        let reason = format!("no connection within {} ms", options.connect_timeout_ms);
        Self::Unreachable { addresses: options.places(), mode: options.mode, reason }
    }

    /// Whether trying again later may help.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}
