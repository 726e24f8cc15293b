//! `http2.` stats: of the proxy as a whole for downstream, of each cluster for upstream.

use crate::telemetry::stats::stats_scope;

stats_scope! {
    /// `http2.` or `cluster.NAME.http2.`
    pub(crate) struct Http2Stats {
        counter dropped_headers_with_underscores;
        counter goaway_sent;
        counter header_overflow;
        counter headers_cb_no_stream;
        counter inbound_empty_frames_flood;
        counter inbound_priority_frames_flood;
        counter inbound_window_update_frames_flood;
        counter keepalive_timeout;
        counter metadata_empty_frames;
        counter outbound_control_flood;
        gauge outbound_control_frames_active;
        counter outbound_flood;
        gauge outbound_frames_active;
        gauge pending_send_bytes;
        counter requests_rejected_with_underscores_in_headers;
        counter rx_messaging_error;
        counter rx_reset;
        counter stream_refused_errors;
        gauge streams_active;
        counter trailers;
        counter tx_flush_timeout;
        counter tx_reset;
    }
}
