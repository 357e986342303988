//! The mail of a digest, and its way to the mail server.

use std::time::Duration;

use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Mailboxes};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls as Encryption, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};

use super::counts::Counts;
use super::{Options, Smtp, Tls};

/// A digest cannot be mailed.
#[derive(Debug, thiserror::Error)]
pub(super) enum MailError {
    #[error("stages.digest.{option}: {reason}")]
    Option { option: &'static str, reason: String },
    #[error("the mail server did not take the digest: {0}")]
    Smtp(#[from] lettre::transport::smtp::Error),
    #[error("the digest is no mail: {0}")]
    Mail(#[from] lettre::error::Error),
}

/// Mails digests to those who are to get them.
pub(super) struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Mailboxes,
}

impl Mailer {
    /// Reads what the options name. It connects to nobody yet.
    pub(super) async fn new(options: &Options) -> Result<Self, MailError> {
        let wrong = |option, reason: &dyn std::fmt::Display| MailError::Option { option, reason: reason.to_string() };
        let from = options.from.parse().map_err(|error| wrong("from", &error))?;
        let mut to = Mailboxes::new();
        for address in &options.to {
            to.push(address.parse().map_err(|error| wrong("to", &error))?);
        }
        Ok(Self { transport: transport(&options.smtp).await?, from, to })
    }

    /// Returns when the server has taken it.
    pub(super) async fn send(&self, counts: &Counts) -> Result<(), MailError> {
        let mail = Message::builder()
            .from(self.from.clone())
            .mailbox(lettre::message::header::To::from(self.to.clone()))
            .subject(counts.subject())
            .header(ContentType::TEXT_PLAIN)
            .body(counts.text())?;
        self.transport.send(mail).await?;
        Ok(())
    }
}

async fn transport(smtp: &Smtp) -> Result<AsyncSmtpTransport<Tokio1Executor>, MailError> {
    let read = async |option, file: &std::path::Path| {
        let text = tokio::fs::read_to_string(file).await;
        text.map_err(|error| MailError::Option { option, reason: format!("cannot read {}: {error}", file.display()) })
    };
    let mut parameters = TlsParameters::builder(smtp.host.clone());
    if let Some(file) = &smtp.ca_file {
        let pem = read("smtp.ca_file", file).await?;
        let certificate = Certificate::from_pem(pem.as_bytes())
            .map_err(|error| MailError::Option { option: "smtp.ca_file", reason: error.to_string() })?;
        parameters = parameters.add_root_certificate(certificate);
    }
    let encryption = match smtp.tls {
        Tls::None => Encryption::None,
        Tls::Starttls => Encryption::Required(parameters.build()?),
        Tls::Tls => Encryption::Wrapper(parameters.build()?),
    };
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&smtp.host)
        .port(smtp.port)
        .tls(encryption)
        .timeout(Some(Duration::from_secs(smtp.timeout_s.max(1))));
    if !smtp.username.is_empty() {
        let password = match &smtp.password_file {
            Some(file) => read("smtp.password_file", file).await?.trim_end().to_owned(),
            None => smtp.password.expose().to_owned(),
        };
        transport = transport.credentials(Credentials::new(smtp.username.clone(), password));
    }
    Ok(transport.build())
}
