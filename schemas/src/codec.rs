//! Records to bytes and back: magic byte 0, the schema's id in four bytes, big-endian, then Avro binary.
//!
//! Writing uses the schema that this build was made with; reading uses the schema that wrote the record, so that old
//! and new writers may share a topic. The registry is asked at start and on an unknown id, never for each record.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::BufRead;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_avro_fast::Schema;
use serde_avro_fast::de::{DeserializerConfig, DeserializerState, read::SliceRead};
use serde_avro_fast::ser::SerializerConfig;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::json::Json;
use crate::records;
use crate::registry::{Compatibility, Missing, Registry, RegistryError, SchemaId};

/// Bytes before the Avro binary: the magic byte and the schema's id.
const PREFIX: usize = 5;

/// Most elements that an array or map of one record may have; more is a hostile or damaged record.
const MAX_ELEMENTS: usize = 1_000_000;

/// Schemas learned from the registry that are kept. Past it all are forgotten, and learned again when met.
const MAX_LEARNED: usize = 1_024;

/// How long the registry is not asked again for what it did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// A record that is on a topic.
pub trait Contract: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Full name in Avro.
    const NAME: &'static str;
    /// The schema, Avro JSON.
    const SCHEMA: &'static str;
}

/// The record cannot be written by its schema.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode {record}: {reason}")]
pub struct EncodeError {
    /// Avro name of the record.
    pub record: &'static str,
    /// Why.
    pub reason: String,
}

/// The bytes are not a record of this contract.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Too short, or the magic byte is not 0.
    #[error("not in Confluent wire format ({length} bytes)")]
    Frame {
        /// Length of the value.
        length: usize,
    },
    /// A schema id that is not known here: ask [`Codecs::learn`], then try again.
    #[error("unknown schema id {0}")]
    UnknownSchema(SchemaId),
    /// Written by a known schema, but not readable as this record.
    #[error("cannot decode {record} written with schema {schema}: {reason}")]
    Record {
        /// Avro name of the record.
        record: &'static str,
        /// Id of the writer's schema.
        schema: SchemaId,
        /// Why.
        reason: String,
    },
}

/// The schema id that stands before a record in Confluent wire format.
pub fn schema_id(value: &[u8]) -> Result<SchemaId, DecodeError> {
    match value {
        [0, a, b, c, d, ..] => Ok(SchemaId::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(DecodeError::Frame { length: value.len() }),
    }
}

/// A schema that some record was written with.
struct Writer {
    /// Full name of the record.
    name: String,
    schema: Schema,
}

/// The codec of one contract: how this build writes it, which is also how most records it reads were written.
struct Codec {
    name: &'static str,
    id: SchemaId,
    schema: Schema,
}

/// The codecs of all contracts, with the ids that a registry gave them. Cheap to clone.
#[derive(Clone)]
pub struct Codecs {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Arc<dyn Registry>,
    /// A handful: found faster by going through them than by hashing.
    codecs: Vec<Codec>,
    learned: RwLock<HashMap<SchemaId, Arc<Writer>>>,
    /// Held while the registry is asked, by one at a time.
    refused: Mutex<Refused>,
}

/// What the registry did not answer, for a moment: so that a topic full of records that nobody can read is not a
/// question each.
#[derive(Default)]
struct Refused {
    ids: HashMap<SchemaId, (RegistryError, Instant)>,
    outage: Option<(RegistryError, Instant)>,
}

impl Refused {
    fn find(&self, id: SchemaId) -> Option<RegistryError> {
        let refusals = self.ids.get(&id).into_iter().chain(&self.outage);
        refusals.filter(|(_, at)| at.elapsed() < ASK_AGAIN).map(|(error, _)| error.clone()).next()
    }

    fn note(&mut self, id: SchemaId, error: RegistryError) {
        let refusal = (error, Instant::now());
        if matches!(refusal.0, RegistryError::Unavailable { .. }) {
            self.outage = Some(refusal);
            return;
        }
        if self.ids.len() >= MAX_LEARNED {
            self.ids.clear();
        }
        self.ids.insert(id, refusal);
    }
}

impl Codecs {
    /// Registers each contract under the subjects given with it (TopicNameStrategy: `<topic>-value`), by its Avro name
    /// with or without namespace, and from then on holds the subject to full transitive compatibility.
    ///
    /// # Errors
    /// What the registry answers; [`RegistryError::Invalid`] for a name that is no contract.
    pub async fn register(
        registry: Arc<dyn Registry>,
        subjects: &[(String, &'static str)],
    ) -> Result<Self, RegistryError> {
        let mut found = Vec::with_capacity(subjects.len());
        for (subject, name) in subjects {
            let (name, json) = contract(name)?;
            registry.set_compatibility(subject, Compatibility::FullTransitive).await?;
            found.push((name, json, registry.register(subject, json).await?));
        }
        Self::new(registry, found)
    }

    /// As [`Codecs::register`], for those who may only read: each subject must have its contract already.
    ///
    /// # Errors
    /// [`RegistryError::NoSubject`] and [`RegistryError::OtherVersions`], for the first subject that has it not; what the
    /// registry answers; [`RegistryError::Invalid`] for a name that is no contract.
    pub async fn lookup(
        registry: Arc<dyn Registry>,
        subjects: &[(String, &'static str)],
    ) -> Result<Self, RegistryError> {
        let mut found = Vec::with_capacity(subjects.len());
        for (subject, name) in subjects {
            let (name, json) = contract(name)?;
            found.push((name, json, look_up(&*registry, subject, name).await?));
        }
        Self::new(registry, found)
    }

    fn new(
        registry: Arc<dyn Registry>,
        found: Vec<(&'static str, &'static str, SchemaId)>,
    ) -> Result<Self, RegistryError> {
        let mut codecs: Vec<Codec> = Vec::new();
        let mut learned = HashMap::new();
        for (name, json, id) in found {
            // Confluent gives one schema one id whatever the subject; should another registry not, all can be read.
            if codecs.iter().any(|codec| codec.name == name) {
                learned.insert(id, Arc::new(Writer { name: name.to_owned(), schema: parse(json)? }));
            } else {
                codecs.push(Codec { name, id, schema: parse(json)? });
            }
        }
        let (learned, refused) = (RwLock::new(learned), Mutex::default());
        Ok(Self { inner: Arc::new(Inner { registry, codecs, learned, refused }) })
    }

    fn codec<T: Contract>(&self) -> Option<&Codec> {
        self.inner.codecs.iter().find(|codec| codec.name == T::NAME)
    }

    /// The value bytes of `record`.
    pub fn encode<T: Contract>(&self, record: &T) -> Result<Bytes, EncodeError> {
        thread_local! {
            /// Written to, then copied from into bytes of the exact size: one allocation a record.
            static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        /// A larger scratch is given back, so that one huge record does not stay in every thread.
        const KEPT: usize = 64 * 1024;

        let refused = |reason| EncodeError { record: T::NAME, reason };
        let codec = self.codec::<T>().ok_or_else(|| refused("its schema is not registered".to_owned()))?;
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            scratch.push(0);
            scratch.extend_from_slice(&codec.id.to_be_bytes());
            // Without buffers until fields come in another order than the schema's, which ours do not.
            let mut config = SerializerConfig::new(&codec.schema);
            serde_avro_fast::to_datum(record, &mut *scratch, &mut config)
                .map_err(|error| refused(error.to_string()))?;
            let value = Bytes::copy_from_slice(scratch);
            if scratch.capacity() > KEPT {
                *scratch = Vec::new();
            }
            Ok(value)
        })
    }

    /// The record in `value`, whichever known version of its schema wrote it.
    ///
    /// Fields that the writer did not have take their defaults; those that this build does not have are passed over.
    pub fn decode<T: Contract>(&self, value: &[u8]) -> Result<T, DecodeError> {
        let id = schema_id(value)?;
        if let Some(codec) = self.codec::<T>().filter(|codec| codec.id == id) {
            return read(&codec.schema, &value[PREFIX..]).map_err(|reason| unreadable::<T>(id, reason));
        }
        let writer = self.writer(id)?;
        if writer.name != T::NAME {
            return Err(unreadable::<T>(id, format!("it is an {}", writer.name)));
        }
        read(&writer.schema, &value[PREFIX..]).map_err(|reason| unreadable::<T>(id, reason))
    }

    /// The record in `value` as JSON, whatever contract it is of: for people to look at. Avro bytes that are not UTF-8
    /// are shown in base64.
    pub fn decode_json(&self, value: &[u8]) -> Result<serde_json::Value, DecodeError> {
        let id = schema_id(value)?;
        let unreadable = |reason| DecodeError::Record { record: "record", schema: id, reason };
        let Json(json) = if let Some(codec) = self.inner.codecs.iter().find(|codec| codec.id == id) {
            read(&codec.schema, &value[PREFIX..]).map_err(unreadable)?
        } else {
            read(&self.writer(id)?.schema, &value[PREFIX..]).map_err(unreadable)?
        };
        Ok(json)
    }

    fn writer(&self, id: SchemaId) -> Result<Arc<Writer>, DecodeError> {
        if let Some(writer) = self.inner.learned.read().get(&id) {
            return Ok(Arc::clone(writer));
        }
        // Another contract's current schema is known too: so that it is named in the error, not asked for again.
        let own = self.inner.codecs.iter().find(|codec| codec.id == id);
        own.and_then(|codec| codec.schema.json().parse().ok().map(|schema| (codec.name, schema)))
            .map(|(name, schema)| Arc::new(Writer { name: name.to_owned(), schema }))
            .ok_or(DecodeError::UnknownSchema(id))
    }

    fn knows(&self, id: SchemaId) -> bool {
        self.inner.codecs.iter().any(|codec| codec.id == id) || self.inner.learned.read().contains_key(&id)
    }

    /// Asks the registry for a schema id that was met in a record. However many ask at once, the registry is asked once;
    /// what it does not know, or while it does not answer, it is asked again after two seconds.
    pub async fn learn(&self, id: SchemaId) -> Result<(), RegistryError> {
        if self.knows(id) {
            return Ok(());
        }
        let mut refused = self.inner.refused.lock().await;
        if self.knows(id) {
            return Ok(()); // learned while this one waited
        }
        if let Some(error) = refused.find(id) {
            return Err(error);
        }
        let asked = self.ask(id).await;
        if let Err(error) = &asked {
            refused.note(id, error.clone());
        }
        asked
    }

    async fn ask(&self, id: SchemaId) -> Result<(), RegistryError> {
        let json = self.inner.registry.schema(id).await?;
        let writer = Arc::new(Writer { name: record_name(&json)?, schema: parse(&json)? });
        let mut learned = self.inner.learned.write();
        if learned.len() >= MAX_LEARNED {
            learned.clear();
        }
        learned.insert(id, writer);
        Ok(())
    }
}

/// The contract of that Avro name, with or without namespace: its full name and its schema.
fn contract(name: &str) -> Result<(&'static str, &'static str), RegistryError> {
    let known = records::CONTRACTS.iter().find(|(known, _)| *known == name || known.rsplit('.').next() == Some(name));
    known.copied().ok_or_else(|| RegistryError::Invalid { reason: format!("{name} is not a contract of this build") })
}

/// The id of a contract under a subject, which must be there already.
pub(crate) async fn look_up(registry: &dyn Registry, subject: &str, name: &str) -> Result<SchemaId, RegistryError> {
    let (record, json) = contract(name)?;
    registry.lookup(subject, json).await.map_err(|error| match error {
        RegistryError::NotFound { what: Missing::Subject(subject) } => RegistryError::NoSubject { subject },
        RegistryError::NotFound { .. } => RegistryError::OtherVersions { subject: subject.to_owned(), record },
        other => other,
    })
}

fn parse(json: &str) -> Result<Schema, RegistryError> {
    json.parse()
        .map_err(|error: serde_avro_fast::schema::SchemaError| RegistryError::Invalid { reason: error.to_string() })
}

/// The full name of the record that a schema describes.
fn record_name(json: &str) -> Result<String, RegistryError> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
        namespace: Option<String>,
    }
    let invalid = |error: serde_json::Error| RegistryError::Invalid { reason: format!("not a record: {error}") };
    let named: Named = serde_json::from_str(json).map_err(invalid)?;
    Ok(match named.namespace {
        Some(namespace) if !namespace.is_empty() && !named.name.contains('.') => format!("{namespace}.{}", named.name),
        _ => named.name,
    })
}

fn unreadable<T: Contract>(schema: SchemaId, reason: String) -> DecodeError {
    DecodeError::Record { record: T::NAME, schema, reason }
}

/// Reads one datum, all of it.
fn read<T: DeserializeOwned>(schema: &Schema, datum: &[u8]) -> Result<T, String> {
    let mut config = DeserializerConfig::new(schema);
    config.max_seq_size = MAX_ELEMENTS;
    let mut state = DeserializerState::with_config(SliceRead::new(datum), config);
    let record = T::deserialize(state.deserializer()).map_err(|error| error.to_string())?;
    match state.into_reader().fill_buf() {
        Ok([]) => Ok(record),
        Ok(rest) => Err(format!("{} bytes are left over", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}
