//! `key_log`: the secrets of sessions, written to a file.

use std::sync::Arc;

use leno_api::proto::envoy::extensions::transport_sockets::tls::v3 as proto;
use rustls::KeyLog;

use crate::config::lower::Lower;

/// Lowers a TlsKeyLog.
pub(super) fn lower(proto: proto::TlsKeyLog, at: &mut Lower) -> Option<Arc<KeyLogFile>> {
    let proto::TlsKeyLog { path, local_address_range, remote_address_range } = proto;
    at.unsupported("local_address_range", !local_address_range.is_empty());
    at.unsupported("remote_address_range", !remote_address_range.is_empty());
    Some(Arc::new(KeyLogFile { path: path.into() }))
}

/// Writes the secrets of sessions to a file (NSS key log format), to decrypt recorded traffic.
#[derive(Debug)]
pub(crate) struct KeyLogFile {
    path: std::path::PathBuf,
}

impl KeyLog for KeyLogFile {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        use std::io::Write;
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let line = format!("{label} {} {}\n", hex(client_random), hex(secret));
        // It is for debugging: opening the file each time is no matter, and one that cannot be
        // written must not end the connection.
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&self.path);
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            tracing::warn!(target: "connection", path = %self.path.display(), %error, "cannot write the key log");
        }
    }
}
