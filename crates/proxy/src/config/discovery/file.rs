//! Files with resources (PathConfigSource): a DiscoveryResponse each, read again whenever it is
//! replaced.

use std::path::Path;
use std::sync::Arc;

use leno_api::proto::envoy::service::discovery::v3::DiscoveryResponse;
use leno_api::yaml::{Dialect, Node, parse};
use leno_base::Name;
use leno_xds::wire::ReceivedSotw;
use leno_xds::{Resource, TypeUrl};
use prost::Message;
use tokio::sync::Notify;

use crate::config::source::FileSource;
use crate::config::watch::{Watched, Watches};

/// What lies in a file: its version and its resources.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) version: Name,
    pub(super) resources: Vec<Resource>,
}

/// Why there is nothing in it.
#[derive(Debug)]
pub(super) enum FileError {
    /// It cannot be read, or is no DiscoveryResponse (Envoy: `update_failure`).
    Unreadable(String),
    /// Its resources are malformed, or of another type (Envoy: `update_rejected`).
    Rejected(String),
}

/// Reads a file whose resources must all be of this type.
pub(super) fn read(path: &Path, type_url: &TypeUrl) -> Result<Content, FileError> {
    let name = path.display().to_string();
    let unreadable = |text: String| FileError::Unreadable(text);
    let bytes = std::fs::read(path).map_err(|error| unreadable(format!("{name}: {error}")))?;
    let wire = if path.extension().is_some_and(|extension| extension == "pb") {
        bytes
    } else {
        let text = String::from_utf8(bytes).map_err(|_| unreadable(format!("{name}: it is not UTF-8")))?;
        let dialect = if name.ends_with(".json") { Dialect::Json } else { Dialect::Envoy };
        let documents =
            parse(&text, dialect).map_err(|error| unreadable(error.in_file(&name).to_string()))?;
        // Nothing is no set of resources, not even an empty one: a file that was cut off.
        if documents.first().is_none_or(Node::is_null) {
            return Err(unreadable(format!("{name}: it is empty")));
        }
        // Deviation: unknown fields and values of a wrong type are counted as `update_rejected`, as
        // violated constraints are; Envoy counts them as `update_failure`.
        let response: Result<DiscoveryResponse, _> = leno_api::decode_text(&text, &name);
        response.map_err(|errors| FileError::Rejected(errors.to_string()))?.encode_to_vec()
    };
    let response = ReceivedSotw::decode(wire.as_slice());
    let response = response.map_err(|error| unreadable(format!("{name}: {error}")))?;
    let content = leno_xds::client::read_file(type_url, response);
    let (version, resources) = content.map_err(|error| FileError::Rejected(format!("{name}: {error}")))?;
    Ok(Content { version, resources })
}

/// Has `moved` notified whenever the file is to be read again.
///
/// # Errors
/// Why it cannot be watched.
pub(super) fn watch(watches: &Watches, file: &FileSource, moved: &Arc<Notify>) -> Result<Watched, String> {
    let watched = match &file.directory {
        Some(directory) => watches.watch(&directory.path, None, directory.modify, moved),
        None => watches.watch(folder(&file.path), file.path.file_name(), false, moved),
    };
    watched.map_err(|error| format!("cannot watch {}: {error}", file.path.display()))
}

/// The folder that a file lies in.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}
