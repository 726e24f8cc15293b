//! The requests of one stream.

use tonic::Status;
use tonic::body::Body;

use crate::messages::Messages;
use crate::types::Mode;
use crate::wire::Request;

/// Largest request, bytes. A delta client that resumes states a name and a version per resource.
const MOST: usize = 64 << 20;

/// The same of callers that nobody knows: what istiod takes of everybody.
const MOST_OF_STRANGERS: usize = 4 << 20;

/// What a client says.
#[derive(Debug)]
pub(super) struct Requests {
    mode: Mode,
    messages: Messages,
}

impl Requests {
    /// `is_known`: whether the client has proven who it is.
    pub(super) fn new(mode: Mode, body: Body, is_known: bool) -> Self {
        let most = if is_known { MOST } else { MOST_OF_STRANGERS };
        Self { mode, messages: Messages::new(body, most) }
    }

    /// The next request; `None` if the client has ended its side. May be dropped and called again.
    ///
    /// # Errors
    /// If the body cannot be read, or is not made of requests.
    pub(super) async fn next(&mut self) -> Result<Option<Request>, Status> {
        let Some(message) = self.messages.next().await? else { return Ok(None) };
        let request = Request::decode(self.mode, message);
        request.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
