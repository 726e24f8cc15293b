//! What stands in a chain for a filter whose configuration did not come by ECDS: requests that it
//! would run for are answered with 500, and logged with the flag `NFCF`.

use super::{FilterConfig, Opening, RouteSettings, Step};
use crate::http::headers::HeaderMap;
use crate::http::reply::Reply;
use crate::http::stream::Stream;
use crate::telemetry::stream_info::ResponseFlags;

/// A filter without a configuration.
#[derive(Debug)]
pub(crate) struct Missing;

impl FilterConfig for Missing {
    fn on_request(
        &self,
        _stream: &mut Stream,
        _settings: Option<&RouteSettings>,
        _head: &mut HeaderMap,
        _end: bool,
    ) -> Opening {
        let reply = Reply::new(500, "", "").flag(ResponseFlags::NO_FILTER_CONFIG_FOUND);
        Opening::Done(Step::Reply(reply))
    }
}
