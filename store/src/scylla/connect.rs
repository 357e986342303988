//! How a session with the cluster is set up: who we are, encryption, where requests go, how long they may take.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use openssl::ssl::{SslConnector, SslConnectorBuilder, SslMethod};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use scylla::client::execution_profile::{ExecutionProfile, ExecutionProfileBuilder};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::NewSessionError;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::statement::{Consistency, SerialConsistency};

use super::Options;
use super::options::Tls;
use super::setup::SetupError;

/// A session that has no keyspace yet.
pub(super) async fn connect(options: &Options) -> Result<Session, SetupError> {
    if !options.keyspace_is_a_name() {
        return Err(SetupError::KeyspaceName(options.keyspace.clone()));
    }
    let timeout = options.request_timeout();
    let mut builder = SessionBuilder::new()
        .known_nodes(&options.nodes)
        .connection_timeout(Duration::from_millis(options.connect_timeout_ms))
        .hostname_resolution_timeout(Some(Duration::from_millis(options.connect_timeout_ms)))
        .metadata_request_clientside_timeout(timeout)
        // ScyllaDB alone knows it. It ends before the client gives up, so that its own error is seen.
        .metadata_request_serverside_timeout(timeout * 4 / 5)
        .keyspaces_to_fetch([&options.keyspace])
        .fetch_full_schema_metadata(false)
        .default_execution_profile_handle(profile(options).build().into_handle());
    if !options.username.is_empty() {
        builder = builder.user(&options.username, password(options).await?);
    }
    if options.tls.enabled {
        builder = builder.tls_context(Some(tls(&options.tls).await?));
    }
    // The bound on each connection is not one on all of them: addresses are tried one after the other.
    let patience = Duration::from_millis(options.connect_timeout_ms) + timeout;
    let session = tokio::time::timeout(patience, builder.build()).await;
    let session = session.map_err(|_| SetupError::Slow { nodes: nodes(options), seconds: patience.as_secs() })?;
    let session = session.map_err(|error| refused(options, &error))?;
    in_datacenter(options, &session)?;
    Ok(session)
}

fn profile(options: &Options) -> ExecutionProfileBuilder {
    let mut policy = DefaultPolicy::builder().token_aware(true).permit_dc_failover(false);
    if !options.datacenter.is_empty() {
        policy = policy.prefer_datacenter(options.datacenter.clone());
    }
    ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(options.request_timeout()))
        .load_balancing_policy(policy.build())
}

/// For reads: a slow replica is not waited for. Writes are not sent twice: under load that would only add to it.
pub(super) fn reading_profile(options: &Options) -> ExecutionProfile {
    let second = (options.second_read_ms > 0).then(|| {
        let retry_interval = Duration::from_millis(options.second_read_ms);
        Arc::new(SimpleSpeculativeExecutionPolicy { max_retry_count: 1, retry_interval }) as _
    });
    profile(options).speculative_execution_policy(second).build()
}

async fn password(options: &Options) -> Result<String, SetupError> {
    let Some(path) = &options.password_file else { return Ok(options.password.expose().to_owned()) };
    let text = tokio::fs::read_to_string(path).await.map_err(|source| file("password_file", path, &source))?;
    // An editor's line end is no part of the password.
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

async fn tls(tls: &Tls) -> Result<SslConnectorBuilder, SetupError> {
    let failed = |error: openssl::error::ErrorStack| SetupError::Tls(error.to_string());
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(failed)?;
    if let Some(path) = &tls.ca_file {
        let pem = tokio::fs::read(path).await.map_err(|source| file("tls.ca_file", path, &source))?;
        let mut store = X509StoreBuilder::new().map_err(failed)?;
        for certificate in X509::stack_from_pem(&pem).map_err(failed)? {
            store.add_cert(certificate).map_err(failed)?;
        }
        builder.set_cert_store(store.build());
    }
    Ok(builder)
}

fn file(option: &'static str, path: &std::path::Path, source: &std::io::Error) -> SetupError {
    SetupError::File { option, path: PathBuf::from(path), reason: source.to_string() }
}

fn nodes(options: &Options) -> String {
    options.nodes.join(", ")
}

/// The driver wraps what a node said in what it was doing; a refused user is told apart by the node's own words.
fn refused(options: &Options, error: &NewSessionError) -> SetupError {
    let reason = error.to_string();
    let asked = ["bad credentials", "Authentication", "authentication"].iter().any(|word| reason.contains(word));
    if asked {
        return SetupError::Credentials { nodes: nodes(options), username: options.username.clone(), reason };
    }
    SetupError::Connect { nodes: nodes(options), reason }
}

/// A datacenter that is not there would make every request fail with nowhere to go.
fn in_datacenter(options: &Options, session: &Session) -> Result<(), SetupError> {
    let there = datacenters(session);
    if options.datacenter.is_empty() || there.contains(&options.datacenter) {
        return Ok(());
    }
    Err(SetupError::Datacenter { wanted: options.datacenter.clone(), there: there.join(", ") })
}

/// The cluster's datacenters, by name.
fn datacenters(session: &Session) -> Vec<String> {
    let state = session.get_cluster_state();
    let mut names: Vec<_> = state.get_nodes_info().iter().filter_map(|node| node.datacenter.clone()).collect();
    names.sort_unstable();
    names.dedup();
    names
}
