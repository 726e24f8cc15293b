//! envoy.filters.network.set_filter_state: leaves objects made of a format string in a
//! connection's filter state.

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use leno_api::proto::envoy::extensions::filters::network::set_filter_state::v3 as proto;
use prost_types::Any;

use super::{NetworkFilter, NetworkFilterConfig, NetworkStep};
use crate::config::lower::Lower;
use crate::http::filters::set_filter_state::{StateValue, value};
use crate::telemetry::stream_info::{ConnectionInfo, StreamInfo};
use crate::worker::Worker;

/// Config.
#[derive(Debug)]
struct SetFilterState(Arc<Values>);

#[derive(Debug)]
struct Values {
    /// `on_new_connection`, and `on_downstream_tls_handshake`: filters run when it is done.
    connection: Vec<StateValue>,
    handshake: Vec<StateValue>,
    /// `on_downstream_data`
    data: Vec<StateValue>,
}

impl NetworkFilterConfig for SetFilterState {
    fn open(&self, _: &Rc<Worker>) -> Option<Box<dyn NetworkFilter>> {
        Some(Box::new(Setting(Arc::clone(&self.0))))
    }
}

/// The filter at work on one connection.
struct Setting(Arc<Values>);

impl NetworkFilter for Setting {
    fn on_new_connection(&mut self, connection: &mut ConnectionInfo) -> NetworkStep {
        set(&self.0.connection, connection);
        if connection.tls.is_some() {
            set(&self.0.handshake, connection);
        }
        NetworkStep::Continue
    }

    fn wants_data(&self) -> bool {
        !self.0.data.is_empty()
    }

    fn on_data(&mut self, connection: &mut ConnectionInfo, _data: &[u8]) -> NetworkStep {
        set(&self.0.data, connection);
        NetworkStep::Continue
    }
}

fn set(values: &[StateValue], connection: &mut ConnectionInfo) {
    if values.is_empty() {
        return;
    }
    // What formats read is a stream; for a moment the connection is that of one.
    let (id, remote, local, started) =
        (connection.id, connection.remote, connection.local, connection.started);
    let whole = std::mem::replace(connection, ConnectionInfo::plain(id, remote, local, started));
    let wall = SystemTime::now() - started.elapsed();
    let mut info = StreamInfo::new(Rc::new(whole), None, started, wall);
    for value in values {
        value.set(&mut info, None);
    }
    let StreamInfo { connection: whole, filter_state, .. } = info;
    if let Ok(mut whole) = Rc::try_unwrap(whole) {
        whole.found.filter_state = filter_state;
        *connection = whole;
    }
}

/// Lowers a Config.
pub(super) fn lower(any: &Any, at: &mut Lower) -> Option<Arc<dyn NetworkFilterConfig>> {
    let proto::Config { on_new_connection, on_downstream_tls_handshake, on_downstream_data } =
        at.unpack(any)?;
    Some(Arc::new(SetFilterState(Arc::new(Values {
        connection: at.each("on_new_connection", on_new_connection, value),
        handshake: at.each("on_downstream_tls_handshake", on_downstream_tls_handshake, value),
        data: at.each("on_downstream_data", on_downstream_data, value),
    }))))
}
