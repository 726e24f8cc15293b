//! `x-forwarded-client-cert`: what is told upstream of the client's certificate.

use std::fmt::Write;

use crate::http::headers::{HeaderMap, Known};
use crate::tls::TlsInfo;

/// `forward_client_cert_details`: what becomes of the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Forward {
    /// It is removed.
    #[default]
    Sanitize,
    /// It is kept as it is, if the client has shown a certificate.
    Keep,
    /// The client's certificate is added behind what is there.
    Append,
    /// The client's certificate takes its place.
    Set,
    /// It is kept as it is, whoever the client is.
    Always,
}

/// What becomes of the header, and what of the certificate is told
/// (`set_current_client_cert_details`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "these are the API's")]
pub(crate) struct ClientCertDetails {
    /// What becomes of the header.
    pub(crate) forward: Forward,
    /// The certificate.
    pub(crate) cert: bool,
    /// The chain.
    pub(crate) chain: bool,
    /// The subject.
    pub(crate) subject: bool,
    /// URIs of the subject alternative name.
    pub(crate) uri: bool,
    /// DNS names of the subject alternative name.
    pub(crate) dns: bool,
    /// The issuer.
    pub(crate) issuer: bool,
}

/// Sets, keeps or removes the header.
pub(crate) fn forward(details: &ClientCertDetails, session: Option<&TlsInfo>, head: &mut HeaderMap) {
    if details.forward == Forward::Always {
        return;
    }
    let session = session.filter(|session| session.peer.is_some());
    let Some(session) = session.filter(|_| details.forward != Forward::Sanitize) else {
        head.remove(Known::XForwardedClientCert);
        return;
    };
    if details.forward == Forward::Keep {
        return;
    }
    let mut value = details.describe(session);
    if details.forward == Forward::Append
        && let Some(before) = head.get_str(Known::XForwardedClientCert).filter(|before| !before.is_empty())
    {
        value.insert(0, ',');
        value.insert_str(0, before);
    }
    head.set(Known::XForwardedClientCert, value.as_bytes());
}

impl ClientCertDetails {
    /// One element of the header. Parts are told even if they are empty, in Envoy's order.
    fn describe(&self, session: &TlsInfo) -> String {
        let mut out = String::new();
        let mut part = |key: &str, value: &str| {
            let separator = if out.is_empty() { "" } else { ";" };
            let _ = write!(out, "{separator}{key}={value}");
        };
        let quoted = |text: &str| format!("\"{text}\"");
        if let Some(local) = &session.local {
            local.certificate().uris().for_each(|uri| part("By", uri));
        }
        let Some(peer) = &session.peer else { return out };
        part("Hash", &peer.sha256());
        if self.cert {
            part("Cert", &quoted(&peer.pem()));
        }
        if self.chain {
            part("Chain", &quoted(&peer.chain_pem()));
        }
        let Some(own) = peer.own() else { return out };
        if self.subject {
            part("Subject", &quoted(&own.subject_text()));
        }
        if self.issuer {
            part("Issuer", &quoted(&own.issuer_text()));
        }
        if self.uri {
            if own.uris().next().is_none() {
                part("URI", "");
            }
            own.uris().for_each(|uri| part("URI", uri));
        }
        if self.dns {
            own.dns_names().for_each(|name| part("DNS", name));
        }
        out
    }
}
