//! Lowering of Http2ProtocolOptions.

#![allow(deprecated, reason = "deprecated fields are lowered, or refused by name, like all others")]

use leno_api::proto::envoy::config::core::v3 as core;

use crate::cluster::{FloodLimits, Http2Settings, KeepaliveSettings};
use crate::config::lower::Lower;

/// Lowers Http2ProtocolOptions, of a connection manager or of a cluster.
pub(crate) fn http2_options(
    proto: Option<core::Http2ProtocolOptions>,
    at: &mut Lower,
) -> Option<Http2Settings> {
    let core::Http2ProtocolOptions {
        hpack_table_size,
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        allow_connect,
        allow_metadata,
        max_outbound_frames,
        max_outbound_control_frames,
        max_consecutive_inbound_frames_with_empty_payload,
        max_inbound_priority_frames_per_stream,
        max_inbound_window_update_frames_per_data_frame_sent,
        stream_error_on_invalid_http_messaging,
        override_stream_error_on_invalid_http_message,
        custom_settings_parameters,
        connection_keepalive,
        // Which of Envoy's codecs is used.
        use_oghttp2_codec: _,
        max_metadata_size,
        enable_huffman_encoding,
        max_header_field_size_kb,
        disallow_obs_text,
        stream_reset_burst,
        stream_reset_rate,
    } = proto.unwrap_or_default();
    at.unsupported("allow_metadata", allow_metadata);
    at.unsupported("max_metadata_size", max_metadata_size.is_some());
    at.unsupported("max_header_field_size_kb", max_header_field_size_kb.is_some());
    let named = [
        (1, "hpack_table_size", hpack_table_size.is_some()),
        (3, "max_concurrent_streams", max_concurrent_streams.is_some()),
        (4, "initial_stream_window_size", initial_stream_window_size.is_some()),
    ];
    let custom =
        at.field("custom_settings_parameters", |at| custom_settings(custom_settings_parameters, &named, at));
    // A parameter that has a name is obeyed however it was set.
    let of = |identifier: u16, value: Option<u32>, default: u32| {
        let custom = custom.iter().find(|(other, _)| *other == identifier).map(|(_, value)| *value);
        value.or(custom).unwrap_or(default)
    };
    let keepalive = at.optional("connection_keepalive", connection_keepalive, keepalive);
    Some(Http2Settings {
        hpack_table_size: of(1, hpack_table_size, 4096),
        max_concurrent_streams: of(3, max_concurrent_streams, 1024),
        stream_window: of(4, initial_stream_window_size, 16 << 20),
        connection_window: initial_connection_window_size.unwrap_or(24 << 20),
        allow_connect,
        huffman: enable_huffman_encoding.unwrap_or(true),
        ascii_only: disallow_obs_text.unwrap_or(false),
        stream_errors: override_stream_error_on_invalid_http_message
            .or(stream_error_on_invalid_http_messaging.then_some(true)),
        keepalive,
        custom: custom.into_iter().filter(|(identifier, _)| ![1, 3, 4].contains(identifier)).collect(),
        flood: FloodLimits {
            outbound_frames: max_outbound_frames.unwrap_or(10_000),
            outbound_control_frames: max_outbound_control_frames.unwrap_or(1_000),
            consecutive_empty_frames: max_consecutive_inbound_frames_with_empty_payload.unwrap_or(1),
            priority_frames_per_stream: max_inbound_priority_frames_per_stream.unwrap_or(100),
            window_updates_per_data_frame: max_inbound_window_update_frames_per_data_frame_sent.unwrap_or(10),
            reset_burst: stream_reset_burst.unwrap_or(1_000),
            reset_rate: stream_reset_rate.unwrap_or(33),
        },
    })
}

fn keepalive(proto: core::KeepaliveSettings, at: &mut Lower) -> Option<KeepaliveSettings> {
    let core::KeepaliveSettings { interval, timeout, interval_jitter, connection_idle_interval } = proto;
    Some(KeepaliveSettings {
        interval: at.duration("interval", interval),
        timeout: at.duration("timeout", timeout)?,
        jitter: interval_jitter.map_or(15.0, |jitter| jitter.value),
        idle_interval: at.duration("connection_idle_interval", connection_idle_interval),
    })
}

/// SETTINGS that have no field of their own; those that have one may come from one place only.
fn custom_settings(
    protos: Vec<core::http2_protocol_options::SettingsParameter>,
    named: &[(u32, &str, bool)],
    at: &mut Lower,
) -> Vec<(u16, u32)> {
    let mut custom: Vec<(u16, u32)> = Vec::new();
    for proto in protos {
        let core::http2_protocol_options::SettingsParameter { identifier, value } = proto;
        let (Some(identifier), Some(value)) = (identifier, value) else { continue };
        match identifier {
            2 if value == 1 => at.error(
                "server push is not supported by Envoy and can not be enabled via a SETTINGS parameter.",
            ),
            8 => at.error(
                "the \"allow_connect\" SETTINGS parameter must only be configured through the named field",
            ),
            _ => {}
        }
        if let Some((_, name, true)) = named.iter().find(|(other, ..)| *other == identifier) {
            at.error(format!(
                "the {{{name}}} HTTP/2 SETTINGS parameter(s) can not be configured through both named and custom parameters"
            ));
        }
        let limits = match identifier {
            3 => 1..=0x7fff_ffff,
            4 => 65_535..=0x7fff_ffff,
            5 => 1 << 14..=(1 << 24) - 1,
            _ => 0..=u32::MAX,
        };
        if !limits.contains(&value) {
            at.error(format!("{value} is no value of the SETTINGS parameter {identifier}"));
        }
        let Ok(identifier) = u16::try_from(identifier) else { continue };
        match custom.iter().find(|(other, _)| *other == identifier) {
            Some((_, other)) if *other != value => at.error(format!(
                "inconsistent HTTP/2 custom SETTINGS parameter(s) detected; identifiers = {{0x{identifier:02x}}}"
            )),
            Some(_) => {}
            None => custom.push((identifier, value)),
        }
    }
    custom
}
