//! Lowering of TlsCertificate and TlsSessionTicketKeys.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use std::sync::Arc;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use leno_tls::{Identity, Source, TicketKey, TicketKeys};

use crate::config::lower::Lower;

/// Bytes and where they came from.
pub(super) fn source(field: &str, proto: Option<core::DataSource>, at: &mut Lower) -> Option<Source> {
    let mut proto = proto?;
    // It only concerns secrets that come by SDS: see `refers_to_files`.
    proto.watched_directory = None;
    let place = match &proto.specifier {
        Some(core::data_source::Specifier::Filename(path)) => path.clone(),
        _ => "<inline>".to_owned(),
    };
    let bytes = at.field(field, |at| crate::config::address::data_source(proto, at))?;
    Some(Source { bytes: bytes.to_vec(), place })
}

/// Lowers a TlsCertificate.
pub(super) fn certificate(proto: proto::TlsCertificate, at: &mut Lower) -> Option<Arc<Identity>> {
    let proto::TlsCertificate {
        certificate_chain,
        private_key,
        pkcs12,
        // It only concerns secrets that come by SDS: see `refers_to_files`.
        watched_directory: _,
        private_key_provider,
        password,
        ocsp_staple,
        signed_certificate_timestamp,
        tls_params,
    } = proto;
    at.unsupported("pkcs12", pkcs12.is_some());
    at.unsupported("private_key_provider", private_key_provider.is_some());
    at.unsupported("signed_certificate_timestamp", !signed_certificate_timestamp.is_empty());
    at.unsupported("tls_params", tls_params.is_some());
    if pkcs12.is_some() || private_key_provider.is_some() {
        return None;
    }
    if certificate_chain.is_none() && private_key.is_none() {
        at.error("either a certificate chain with a private key, or pkcs12, is required");
        return None;
    }
    if certificate_chain.is_none() {
        at.error_at("certificate_chain", "Failed to load incomplete certificate: certificate chain not set");
        return None;
    }
    if private_key.is_none() {
        at.error_at("private_key", "Failed to load incomplete private key: private key not set");
        return None;
    }
    let chain = source("certificate_chain", certificate_chain, at);
    let key = source("private_key", private_key, at);
    let staple = match ocsp_staple {
        Some(staple) => Some(source("ocsp_staple", Some(staple), at)?),
        None => None,
    };
    let password = match password {
        Some(password) => Some(source("password", Some(password), at)?),
        None => None,
    };
    let (chain, key) = (chain?, key?);
    let password = password.as_ref().map(|password| password.bytes.as_slice());
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    match Identity::load(&chain, &key, password, staple.as_ref(), &provider) {
        Ok(identity) => Some(Arc::new(identity)),
        Err(error) => {
            at.error(error.to_string());
            None
        }
    }
}

/// Lowers a TlsSessionTicketKeys.
pub(super) fn ticket_keys(proto: proto::TlsSessionTicketKeys, at: &mut Lower) -> Option<TicketKeys> {
    let proto::TlsSessionTicketKeys { keys } = proto;
    let count = keys.len();
    let mut index = 0;
    let keys: Vec<TicketKey> = at.each("keys", keys, |key, at| {
        let key = source("", Some(key), at)?;
        index += 1;
        match TicketKey::new(&key.bytes, &key.place) {
            Ok(key) => Some(key),
            Err(error) => {
                at.error(error);
                None
            }
        }
    });
    (keys.len() == count).then_some(TicketKeys::Given(keys))
}
