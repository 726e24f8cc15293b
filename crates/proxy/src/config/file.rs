//! Reading the bootstrap from a file and the command line, with errors that say where.

use std::path::Path;

use bytes::Bytes;
use leno_api::proto::envoy::config::bootstrap::v3::Bootstrap as Proto;
use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::yaml::{Dialect, Node, Position, Value, parse};
use leno_api::{Error, Errors};
use prost::{Message, Name};

use crate::config::bootstrap::{self, Bootstrap};
use crate::config::lower::{ConfigError, Lower};
use crate::config::wire::split;
use crate::options::Options;

/// The name of `--config-yaml` in errors.
const OVERLAY: &str = "--config-yaml";

/// Reads and lowers the bootstrap that the command line names.
///
/// # Errors
/// All reasons to refuse it, each with file, line, column and path where they are known.
pub(crate) fn load(options: &Options) -> Result<Bootstrap, Vec<String>> {
    let sources = read(options)?;
    let mut problems = Vec::new();
    let mut wire = Vec::new();
    for source in &sources {
        match decode(source, options.allow_unknown_static_fields) {
            // Messages are merged by joining their wire forms, as Envoy merges: scalars are
            // replaced, messages merged, lists appended.
            Ok(message) => wire.extend_from_slice(&message),
            Err(errors) => problems.extend(errors.iter().map(ToString::to_string)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    complete_node(&mut wire, options);
    let lowered = Lower::resource(|at| bootstrap::lower(wire.into(), at));
    lowered.map_err(|rejected| {
        // Read once more: until here the trees, which are large, were needed no longer.
        let trees: Vec<_> =
            sources.iter().filter_map(|source| Some((source.name.as_str(), tree(source)?))).collect();
        let mut errors: Vec<Error> = rejected.0.into_iter().map(|error| locate(error, &trees)).collect();
        errors.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        errors.iter().map(ToString::to_string).collect()
    })
}

/// What configuration is read from.
struct Source {
    name: String,
    content: Content,
}

enum Content {
    Text(String),
    /// A Bootstrap in wire form (`.pb`).
    Wire(Vec<u8>),
}

fn read(options: &Options) -> Result<Vec<Source>, Vec<String>> {
    let mut sources = Vec::new();
    if let Some(path) = &options.config_path {
        sources.push(read_file(path).map_err(|error| vec![error])?);
    }
    if let Some(text) = &options.config_yaml {
        sources.push(Source { name: OVERLAY.to_owned(), content: Content::Text(text.clone()) });
    }
    if sources.is_empty() {
        return Err(vec!["at least one of --config-path or --config-yaml should be non-empty".to_owned()]);
    }
    Ok(sources)
}

fn read_file(path: &Path) -> Result<Source, String> {
    let name = path.display().to_string();
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let bytes = std::fs::read(path).map_err(|error| format!("{name}: cannot read the file: {error}"))?;
    match extension.to_ascii_lowercase().as_str() {
        "pb" => Ok(Source { name, content: Content::Wire(bytes) }),
        "pb_text" => Err(format!("{name}: text format protobuf is not supported yet")),
        "yaml" | "yml" | "json" => match String::from_utf8(bytes) {
            Ok(text) => Ok(Source { name, content: Content::Text(text) }),
            Err(_) => Err(format!("{name}: the file is not UTF-8")),
        },
        _ => Err(format!("{name}: unknown file extension: expected .yaml, .yml, .json or .pb")),
    }
}

/// The tree of a source's text.
fn tree(source: &Source) -> Option<Node<'_>> {
    match &source.content {
        Content::Wire(_) => None,
        Content::Text(text) => parse(text, dialect(source)).ok()?.into_iter().next(),
    }
}

fn dialect(source: &Source) -> Dialect {
    if source.name.ends_with(".json") { Dialect::Json } else { Dialect::Envoy }
}

/// The wire form of a source.
fn decode(source: &Source, allow_unknown: bool) -> Result<Bytes, Errors> {
    let text = match &source.content {
        Content::Wire(bytes) => {
            let message = Proto::decode(bytes.as_slice());
            return message.map(|_| Bytes::copy_from_slice(bytes)).map_err(|error| {
                Error::new(Position::default(), "", error.to_string()).in_file(&source.name).into()
            });
        }
        Content::Text(text) => text,
    };
    let mut documents =
        parse(text, dialect(source)).map_err(|error| Errors::from(error.in_file(&source.name)))?.into_iter();
    let mut tree =
        documents.next().unwrap_or(Node { value: Value::Mapping(Vec::new()), position: Position::default() });
    if let Some(second) = documents.next() {
        let error = Error::new(second.position, "", "only one document is read from a file");
        return Err(error.in_file(&source.name).into());
    }
    loop {
        match leno_api::decode::to_wire_with_warnings(&Proto::full_name(), &tree, &source.name) {
            Ok(decoded) => {
                for warning in decoded.warnings {
                    tracing::warn!(target: "misc", "{warning}");
                }
                return Ok(decoded.message);
            }
            Err(errors) if allow_unknown => {
                let unknown: Vec<&Error> =
                    errors.iter().filter(|error| error.message == "unknown field").collect();
                // Leave them out and read again, as long as that helps.
                let places: Vec<Position> =
                    unknown.iter().map(|error| Position { line: error.line, column: error.column }).collect();
                if unknown.is_empty() || !remove(&mut tree, &places) {
                    return Err(errors);
                }
                for error in unknown {
                    tracing::warn!(target: "misc", "{error}");
                }
            }
            Err(errors) => return Err(errors),
        }
    }
}

/// Removes the entries whose keys are at these places; says whether there were any.
fn remove(node: &mut Node<'_>, places: &[Position]) -> bool {
    match &mut node.value {
        Value::Scalar(_) => false,
        Value::Sequence(items) => {
            let mut removed = false;
            for item in items {
                removed |= remove(item, places);
            }
            removed
        }
        Value::Mapping(entries) => {
            let before = entries.len();
            entries.retain(|entry| !places.contains(&entry.position));
            let mut removed = entries.len() != before;
            for entry in entries {
                removed |= remove(&mut entry.value, places);
            }
            removed
        }
    }
}

/// Fills in what the command line says of the node and the file does not.
fn complete_node(wire: &mut Vec<u8>, options: &Options) {
    const NODE: u32 = 1;
    let (nodes, _) = split(wire, NODE).unwrap_or_default();
    let mut node = core::Node::default();
    for place in nodes {
        // What cannot be decoded is refused when the whole is.
        let _ = node.merge(wire.get(place).unwrap_or_default());
    }
    let mut more = core::Node::default();
    if node.id.is_empty() {
        more.id.clone_from(&options.service_node);
    }
    if node.cluster.is_empty() {
        more.cluster.clone_from(&options.service_cluster);
    }
    if !options.service_zone.is_empty() && node.locality.is_none_or(|locality| locality.zone.is_empty()) {
        more.locality =
            Some(core::Locality { zone: options.service_zone.clone(), ..core::Locality::default() });
    }
    wire.extend(Proto { node: Some(more), ..Proto::default() }.encode_to_vec());
    // It is kept for /config_dump.
    wire.shrink_to_fit();
}

/// Finds the text that an error of lowering is about.
fn locate(error: ConfigError, trees: &[(&str, Node<'_>)]) -> Error {
    let ConfigError { path, message } = error;
    let exact = trees.iter().find_map(|(name, tree)| tree.locate(&path).map(|place| (*name, place)));
    let nearest = || trees.first().map(|(name, tree)| (*name, tree.locate_nearest(&path)));
    match exact.or_else(nearest) {
        Some((name, place)) => Error::new(place, path, message).in_file(name),
        None => Error::new(Position::default(), path, message),
    }
}
