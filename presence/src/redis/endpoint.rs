//! Making a connection, however Redis is run: read what is in files, find the server, log in.

use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, PushInfo,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, TlsMode,
};

use super::options::{Credentials, Mode, Options, SetupError};

/// Attempts of the cluster's client at one command, as nodes come and go; the time for the call bounds them too.
const CLUSTER_RETRIES: u32 = 2;

/// A connection that many calls share.
#[derive(Clone)]
pub(super) enum Connection {
    /// To one server.
    One(MultiplexedConnection),
    /// To every node of a cluster.
    Cluster(ClusterConnection),
}

impl Connection {
    /// From now on what is published on `channel` is pushed over this connection.
    pub(super) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::One(connection) => connection.subscribe(channel).await,
            Self::Cluster(connection) => connection.subscribe(channel).await,
        }
    }

    pub(super) async fn unsubscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::One(connection) => connection.unsubscribe(channel).await,
            Self::Cluster(connection) => connection.unsubscribe(channel).await,
        }
    }
}

/// Makes a connection, within the time for it. `pushed` gets whatever the server sends by itself.
pub(super) async fn open(
    options: &Options,
    pushed: impl Fn(PushInfo) + Send + Sync + 'static,
) -> Result<Connection, SetupError> {
    let credentials = options.credentials().await?;
    let certificates = certificates(options).await?;
    let pushed = move |push| {
        pushed(push);
        Ok::<(), RedisError>(())
    };
    let opening = async {
        match options.mode {
            Mode::Single => {
                let client = client(options, &options.addresses[0], &credentials, certificates)?;
                one(options, &client, pushed).await.map(Connection::One)
            }
            Mode::Sentinel => {
                let client = master(options, &credentials, certificates).await?;
                one(options, &client, pushed).await.map(Connection::One)
            }
            Mode::Cluster => {
                let client = cluster(options, &credentials, certificates, pushed)?;
                let connection = client.get_async_connection().await;
                connection.map(Connection::Cluster).map_err(|error| SetupError::of(options, &error))
            }
        }
    };
    match tokio::time::timeout(options.connect_timeout(), opening).await {
        Ok(opened) => opened,
        Err(_) => Err(SetupError::timed_out(options)),
    }
}

/// Sees whether the first of the servers that answers is run as the options say.
pub(super) async fn check_mode(options: &Options) -> Result<(), SetupError> {
    let (credentials, expected) = match options.mode {
        Mode::Single => (options.credentials().await?, "standalone"),
        Mode::Cluster => (options.credentials().await?, "cluster"),
        Mode::Sentinel => (options.sentinel_credentials().await?, "sentinel"),
    };
    let mut failed = SetupError::timed_out(options);
    for address in &options.addresses {
        let client = client(options, address, &credentials, certificates(options).await?)?;
        let asking = async {
            let mut connection = one(options, &client, |_| Ok::<(), RedisError>(())).await?;
            let info: RedisResult<String> = redis::cmd("INFO").arg("server").query_async(&mut connection).await;
            info.map_err(|error| SetupError::of(options, &error))
        };
        match tokio::time::timeout(options.connect_timeout(), asking).await {
            Ok(Ok(info)) => {
                let actual = info.lines().find_map(|line| line.strip_prefix("redis_mode:")).unwrap_or(expected).trim();
                let (configured, address, actual) = (options.mode, address.clone(), actual.to_owned());
                let is_right = actual == expected;
                return if is_right { Ok(()) } else { Err(SetupError::Mode { configured, address, actual }) };
            }
            Ok(Err(error)) => failed = error,
            Err(_) => {}
        }
    }
    Err(failed)
}

async fn certificates(options: &Options) -> Result<Option<TlsCertificates>, SetupError> {
    let authorities = options.authorities().await?;
    Ok(authorities.map(|root| TlsCertificates { client_tls: None, root_cert: Some(root) }))
}

async fn one(
    options: &Options,
    client: &Client,
    pushed: impl Fn(PushInfo) -> Result<(), RedisError> + Send + Sync + 'static,
) -> Result<MultiplexedConnection, SetupError> {
    // Calls are timed as a whole, by the link.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(options.connect_timeout()))
        .set_response_timeout(None)
        .set_push_sender(pushed);
    let connection = client.get_multiplexed_async_connection_with_config(&config).await;
    connection.map_err(|error| SetupError::of(options, &error))
}

fn client(
    options: &Options,
    address: &str,
    credentials: &Credentials,
    certificates: Option<TlsCertificates>,
) -> Result<Client, SetupError> {
    let info = info(options.address(address)?, credentials).map_err(|error| SetupError::of(options, &error))?;
    match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates)
            .map_err(|error| SetupError::Option { key: "ca_file", reason: error.to_string() }),
        None => Client::open(info).map_err(|error| SetupError::of(options, &error)),
    }
}

fn info(address: ConnectionAddr, credentials: &Credentials) -> RedisResult<ConnectionInfo> {
    // Pushes need RESP3.
    let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
    if let Some(username) = &credentials.username {
        login = login.set_username(username);
    }
    if let Some(password) = &credentials.password {
        login = login.set_password(password.expose());
    }
    Ok(address.into_connection_info()?.set_redis_settings(login))
}

/// A client of the master that the sentinels name now.
async fn master(
    options: &Options,
    credentials: &Credentials,
    certificates: Option<TlsCertificates>,
) -> Result<Client, SetupError> {
    let sentinel = options.sentinel_credentials().await?;
    let addresses = options.addresses.iter().map(|address| options.address(address));
    let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
    let unreachable = |error| SetupError::of(options, &error);
    let mut builder = SentinelClientBuilder::new(addresses, &options.master, SentinelServerType::Master)
        .map_err(unreachable)?
        .set_client_to_redis_protocol(ProtocolVersion::RESP3);
    if options.tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder.set_client_to_redis_certificates(certificates.clone());
        builder = builder.set_client_to_sentinel_certificates(certificates);
    }
    if let Some(username) = &credentials.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &credentials.password {
        builder = builder.set_client_to_redis_password(password.expose());
    }
    if let Some(username) = &sentinel.username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = &sentinel.password {
        builder = builder.set_client_to_sentinel_password(password.expose());
    }
    let mut client = builder.build().map_err(unreachable)?;
    client.async_get_client().await.map_err(unreachable)
}

fn cluster(
    options: &Options,
    credentials: &Credentials,
    certificates: Option<TlsCertificates>,
    pushed: impl Fn(PushInfo) -> Result<(), RedisError> + Send + Sync + 'static,
) -> Result<ClusterClient, SetupError> {
    let unreachable = |error| SetupError::of(options, &error);
    let nodes =
        options.addresses.iter().map(|address| info(options.address(address)?, credentials).map_err(unreachable));
    let mut builder = ClusterClientBuilder::new(nodes.collect::<Result<Vec<_>, _>>()?)
        .use_protocol(ProtocolVersion::RESP3)
        .connection_timeout(options.connect_timeout())
        .response_timeout(options.response_timeout())
        .retries(CLUSTER_RETRIES)
        .push_sender(pushed);
    if options.tls {
        builder = builder.tls(TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    builder.build().map_err(|error| SetupError::of(options, &error))
}
