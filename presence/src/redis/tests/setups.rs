//! What may be set, what is refused, and what `check` says of a server that is not as configured.

use super::server::{Server, certify, cluster};
use super::*;

fn refusal(options: &Options) -> String {
    options.validate().unwrap_err().to_string()
}

#[test]
fn options_that_cannot_be_are_refused_by_name() {
    let default = Options::default;
    default().validate().unwrap();
    for address in ["", "localhost", ":6379", "localhost:", "localhost:70000"] {
        let text = refusal(&Options { addresses: vec![address.to_owned()], ..default() });
        assert_eq!(text, format!("redis.addresses: {address:?} is not host:port"));
    }
    Options { addresses: vec!["[::1]:6379".to_owned()], ..default() }.validate().unwrap();
    assert!(refusal(&Options { addresses: vec![], ..default() }).contains("redis.addresses"));
    assert!(refusal(&Options { addresses: vec!["a:1".into(), "b:1".into()], ..default() }).contains("single"));
    assert!(refusal(&Options { prefix: "{a}".into(), ..default() }).contains("redis.prefix"));
    assert!(refusal(&Options { mode: Mode::Sentinel, master: String::new(), ..default() }).contains("redis.master"));
    assert!(refusal(&Options { response_timeout_ms: 0, ..default() }).contains("response_timeout_ms"));
    assert!(refusal(&Options { reconnect_min_ms: 9_000, ..default() }).contains("reconnect_max_ms"));
}

#[test]
fn a_password_is_never_printed() {
    let options = Options { password: Some("hunter2".to_owned().into()), ..Options::default() };
    assert!(!format!("{options:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_file_that_is_not_there_is_said_at_once() {
    let options = Options { password_file: Some("/no/such/file".into()), ..Options::default() };
    let error = RedisPresence::connect(options).await.err().unwrap();
    assert!(error.to_string().starts_with("cannot read /no/such/file (redis.password_file)"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn tls_and_passwords_are_used_and_checked() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    certify(dir.path());
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("password"), "correct horse\n").unwrap();
    let (tls_port, key, cert) = (server::free_port(), file("key.pem"), file("cert.pem"));
    let mut arguments = vec!["--tls-key-file", &key, "--tls-cert-file", &cert, "--tls-ca-cert-file", &cert];
    let text = tls_port.to_string();
    arguments.extend(["--tls-auth-clients", "no", "--requirepass", "correct horse", "--tls-port", &text]);
    let _server = Server::start(&arguments);
    let options = Options {
        addresses: vec![format!("127.0.0.1:{tls_port}")],
        password_file: Some(file("password").into()),
        tls: true,
        ca_file: Some(file("cert.pem").into()),
        ..Options::default()
    };
    check(&options).await.unwrap();
    let presence = RedisPresence::connect(options.clone()).await.unwrap();
    presence.ping().await.unwrap();

    let said = async |options: Options| check(&options).await.unwrap_err().to_string();
    let plain = said(Options { tls: false, connect_timeout_ms: 500, ..options.clone() }).await;
    assert!(plain.contains("cannot use Redis"), "{plain}");
    let stranger = said(Options { ca_file: None, ..options.clone() }).await;
    assert!(stranger.contains("certificate"), "{stranger}");
    let none = said(Options { password_file: None, ..options.clone() }).await;
    assert!(none.contains("does not accept redis.username and redis.password_file"), "{none}");
    std::fs::write(file("password"), "wrong").unwrap();
    let wrong = said(options.clone()).await;
    assert!(wrong.contains("does not accept redis.username and redis.password_file"), "{wrong}");
    assert!(!wrong.contains("correct horse"));
    let refused = RedisPresence::connect(options).await.err().unwrap();
    assert!(matches!(refused, SetupError::Refused { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the real engines: ./test"]
async fn a_server_of_another_mode_is_told_apart() {
    let single = Server::start(&[]);
    let sentinel = Server::sentinel(single.port);
    let nodes = cluster();
    let said = async |options: Options| check(&options).await.unwrap_err().to_string();
    for (server, mode, expected) in [
        (&single, Mode::Cluster, "redis.mode is cluster, but"),
        (&single, Mode::Sentinel, "redis.mode is sentinel, but"),
        (&sentinel, Mode::Single, "runs as sentinel"),
        (&nodes[0], Mode::Single, "runs as cluster"),
    ] {
        let text = said(Options { mode, ..server.options() }).await;
        assert!(text.contains(expected) && text.contains(&server.address()), "{text}");
    }
    let unknown = said(Options { mode: Mode::Sentinel, master: "other".into(), ..sentinel.options() }).await;
    assert!(unknown.to_lowercase().contains("master"), "{unknown}");
    check(&single.options()).await.unwrap();
}
