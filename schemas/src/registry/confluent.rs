//! A client of any registry that speaks Confluent's API: Confluent's own, Apicurio (`/apis/ccompat/v7`), Karapace,
//! Redpanda, or our embedded one.
//!
//! Every schema is sent in one layout (no white space, keys in order), so that a registry that compares text gives the
//! same schema the same id. While the registry does not answer, ids and schemas come from the [`Cache`].

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use eshaar_model::Secret;
use reqwest::{Certificate, Client, Method, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::cache::Cache;
use super::compatibility::{identity, parse};
use super::{Compatibility, Missing, Registry, RegistryError, SchemaId};
use crate::codec::look_up;

const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 4 * 1024 * 1024;

/// How often registering is tried against a conflict that may be another's registering.
const REGISTER_ATTEMPTS: u32 = 3;

/// Section `registry` of the configuration. Every key may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where the API is: `https://registry:8081`, or `http://apicurio:8080/apis/ccompat/v7`.
    pub url: String,
    /// User for HTTP basic authentication. Empty: none.
    pub username: String,
    /// Password of that user, best given in the environment or in `password_file`.
    pub password: Option<Secret>,
    /// File with the password. White space at its end is left out.
    pub password_file: Option<PathBuf>,
    /// Certificates, PEM, of the authorities that are trusted. Unset: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Milliseconds that a call may take, connecting included.
    pub timeout_ms: u64,
    /// File where ids and schemas are kept, for starts while the registry is down. Unset: none.
    pub cache_file: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8081".to_owned(),
            username: String::new(),
            password: None,
            password_file: None,
            ca_file: None,
            timeout_ms: 5_000,
            cache_file: None,
        }
    }
}

/// The options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Not the URL of an API.
    #[error("registry.url: {url:?} is not an http or https URL")]
    Url {
        /// As configured.
        url: String,
    },
    /// A file that the configuration names cannot be read.
    #[error("cannot read {} (registry.{key}): {source}", path.display())]
    File {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The HTTP client cannot be made of them.
    #[error("cannot make a client of the schema registry (registry.ca_file): {0}")]
    Client(#[from] reqwest::Error),
}

/// A registry that is reached over HTTP.
pub struct ConfluentRegistry {
    client: Client,
    url: Url,
    login: Option<(String, Option<Secret>)>,
    cache: Option<Cache>,
}

impl ConfluentRegistry {
    /// A client; nothing is asked yet. The process must have a default crypto provider of rustls by then.
    pub async fn new(options: Options) -> Result<Self, SetupError> {
        let url = Url::parse(&options.url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.ok_or_else(|| SetupError::Url { url: options.url.clone() })?;
        let timeout = Duration::from_millis(options.timeout_ms);
        let mut client = Client::builder().timeout(timeout).connect_timeout(timeout);
        if let Some(path) = &options.ca_file {
            let pem = read("ca_file", path).await?;
            client = client.tls_certs_only(Certificate::from_pem_bundle(&pem)?);
        }
        let password = match &options.password_file {
            Some(path) => Some(Secret::from_file(&String::from_utf8_lossy(&read("password_file", path).await?))),
            None => options.password,
        };
        let cache = match options.cache_file {
            Some(path) => Some(Cache::open(path, url.as_str()).await),
            None => None,
        };
        let login = (!options.username.is_empty()).then_some((options.username, password));
        Ok(Self { client: client.build()?, url, login, cache })
    }

    /// Whether the registry answers, for health.
    pub async fn ping(&self) -> Result<(), RegistryError> {
        let types: Result<Vec<String>, Failure> = self.call(Method::GET, &["schemas", "types"], None).await;
        types.map(drop).map_err(|failure| failure.meant("", Missing::Schema))
    }

    /// Calls the API, and reads what it answers.
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: Option<Value>,
    ) -> Result<T, Failure> {
        let mut url = self.url.clone();
        // A base that is no base was refused when the URL was parsed.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let mut request = self.client.request(method, url.clone()).header("accept", CONTENT_TYPE);
        if let Some((user, password)) = &self.login {
            request = request.basic_auth(user, password.as_ref().map(Secret::expose));
        }
        if let Some(body) = body {
            request = request.header("content-type", CONTENT_TYPE).body(body.to_string());
        }
        let response = request.send().await.map_err(|error| Failure::silent(&url, &error))?;
        let status = response.status();
        let answer = read_answer(response).await.map_err(|reason| Failure::Silent(format!("{url}: {reason}")))?;
        if status.is_success() {
            return serde_json::from_slice(&answer)
                .map_err(|error| Failure::Silent(format!("{url} answers what no registry would: {error}")));
        }
        match serde_json::from_slice(&answer) {
            Ok(Refusal { error_code, message }) => Err(Failure::Refused { status, code: error_code, message }),
            Err(_) => Err(Failure::Silent(format!("{url} answers {status}: is this the URL of a schema registry?"))),
        }
    }

    /// Sends a schema, and reads the id that it has.
    async fn post(&self, path: &[&str], subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
        let body = json!({"schemaType": "AVRO", "schema": schema});
        let answer = self.call(Method::POST, path, Some(body)).await;
        let Id { id } = answer.map_err(|failure| failure.meant(subject, Missing::Schema))?;
        Ok(id)
    }

    async fn keep(&self, subject: Option<&str>, id: SchemaId, schema: &str) {
        if let Some(cache) = &self.cache {
            cache.keep(subject, id, schema).await;
        }
    }
}

async fn read(key: &'static str, path: &PathBuf) -> Result<Vec<u8>, SetupError> {
    tokio::fs::read(path).await.map_err(|source| SetupError::File { key, path: path.clone(), source })
}

/// Reads an answer that is not longer than it may be.
async fn read_answer(mut response: Response) -> Result<Vec<u8>, String> {
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if answer.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("the answer has more than {MAX_ANSWER} bytes"));
        }
        answer.extend_from_slice(&chunk);
    }
    Ok(answer)
}

/// An error and what caused it: the outermost alone says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Why a call brought nothing.
enum Failure {
    /// No answer, or none of a registry's.
    Silent(String),
    /// The registry's own refusal, in Confluent's form.
    Refused { status: StatusCode, code: u32, message: String },
}

impl Failure {
    fn silent(url: &Url, error: &reqwest::Error) -> Self {
        let why = if error.is_timeout() { "no answer in time".to_owned() } else { chain(error) };
        Self::Silent(format!("{url}: {why}"))
    }

    /// What it means for a call about `subject` that asked for `wanted`.
    fn meant(self, subject: &str, wanted: Missing) -> RegistryError {
        match self {
            Self::Silent(reason) => RegistryError::Unavailable { reason },
            Self::Refused { status, code, message } => match (status, code) {
                (StatusCode::NOT_FOUND, 40401) => {
                    RegistryError::NotFound { what: Missing::Subject(subject.to_owned()) }
                }
                (StatusCode::NOT_FOUND, 40402..=40499) => RegistryError::NotFound { what: wanted },
                (StatusCode::CONFLICT, _) => {
                    RegistryError::Incompatible { subject: subject.to_owned(), reason: message }
                }
                (StatusCode::UNPROCESSABLE_ENTITY, 42201) => RegistryError::Invalid { reason: message },
                _ => RegistryError::Unavailable { reason: format!("it answers {status}: {message}") },
            },
        }
    }
}

/// An error in Confluent's form.
#[derive(Deserialize)]
struct Refusal {
    error_code: u32,
    message: String,
}

#[derive(Deserialize)]
struct Id {
    id: SchemaId,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Schema {
    schema: String,
    schema_type: Option<String>,
}

/// The one layout of a schema; what is no Avro schema is not sent.
fn laid_out(schema: &str) -> Result<String, RegistryError> {
    parse(schema)?;
    identity(schema)
}

#[async_trait]
impl Registry for ConfluentRegistry {
    async fn register(&self, subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
        let schema = laid_out(schema)?;
        let mut attempt = 1;
        let id = loop {
            match self.post(&["subjects", subject, "versions"], subject, &schema).await {
                Ok(id) => break id,
                Err(RegistryError::Incompatible { .. }) if attempt < REGISTER_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error),
            }
            // Apicurio answers so too when two register at once, perhaps the same.
            if let Ok(id) = self.post(&["subjects", subject], subject, &schema).await {
                break id;
            }
        };
        self.keep(Some(subject), id, &schema).await;
        Ok(id)
    }

    async fn lookup(&self, subject: &str, schema: &str) -> Result<SchemaId, RegistryError> {
        let schema = laid_out(schema)?;
        let error = match self.post(&["subjects", subject], subject, &schema).await {
            Ok(id) => {
                self.keep(Some(subject), id, &schema).await;
                return Ok(id);
            }
            Err(error) => error,
        };
        if let (RegistryError::Unavailable { .. }, Some(cache)) = (&error, &self.cache)
            && let Some(id) = cache.id(subject, &schema).await
        {
            tracing::warn!(subject, id, %error, "the id of a schema comes from the cache");
            return Ok(id);
        }
        Err(error)
    }

    async fn schema(&self, id: SchemaId) -> Result<String, RegistryError> {
        let answer = self.call(Method::GET, &["schemas", "ids", &id.to_string()], None).await;
        let error = match answer.map_err(|failure| failure.meant("", Missing::Schema)) {
            Ok(Schema { schema_type: Some(kind), .. }) if kind != "AVRO" => {
                return Err(RegistryError::Invalid { reason: format!("schema {id} is of type {kind}") });
            }
            Ok(Schema { schema, .. }) => {
                self.keep(None, id, &identity(&schema)?).await;
                return Ok(schema);
            }
            Err(error) => error,
        };
        if let (RegistryError::Unavailable { .. }, Some(cache)) = (&error, &self.cache)
            && let Some(schema) = cache.schema(id).await
        {
            tracing::warn!(id, %error, "a schema comes from the cache");
            return Ok(schema);
        }
        Err(error)
    }

    async fn set_compatibility(&self, subject: &str, level: Compatibility) -> Result<(), RegistryError> {
        let body = Some(json!({"compatibility": level.as_str()}));
        let answer: Result<Value, Failure> = self.call(Method::PUT, &["config", subject], body).await;
        answer.map(drop).map_err(|failure| failure.meant(subject, Missing::Level(subject.to_owned())))
    }
}

/// What keeps a role from starting with these subjects, one finding a subject; one alone if the registry does not answer.
/// The cache is not asked.
pub async fn check(options: &Options, subjects: &[(String, &'static str)]) -> Result<Vec<RegistryError>, SetupError> {
    let registry = ConfluentRegistry::new(Options { cache_file: None, ..options.clone() }).await?;
    let mut findings = Vec::new();
    for (subject, name) in subjects {
        match look_up(&registry, subject, name).await {
            Ok(_) => {}
            Err(error @ RegistryError::Unavailable { .. }) => return Ok(vec![error]),
            Err(error) => findings.push(error),
        }
    }
    Ok(findings)
}
