//! A control plane of a few lines: one state of resources, pushed to every stream.

use std::collections::BTreeMap;
use std::time::Duration;

use leno_base::Name;
use leno_xds::server::grpc::{DiscoveryService, Sender, StreamEvent, StreamId};
use leno_xds::server::{Event, Resources, Scope, Stream};
use leno_xds::{Resource, TypeUrl};
use tokio::sync::mpsc;

/// What the test is told.
#[derive(Debug)]
pub(crate) enum Seen {
    /// A stream began, with the id of its node.
    Connected(String),
    /// What a request said.
    Event(Event),
    /// A response went out: type, names of what was added, what was removed.
    Sent(TypeUrl, Vec<Name>, Vec<Name>),
    /// A stream ended.
    Closed,
}

#[derive(Debug)]
enum Order {
    Set(TypeUrl, Vec<Resource>),
    CloseStreams,
}

/// The test's handle. Dropping it ends the control plane.
pub(crate) struct ControlPlane {
    orders: mpsc::UnboundedSender<Order>,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl ControlPlane {
    /// Starts the control loop; the service is to be put into a server.
    pub(crate) fn start() -> (Self, DiscoveryService) {
        let (events, incoming) = mpsc::channel(8);
        let (orders, received) = mpsc::unbounded_channel();
        let (report, seen) = mpsc::unbounded_channel();
        let state = Loop { report, streams: BTreeMap::new(), resources: BTreeMap::new(), revision: 0 };
        tokio::spawn(state.run(incoming, received));
        (Self { orders, seen }, DiscoveryService::new(events))
    }

    /// Replaces all resources of a type.
    pub(crate) fn set(&self, type_url: TypeUrl, resources: Vec<Resource>) {
        self.orders.send(Order::Set(type_url, resources)).expect("the control loop runs");
    }

    /// Ends all streams.
    pub(crate) fn close_streams(&self) {
        self.orders.send(Order::CloseStreams).expect("the control loop runs");
    }

    /// Waits until `wanted` is true of something seen, and drops what came before.
    pub(crate) async fn wait_for(&mut self, what: &str, mut wanted: impl FnMut(&Seen) -> bool) -> Seen {
        let mut before = Vec::new();
        let search = async {
            loop {
                let seen = self.seen.recv().await.expect("the control loop runs");
                if wanted(&seen) {
                    return seen;
                }
                before.push(format!("{seen:?}"));
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), search).await {
            Ok(seen) => seen,
            Err(_) => panic!("no {what}; seen:\n{}", before.join("\n")),
        }
    }

    /// Waits for the acknowledgement of a type; a rejection on the way is a failure.
    pub(crate) async fn wait_for_ack(&mut self, wanted: &TypeUrl) {
        self.wait_for(wanted.short(), |seen| match seen {
            Seen::Event(Event::Ack { type_url, .. }) => type_url == wanted,
            Seen::Event(Event::Nack { message, .. }) => panic!("rejected: {message}"),
            _ => false,
        })
        .await;
    }
}

struct Loop {
    report: mpsc::UnboundedSender<Seen>,
    streams: BTreeMap<StreamId, (Stream, Sender)>,
    resources: BTreeMap<TypeUrl, Resources>,
    revision: u64,
}

impl Loop {
    async fn run(
        mut self,
        mut events: mpsc::Receiver<StreamEvent>,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) {
        loop {
            tokio::select! {
                Some(event) = events.recv() => self.on_event(event),
                order = orders.recv() => match order {
                    Some(order) => self.on_order(order),
                    None => return,
                },
            }
            self.push();
        }
    }

    fn on_event(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Connected(connected) => {
                let node = connected.node.map(|node| node.id).unwrap_or_default();
                let stream = Stream::new(connected.mode, Name::new("test"));
                self.streams.insert(connected.id, (stream, connected.sender));
                self.tell(Seen::Connected(node));
            }
            StreamEvent::Request { id, request } => {
                let Some((stream, _)) = self.streams.get_mut(&id) else { return };
                for event in stream.on_request(*request) {
                    self.tell(Seen::Event(event));
                }
            }
            StreamEvent::Ready { .. } => {}
            StreamEvent::Closed { id, .. } => {
                self.streams.remove(&id);
                self.tell(Seen::Closed);
            }
        }
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Set(type_url, resources) => {
                self.revision += 1;
                let mut all: Resources = resources.into_iter().collect();
                all.set_version(Name::from(self.revision.to_string()));
                self.resources.insert(type_url, all);
            }
            Order::CloseStreams => self.streams.clear(),
        }
    }

    /// One response per stream and turn: the next turn comes with `Ready`.
    fn push(&mut self) {
        for (stream, sender) in self.streams.values_mut().filter(|(_, sender)| sender.is_ready()) {
            for (type_url, resources) in &self.resources {
                if let Some(response) = stream.push(type_url, resources, Scope::All) {
                    let names = response.resources.iter().map(|resource| resource.name.clone()).collect();
                    let seen = Seen::Sent(type_url.clone(), names, response.removed.clone());
                    // The test may have stopped listening.
                    let _ = self.report.send(seen);
                    sender.send(response).expect("it was ready");
                    break;
                }
            }
        }
    }

    fn tell(&self, seen: Seen) {
        // The test may have stopped listening.
        let _ = self.report.send(seen);
    }
}
