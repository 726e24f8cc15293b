//! A tracing provider: which headers it reads and writes, whether it samples, how it encodes spans
//! and where it sends them. Lowered once, the same for all connection managers that say the same.

use std::time::{Duration, SystemTime};

use leno_base::Name;

use crate::http::client::config::GrpcTarget;
use crate::http::headers::{HeaderMap, Known};
use crate::http::route::mutation::HeaderMutations;
use crate::telemetry::trace::context::SpanContext;
use crate::telemetry::trace::sampling::Share;
use crate::telemetry::trace::w3c::Invalid;
use crate::telemetry::trace::{ActiveSpan, Ended, Kind, b3, otlp, w3c, zipkin};

/// A provider.
#[derive(Debug)]
pub(crate) struct Tracer {
    /// Its configuration: those with the same are one, with one buffer on each worker.
    pub(crate) key: Box<[u8]>,
    /// What kind of one.
    pub(crate) dialect: Dialect,
    /// Where spans go.
    pub(crate) target: Target,
    /// So many spans are sent at once (`tracing.PROVIDER.min_flush_spans`, 5 by default).
    pub(crate) batch: usize,
    /// Fewer are sent that often (`tracing.PROVIDER.flush_interval_ms`, 5 s by default).
    pub(crate) interval: Duration,
    /// Those beyond so many that wait are dropped (`max_cache_size`, 1,024 by default).
    pub(crate) most: usize,
}

/// What kind of provider.
#[derive(Debug)]
pub(crate) enum Dialect {
    /// OpenTelemetryConfig.
    OpenTelemetry {
        /// `sampler`; `None`: Envoy's decision is taken.
        sampler: Option<Sampler>,
        /// What comes before the spans: the encoded resource, and the scope.
        resource: Box<[u8]>,
        /// See `resource`.
        scope: Box<[u8]>,
    },
    /// ZipkinConfig.
    Zipkin(Zipkin),
}

/// ZipkinConfig.
#[derive(Debug)]
pub(crate) struct Zipkin {
    /// `trace_id_128bit`
    pub(crate) wide: bool,
    /// `shared_span_context`: the span of who is asked has the identifier of who asks.
    pub(crate) shared: bool,
    /// `split_spans_for_request`
    pub(crate) split: bool,
    /// `trace_context_option`: W3C's headers too.
    pub(crate) w3c: bool,
    /// `timestamp_trace_ids`
    pub(crate) timestamps: bool,
    /// `collector_endpoint_version`: protobuf instead of JSON.
    pub(crate) proto: bool,
    /// `node.cluster`, which spans name as their service.
    pub(crate) service: Box<str>,
}

/// Where spans are sent.
#[derive(Debug)]
pub(crate) enum Target {
    /// `grpc_service`
    Grpc(GrpcTarget),
    /// `http_service`, `collector_service` or `collector_cluster`
    Http(HttpCollector),
}

/// A collector that is spoken HTTP with.
#[derive(Debug)]
pub(crate) struct HttpCollector {
    /// The cluster.
    pub(crate) cluster: Name,
    /// `:authority`
    pub(crate) authority: Box<str>,
    /// `:path`
    pub(crate) path: Box<str>,
    /// How long a report may take.
    pub(crate) timeout: Option<Duration>,
    /// `request_headers_to_add`
    pub(crate) headers: HeaderMutations,
    /// What a report is.
    pub(crate) content_type: &'static str,
    /// What the reporter calls itself, if it does.
    pub(crate) user_agent: Option<&'static str>,
}

/// A sampler of OpenTelemetry's.
#[derive(Debug)]
pub(crate) enum Sampler {
    /// `always_on`
    AlwaysOn,
    /// `trace_id_ratio_based`
    Ratio(Share),
    /// `parent_based`: as the parent; this one for those without.
    Parent(Box<Sampler>),
}

impl Sampler {
    /// Whether a span of a trace is sampled.
    pub(crate) fn samples(&self, trace: u128, parent: Option<bool>) -> bool {
        match self {
            Sampler::AlwaysOn => true,
            // As Envoy reads its first half.
            Sampler::Ratio(share) => share.has(((trace >> 64) as u64).swap_bytes()),
            Sampler::Parent(inner) => parent.unwrap_or_else(|| inner.samples(trace, None)),
        }
    }
}

impl Tracer {
    /// `split_spans_for_request` of Zipkin's.
    pub(crate) fn splits(&self) -> bool {
        matches!(&self.dialect, Dialect::Zipkin(zipkin) if zipkin.split)
    }

    /// Whether it is Zipkin's.
    pub(crate) fn is_zipkin(&self) -> bool {
        matches!(self.dialect, Dialect::Zipkin(_))
    }

    /// Makes the span of a request. `traced`: what was decided about it.
    ///
    /// # Errors
    /// The context that came along makes no sense.
    pub(crate) fn start(
        &self,
        head: &HeaderMap,
        kind: Kind,
        traced: bool,
        mut random: impl FnMut() -> u64,
    ) -> Result<ActiveSpan, Invalid> {
        let mut span = match &self.dialect {
            Dialect::OpenTelemetry { sampler, .. } => {
                let parent = w3c::read(head)?;
                let context = match parent {
                    Some(parent) => parent.child(random()),
                    None => {
                        let trace = u128::from(random()) << 64 | u128::from(random());
                        SpanContext { trace, span: random().max(1), parent: None, sampled: true }
                    }
                };
                let sampled = match sampler {
                    _ if !traced => false,
                    Some(sampler) => sampler.samples(context.trace, parent.map(|parent| parent.sampled)),
                    None => context.sampled,
                };
                let state = parent.filter(|_| sampled).and_then(|_| state(head));
                ActiveSpan {
                    context: SpanContext { sampled, ..context },
                    local: parent.is_none() && sampler.is_none(),
                    remote_parent: parent.is_some(),
                    single: false,
                    state,
                    host: None,
                }
            }
            Dialect::Zipkin(zipkin) => zipkin.start(head, kind, traced, random)?,
        };
        if span.context.sampled {
            span.host = Some(String::from_utf8_lossy(head.authority()).into());
        }
        Ok(span)
    }

    /// The context of a span that another one causes.
    pub(crate) fn child(&self, parent: SpanContext, kind: Kind, random: u64) -> SpanContext {
        match &self.dialect {
            Dialect::Zipkin(zipkin) if zipkin.shared && kind == Kind::Server => parent,
            Dialect::Zipkin(_) | Dialect::OpenTelemetry { .. } => parent.child(random),
        }
    }

    /// Tells whom a request goes to where it is in its trace.
    pub(crate) fn inject(&self, context: SpanContext, span: &ActiveSpan, head: &mut HeaderMap) {
        match &self.dialect {
            Dialect::OpenTelemetry { .. } => {
                w3c::write_parent(context, head);
                w3c::write_state(span.remote_parent, head);
            }
            Dialect::Zipkin(zipkin) => {
                b3::write(context, span.single, head);
                if zipkin.w3c {
                    w3c::write_parent(context, head);
                }
            }
        }
    }

    /// What a span is called that nobody has named.
    pub(crate) fn plain_name<'h>(&self, outbound: bool, host: &'h str) -> std::borrow::Cow<'h, str> {
        match &self.dialect {
            Dialect::Zipkin(_) => host.into(),
            Dialect::OpenTelemetry { .. } if outbound => format!("egress {host}").into(),
            Dialect::OpenTelemetry { .. } => "ingress".into(),
        }
    }

    /// Appends a span to a batch of encoded ones.
    pub(crate) fn encode(&self, span: &Ended<'_>, batch: &mut Vec<u8>) {
        match &self.dialect {
            Dialect::OpenTelemetry { .. } => otlp::span(span, batch),
            Dialect::Zipkin(zipkin) if zipkin.proto => zipkin::proto(zipkin, span, batch),
            Dialect::Zipkin(zipkin) => zipkin::json(zipkin, span, batch),
        }
    }

    /// Makes a report of a batch.
    pub(crate) fn report(&self, batch: Vec<u8>) -> Vec<u8> {
        match &self.dialect {
            Dialect::OpenTelemetry { resource, scope, .. } => otlp::report(resource, scope, &batch),
            Dialect::Zipkin(zipkin) if zipkin.proto => batch,
            Dialect::Zipkin(_) => [b"[".as_slice(), &batch, b"]"].concat(),
        }
    }
}

impl Zipkin {
    /// See [`Tracer::start`].
    pub(super) fn start(
        &self,
        head: &HeaderMap,
        kind: Kind,
        traced: bool,
        mut random: impl FnMut() -> u64,
    ) -> Result<ActiveSpan, Invalid> {
        let told = b3::read(head)?;
        let by_b3 =
            told.context.map(|context| SpanContext { sampled: told.sampled.unwrap_or(traced), ..context });
        // What makes no sense counts for nothing here.
        let parent = match by_b3 {
            None if self.w3c => w3c::read(head).ok().flatten(),
            by_b3 => by_b3,
        };
        let context = match parent {
            Some(parent) if self.shared && kind == Kind::Server => parent,
            Some(parent) => parent.child(random()),
            None => self.root(told.sampled.unwrap_or(traced), random),
        };
        let local = parent.is_none() && told.sampled.is_none();
        let remote_parent = parent.is_some();
        Ok(ActiveSpan { context, local, remote_parent, single: told.single, state: None, host: None })
    }

    fn root(&self, sampled: bool, mut random: impl FnMut() -> u64) -> SpanContext {
        let span = random().max(1);
        // A trace of 64 bits is called like its first span.
        let mut low = span;
        let mut high = if self.wide { random() } else { 0 };
        if self.timestamps {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let stamped = |random: u64| now.as_secs() << 32 | random & 0xffff_ffff;
            if self.wide {
                high = stamped(high);
            } else {
                low = stamped(low);
            }
        }
        SpanContext { trace: u128::from(high) << 64 | u128::from(low), span, parent: None, sampled }
    }
}

/// `tracestate`, in one line.
fn state(head: &HeaderMap) -> Option<Box<str>> {
    let first = head.get(Known::Tracestate)?;
    let text = match w3c::joined_state(head) {
        Some(joined) => String::from_utf8_lossy(&joined).into(),
        None => String::from_utf8_lossy(first).into(),
    };
    Some(text)
}

/// Whether these are the tags of a span that failed, as OpenTelemetry sees it; `None`: they do not
/// say so.
pub(crate) fn failed(kind: Kind, tags: &super::tags::Tags) -> Option<bool> {
    let number = |name: &str| decimal(tags.find(name)?);
    let by_http = number("http.status_code").is_some_and(|status| match kind {
        Kind::Server => status >= 500,
        Kind::Client => status >= 400,
    });
    let by_grpc = tags.find("grpc.status_code").map(|status| {
        let status = decimal(status);
        status.is_some_and(|status| match kind {
            Kind::Server => super::tags::is_server_error(status),
            Kind::Client => status != 0,
        })
    });
    if by_http { Some(true) } else { by_grpc }
}

fn decimal(text: &str) -> Option<u64> {
    text.parse().ok()
}
