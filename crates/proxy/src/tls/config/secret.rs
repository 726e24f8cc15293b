//! Secrets: references to them (SdsSecretConfig), and lowering of Secret.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use leno_base::Name;
use prost::Message;
use prost_types::Any;

use super::certificate::{certificate, ticket_keys};
use super::validation::validation;
use crate::config::lower::Lower;
use crate::config::source::{ResourceKey, config_source};
use crate::tls::secrets::{Secret, SecretRef};

/// A reference to a secret: one of the bootstrap's is there already.
pub(super) enum Reference {
    Static(Secret),
    Awaited(SecretRef),
}

/// Lowers an SdsSecretConfig.
pub(super) fn reference(proto: proto::SdsSecretConfig, at: &mut Lower) -> Option<Reference> {
    let proto::SdsSecretConfig { name, sds_config } = proto;
    match sds_config {
        None => {
            let secret = at.scope().secrets.get(name.as_str()).cloned();
            if secret.is_none() {
                at.error_at("name", format!("Unknown static secret: {name}"));
            }
            secret.map(Reference::Static)
        }
        Some(source) => at.field("sds_config", |at| {
            let source = config_source(source, at)?;
            let key = ResourceKey { name: name.into(), origin: source.origin };
            Some(Reference::Awaited(SecretRef { key, timeout: source.initial_fetch_timeout }))
        }),
    }
}

/// Lowers a Secret that comes by SDS.
pub(crate) fn dynamic_secret(source: &Any, at: &mut Lower) -> Option<Secret> {
    let proto: proto::Secret = at.unpack(source)?;
    secret(proto, at).map(|(_, secret)| secret)
}

/// Files that parts of a secret lie in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretFiles {
    /// The files, in order.
    pub(crate) paths: Vec<PathBuf>,
    /// `watched_directory`: the only folder that is watched; `watch_modify`.
    directory: Option<(PathBuf, bool)>,
}

impl SecretFiles {
    /// The folders that are watched: anything that is moved into them may have changed the files,
    /// or is written there in place, if so said.
    pub(crate) fn folders(&self) -> BTreeSet<(PathBuf, bool)> {
        if let Some(directory) = &self.directory {
            return BTreeSet::from([directory.clone()]);
        }
        let folders = self.paths.iter().filter_map(|path| path.parent());
        let here = |folder: &Path| match folder.as_os_str().is_empty() {
            true => (PathBuf::from("."), false),
            false => (folder.to_owned(), false),
        };
        folders.map(here).collect()
    }
}

/// The files that parts of a Secret lie in; `None`: there are none.
pub(crate) fn secret_files(source: &Any) -> Option<SecretFiles> {
    use proto::secret::Type;
    let secret = proto::Secret::decode(source.value.as_slice()).ok()?;
    let file = |source: &Option<core::DataSource>| match source.as_ref()?.specifier.as_ref()? {
        core::data_source::Specifier::Filename(path) => Some(PathBuf::from(path)),
        _ => None,
    };
    let (sources, directory) = match &secret.r#type {
        Some(Type::TlsCertificate(certificate)) => {
            let proto::TlsCertificate {
                certificate_chain, private_key, ocsp_staple, password, pkcs12, ..
            } = certificate;
            let sources = [certificate_chain, private_key, ocsp_staple, password, pkcs12].map(file);
            (sources.into_iter().flatten().collect(), &certificate.watched_directory)
        }
        Some(Type::ValidationContext(context)) => {
            let sources = [&context.trusted_ca, &context.crl].map(file);
            (sources.into_iter().flatten().collect(), &context.watched_directory)
        }
        Some(Type::SessionTicketKeys(keys)) => {
            (keys.keys.iter().filter_map(|key| file(&Some(key.clone()))).collect(), &None)
        }
        Some(Type::GenericSecret(_)) | None => (Vec::new(), &None),
    };
    let directory =
        directory.as_ref().map(|directory| (PathBuf::from(&directory.path), directory.watch_modify));
    (!sources.is_empty()).then_some(SecretFiles { paths: sources, directory })
}

/// Lowers a Secret.
pub(crate) fn secret(proto: proto::Secret, at: &mut Lower) -> Option<(Name, Secret)> {
    use proto::secret::Type;
    let proto::Secret { name, r#type } = proto;
    let secret = match r#type {
        Some(Type::TlsCertificate(proto)) => {
            Secret::Certificate(at.field("tls_certificate", |at| certificate(proto, at))?)
        }
        Some(Type::ValidationContext(proto)) => {
            let rules = at.field("validation_context", |at| validation(proto, at))?;
            Secret::Validation(Arc::new(rules))
        }
        Some(Type::SessionTicketKeys(proto)) => {
            Secret::TicketKeys(at.field("session_ticket_keys", |at| ticket_keys(proto, at))?)
        }
        Some(Type::GenericSecret(_)) => {
            at.unsupported("generic_secret", true);
            return None;
        }
        None => {
            at.error("Secret type not implemented");
            return None;
        }
    };
    Some((name.into(), secret))
}
