//! Messages on the wire, for both sides.
//!
//! Requests are the generated types. Responses are not: the generated `Any` owns a `Vec<u8>`,
//! while here a resource's bytes are shared, with all other streams when sending and with the
//! receive buffer when receiving. Field numbers are those of
//! `envoy/service/discovery/v3/discovery.proto`.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use leno_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use leno_base::Name;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use prost::{DecodeError, Message};
use tonic::Status;
use tonic::codec::{EncodeBuf, Encoder};

use crate::types::{Mode, Resource, TypeUrl};

/// A request of either variant.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// State of the world.
    Sotw(DiscoveryRequest),
    /// Incremental.
    Delta(DeltaDiscoveryRequest),
}

/// A response as the server makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Which message this becomes.
    pub mode: Mode,
    /// The type of all resources in it.
    pub type_url: TypeUrl,
    /// `version_info` or `system_version_info`.
    pub version: Name,
    /// Identifies the response on its stream.
    pub nonce: Name,
    /// Added and changed resources, or all of them (SotW of LDS and CDS).
    pub resources: Vec<Resource>,
    /// Names of what is gone. Always empty in SotW.
    pub removed: Vec<Name>,
    /// Names that resources were asked for by other than their own, by their own. Always empty in SotW.
    pub aliases: BTreeMap<Name, Vec<Name>>,
    /// `control_plane.identifier`; not sent when empty.
    pub control_plane: Name,
    /// The bodies of the resources are encoded `Any`s, which say of which type they are; else each
    /// is of the type of the response.
    pub packed: bool,
}

/// A response as the client reads it.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    /// State of the world.
    Sotw(ReceivedSotw),
    /// Incremental.
    Delta(ReceivedDelta),
}

/// The part of `google.protobuf.Any` that counts, with shared bytes.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Any {
    /// The type of the message in `value`.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// What the client reads of a `DiscoveryResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReceivedSotw {
    /// The version of the whole.
    #[prost(string, tag = "1")]
    pub version_info: String,
    /// The resources.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Any>,
    /// The type that each of them must have.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be repeated when acknowledging.
    #[prost(string, tag = "5")]
    pub nonce: String,
}

/// What the client reads of a `DeltaDiscoveryResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReceivedDelta {
    /// For people to read.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// Added and changed resources.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<ReceivedResource>,
    /// The type that each of them must have.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be repeated when acknowledging.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names of what is gone or does not exist.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// What the client reads of a `envoy.service.discovery.v3.Resource`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReceivedResource {
    /// Version of this resource.
    #[prost(string, tag = "1")]
    pub version: String,
    /// The resource; absent in a heartbeat, which only prolongs the time to live.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Name of the resource.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Other names of the resource: those that it was asked for by (VHDS).
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
    /// How long it lives unless it is sent again.
    #[prost(message, optional, tag = "6")]
    pub ttl: Option<prost_types::Duration>,
}

impl Request {
    /// Which variant this is.
    pub fn mode(&self) -> Mode {
        match self {
            Self::Sotw(_) => Mode::Sotw,
            Self::Delta(_) => Mode::Delta,
        }
    }

    /// The type of resource that it is about, as sent.
    pub fn type_url(&self) -> &str {
        match self {
            Self::Sotw(request) => &request.type_url,
            Self::Delta(request) => &request.type_url,
        }
    }

    /// Fills in the type where it was left out, as it may be on a stream for one type.
    pub(crate) fn set_default_type(&mut self, type_url: &TypeUrl) {
        let field = match self {
            Self::Sotw(request) => &mut request.type_url,
            Self::Delta(request) => &mut request.type_url,
        };
        if field.is_empty() {
            *field = type_url.to_string();
        }
    }

    fn encode(&self, buffer: &mut impl BufMut) -> Result<(), prost::EncodeError> {
        match self {
            Self::Sotw(request) => request.encode(buffer),
            Self::Delta(request) => request.encode(buffer),
        }
    }

    pub(crate) fn decode(mode: Mode, buffer: impl Buf) -> Result<Self, DecodeError> {
        Ok(match mode {
            Mode::Sotw => Self::Sotw(DiscoveryRequest::decode(buffer)?),
            Mode::Delta => Self::Delta(DeltaDiscoveryRequest::decode(buffer)?),
        })
    }
}

impl Received {
    /// Reads a response; the resources share the buffer's memory where it allows that.
    pub fn decode(mode: Mode, buffer: impl Buf) -> Result<Self, DecodeError> {
        Ok(match mode {
            Mode::Sotw => Self::Sotw(ReceivedSotw::decode(buffer)?),
            Mode::Delta => Self::Delta(ReceivedDelta::decode(buffer)?),
        })
    }
}

impl Response {
    /// Writes the `DiscoveryResponse` or `DeltaDiscoveryResponse`.
    pub fn encode(&self, buffer: &mut impl BufMut) {
        put(buffer, 1, self.version.as_bytes());
        for resource in &self.resources {
            self.encode_resource_head(resource, buffer);
            buffer.put_slice(&resource.body);
            self.encode_resource_tail(resource, buffer);
        }
        self.encode_tail(buffer);
    }

    /// Everything of a resource that comes before its body.
    fn encode_resource_head(&self, resource: &Resource, buffer: &mut impl BufMut) {
        let type_url = self.type_url.as_str();
        put_head(buffer, 2, self.resource_len(resource));
        if self.mode == Mode::Delta {
            put(buffer, 1, resource.version.as_bytes());
            put_head(buffer, 2, self.any_len(resource));
        }
        if self.packed {
            return;
        }
        put(buffer, 1, type_url.as_bytes());
        if !resource.body.is_empty() {
            put_head(buffer, 2, resource.body.len());
        }
    }

    /// What comes behind it.
    fn encode_resource_tail(&self, resource: &Resource, buffer: &mut impl BufMut) {
        if self.mode == Mode::Delta {
            put(buffer, 3, resource.name.as_bytes());
            for alias in self.aliases_of(resource) {
                put_head(buffer, 4, alias.len());
                buffer.put_slice(alias.as_bytes());
            }
        }
    }

    fn aliases_of(&self, resource: &Resource) -> &[Name] {
        // Hardly any response has any.
        let none = self.aliases.is_empty();
        let found = if none { None } else { self.aliases.get(&resource.name) };
        found.map(Vec::as_slice).unwrap_or_default()
    }

    /// Everything behind the resources.
    fn encode_tail(&self, buffer: &mut impl BufMut) {
        put(buffer, 4, self.type_url.as_str().as_bytes());
        put(buffer, 5, self.nonce.as_bytes());
        if self.mode == Mode::Delta {
            for name in &self.removed {
                put_head(buffer, 6, name.len());
                buffer.put_slice(name.as_bytes());
            }
        }
        if !self.control_plane.is_empty() {
            put_head(buffer, self.control_plane_tag(), len(1, self.control_plane.as_bytes()));
            put(buffer, 1, self.control_plane.as_bytes());
        }
    }

    /// How many bytes [`Response::encode`] writes.
    pub fn encoded_len(&self) -> usize {
        let type_url = self.type_url.as_str();
        let resources: usize =
            self.resources.iter().map(|resource| delimited_len(2, self.resource_len(resource))).sum();
        let removed: usize = match self.mode {
            Mode::Sotw => 0,
            Mode::Delta => self.removed.iter().map(|name| delimited_len(6, name.len())).sum(),
        };
        let control_plane = match self.control_plane.len() {
            0 => 0,
            _ => delimited_len(self.control_plane_tag(), len(1, self.control_plane.as_bytes())),
        };
        len(1, self.version.as_bytes())
            + resources
            + len(4, type_url.as_bytes())
            + len(5, self.nonce.as_bytes())
            + removed
            + control_plane
    }

    /// Length of one element of `resources`: an `Any`, or a `Resource` around one.
    fn resource_len(&self, resource: &Resource) -> usize {
        let any = self.any_len(resource);
        match self.mode {
            Mode::Sotw => any,
            Mode::Delta => {
                let aliases = self.aliases_of(resource).iter();
                len(1, resource.version.as_bytes())
                    + delimited_len(2, any)
                    + len(3, resource.name.as_bytes())
                    + aliases.map(|alias| delimited_len(4, alias.len())).sum::<usize>()
            }
        }
    }

    fn any_len(&self, resource: &Resource) -> usize {
        if self.packed { resource.body.len() } else { any_len(self.type_url.as_str(), &resource.body) }
    }

    fn control_plane_tag(&self) -> u32 {
        match self.mode {
            Mode::Sotw => 6,
            Mode::Delta => 7,
        }
    }
}

/// A response on its way as a gRPC message, in pieces. What is not sent yet is not encoded yet, and
/// large resources are not copied at all: a slow client costs little more than the list of what it
/// is to get.
#[derive(Debug)]
pub(crate) struct Pieces {
    response: Response,
    next: Next,
}

/// What the next piece begins with.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// The prefix of the message, then its first field.
    Start,
    /// A resource, or if there are no more, what is behind them.
    Resource(usize),
    /// The body of a large resource, and nothing else.
    Body(usize),
    /// What comes behind the body of a resource.
    Tail(usize),
    Nothing,
}

/// How large a piece is that is copied together, about; a frame of HTTP/2 is as large.
const PIECE: usize = 16 * 1024;

/// From this size on a resource's body is a piece of its own.
const LARGE: usize = 8 * 1024;

impl Pieces {
    pub(crate) fn new(response: Response) -> Self {
        Self { response, next: Next::Start }
    }

    /// The next piece, which is not empty.
    pub(crate) fn take(&mut self) -> Option<Bytes> {
        let mut buffer = BytesMut::new();
        while buffer.len() < PIECE {
            match self.next {
                Next::Start => {
                    let length = self.response.encoded_len();
                    buffer.reserve(PIECE.min(length + 5));
                    buffer.put_u8(0);
                    // What is longer than gRPC can say does not fit into memory either.
                    buffer.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
                    put(&mut buffer, 1, self.response.version.as_bytes());
                    self.next = Next::Resource(0);
                }
                Next::Resource(at) => match self.response.resources.get(at) {
                    Some(resource) => {
                        self.response.encode_resource_head(resource, &mut buffer);
                        if resource.body.len() >= LARGE {
                            self.next = Next::Body(at);
                            break;
                        }
                        buffer.put_slice(&resource.body);
                        self.next = Next::Tail(at);
                    }
                    None => {
                        self.response.encode_tail(&mut buffer);
                        self.next = Next::Nothing;
                    }
                },
                Next::Body(at) => {
                    self.next = Next::Tail(at);
                    return self.response.resources.get(at).map(|resource| resource.body.clone());
                }
                Next::Tail(at) => {
                    if let Some(resource) = self.response.resources.get(at) {
                        self.response.encode_resource_tail(resource, &mut buffer);
                    }
                    self.next = Next::Resource(at + 1);
                }
                Next::Nothing => break,
            }
        }
        (!buffer.is_empty()).then(|| buffer.freeze())
    }
}

/// The value of string field 1 of an encoded message. Every resource type that SotW carries
/// without a name beside it (clusters, listeners, routes, assignments, secrets, ...) has its name
/// there. `None` when the bytes are no message; an absent field is an empty name.
pub fn peek_name(body: &Bytes) -> Option<Name> {
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(body.clone()).ok().map(|named| Name::from(named.name))
}

fn any_len(type_url: &str, body: &Bytes) -> usize {
    len(1, type_url.as_bytes()) + len(2, body)
}

fn delimited_len(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

fn len(tag: u32, bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { delimited_len(tag, bytes.len()) }
}

fn put_head(buffer: &mut impl BufMut, tag: u32, length: usize) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(length as u64, buffer);
}

/// A field with proto3's implicit presence: nothing is written for an empty value.
fn put(buffer: &mut impl BufMut, tag: u32, bytes: &[u8]) {
    if !bytes.is_empty() {
        put_head(buffer, tag, bytes.len());
        buffer.put_slice(bytes);
    }
}

/// Writes what the client says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientCodec;

impl Encoder for ClientCodec {
    type Item = Request;
    type Error = Status;

    fn encode(&mut self, request: Request, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use leno_api::proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};

    use super::*;

    fn response(mode: Mode) -> Response {
        Response {
            mode,
            type_url: TypeUrl::Cluster,
            version: Name::new("v7"),
            nonce: Name::new("n1"),
            resources: vec![
                Resource::new(Name::new("a"), Name::new("1"), Bytes::from_static(b"\x0a\x01a")),
                Resource::new(Name::new(""), Name::new(""), Bytes::new()),
                Resource::new(Name::new("big"), Name::new("2"), vec![b'x'; 300].into()),
            ],
            removed: vec![Name::new("gone"), Name::new("")],
            aliases: BTreeMap::from([(Name::new("a"), vec![Name::new("x"), Name::new("yy")])]),
            control_plane: Name::new("leno"),
            packed: false,
        }
    }

    fn encode(response: &Response) -> Vec<u8> {
        let mut bytes = Vec::new();
        response.encode(&mut bytes);
        assert_eq!(bytes.len(), response.encoded_len());
        bytes
    }

    #[test]
    fn sotw_responses_are_what_the_generated_type_writes() {
        let bytes = encode(&response(Mode::Sotw));
        let generated = DiscoveryResponse::decode(bytes.as_slice()).unwrap();
        assert_eq!(generated.encode_to_vec(), bytes);
        assert_eq!(generated.version_info, "v7");
        assert_eq!(generated.nonce, "n1");
        assert_eq!(generated.control_plane.unwrap().identifier, "leno");
        assert_eq!(generated.resources.len(), 3);
        assert!(generated.resources.iter().all(|any| any.type_url == TypeUrl::Cluster.as_str()));
        assert_eq!(generated.resources[2].value, vec![b'x'; 300]);
    }

    #[test]
    fn delta_responses_are_what_the_generated_type_writes() {
        let bytes = encode(&response(Mode::Delta));
        let generated = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
        assert_eq!(generated.encode_to_vec().len(), bytes.len());
        assert_eq!(generated.removed_resources, ["gone", ""]);
        assert_eq!(generated.control_plane.unwrap().identifier, "leno");
        let names: Vec<_> = generated.resources.iter().map(|resource| resource.name.as_str()).collect();
        assert_eq!(names, ["a", "", "big"]);
        let last = generated.resources[2].resource.as_ref().unwrap();
        assert_eq!((last.type_url.as_str(), last.value.len()), (TypeUrl::Cluster.as_str(), 300));
        assert_eq!(generated.resources[2].version, "2");
        let aliases: Vec<&[String]> =
            generated.resources.iter().map(|resource| resource.aliases.as_slice()).collect();
        assert_eq!(aliases, [&["x".to_owned(), "yy".to_owned()][..], &[], &[]]);
    }

    #[test]
    fn pieces_are_the_whole_and_share_what_is_large() {
        for mode in [Mode::Sotw, Mode::Delta] {
            let mut response = response(mode);
            let large = Bytes::from(vec![b'l'; 3 * LARGE]);
            let sizes = [0, 1, 300, LARGE - 1, LARGE, 20_000, 5];
            for (index, size) in sizes.into_iter().enumerate() {
                let name = Name::from(format!("r{index}"));
                response.resources.push(Resource::new(name, Name::new("1"), vec![b'x'; size].into()));
            }
            response.resources.push(Resource::new(Name::new("l"), Name::new("1"), large.clone()));
            response.resources.extend((0..100).map(|index| {
                Resource::new(Name::from(format!("s{index}")), Name::new("1"), vec![b'y'; 400].into())
            }));
            let whole = encode(&response);
            let (mut pieces, mut bytes) = (Pieces::new(response), Vec::new());
            let mut shared = false;
            while let Some(piece) = pieces.take() {
                assert!(!piece.is_empty() && piece.len() <= 3 * LARGE);
                shared |= piece.as_ptr() == large.as_ptr();
                bytes.extend_from_slice(&piece);
            }
            assert!(shared);
            assert_eq!(
                bytes.get(..5),
                Some([&[0_u8][..], &(whole.len() as u32).to_be_bytes()].concat().as_slice())
            );
            assert_eq!(bytes.get(5..), Some(whole.as_slice()));
        }
    }

    #[test]
    fn received_resources_share_the_buffer() {
        for mode in [Mode::Sotw, Mode::Delta] {
            let buffer = Bytes::from(encode(&response(mode)));
            let value = match Received::decode(mode, buffer.clone()).unwrap() {
                Received::Sotw(received) => received.resources[2].value.clone(),
                Received::Delta(received) => received.resources[2].resource.clone().unwrap().value,
            };
            assert_eq!(value.len(), 300);
            assert!(buffer.as_ptr_range().contains(&value.as_ptr()));
        }
    }

    #[test]
    fn names_are_field_one() {
        assert_eq!(peek_name(&Bytes::from_static(b"\x12\x01z\x0a\x02ab")).unwrap(), "ab");
        assert_eq!(peek_name(&Bytes::new()).unwrap(), "");
        assert_eq!(peek_name(&Bytes::from_static(b"\x0a\x09short")), None);
    }
}
