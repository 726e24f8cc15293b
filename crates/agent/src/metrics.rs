//! What the agent counts, under the names that Istio's has.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts.
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// What it has come to.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long something has taken, as Prometheus's histograms have it.
#[derive(Debug, Default)]
pub struct Durations {
    /// Those that took no longer than [`Durations::BOUNDS`], each, and longer than the bound before; the last:
    /// longer than all.
    counts: [Counter; 7],
    /// All together, microseconds.
    sum: Counter,
}

impl Durations {
    /// Microseconds, and as text in seconds: those of Istio's agent for lookups.
    const BOUNDS: [(u64, &str); 6] = [
        (1_000, "0.001"),
        (5_000, "0.005"),
        (10_000, "0.01"),
        (100_000, "0.1"),
        (1_000_000, "1"),
        (5_000_000, "5"),
    ];

    /// Counts one.
    pub fn add(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let place = Self::BOUNDS.iter().position(|(bound, _)| micros <= *bound).unwrap_or(Self::BOUNDS.len());
        if let Some(count) = self.counts.get(place) {
            count.add(1);
        }
        self.sum.add(micros);
    }

    fn text(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP istio_agent_{name} {help}\n# TYPE istio_agent_{name} histogram");
        let mut total = 0;
        let bounds = Self::BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
        for (bound, count) in bounds.zip(&self.counts) {
            total += count.value();
            let _ = writeln!(out, "istio_agent_{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let sum = self.sum.value();
        let _ = writeln!(out, "istio_agent_{name}_sum {}.{:06}", sum / 1_000_000, sum % 1_000_000);
        let _ = writeln!(out, "istio_agent_{name}_count {total}");
    }
}

/// All of it.
#[derive(Debug)]
pub struct Metrics {
    /// Connections to the control plane that could not be made.
    pub control_plane_failures: Counter,
    /// Streams that have ended because of the control plane.
    pub control_plane_errors: Counter,
    /// Streams that have ended because of the proxy.
    pub proxy_errors: Counter,
    /// Requests passed on.
    pub requests: Counter,
    /// Answers passed on.
    pub responses: Counter,
    /// How often metrics were asked for.
    pub scrapes: Counter,
    /// Requests on the status port that only this machine may make.
    pub refused: Counter,
    /// The proxy's that could not be had.
    pub proxy_scrape_failures: Counter,
    /// The application's that could not be had.
    pub application_scrape_failures: Counter,
    /// Names that were asked for.
    pub dns_requests: Counter,
    /// Names that were asked for and passed on.
    pub dns_upstream_requests: Counter,
    /// Of these, those that have failed.
    pub dns_upstream_failures: Counter,
    /// How long these took.
    pub dns_upstream_duration: Durations,
    /// Lookups that were refused because too many waited.
    pub dns_crowded: Counter,
    /// What was sent and is no lookup.
    pub dns_malformed: Counter,
    /// Certificates that were asked for.
    pub certificates: Counter,
    /// Those that were asked for in vain.
    pub certificate_failures: Counter,
    /// When the certificate expires, seconds since the epoch; 0: there is none.
    pub expires: AtomicU64,
    /// From the start to readiness, milliseconds; 0: not yet.
    pub startup: AtomicU64,
    started: Instant,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics {
            control_plane_failures: Counter::default(),
            control_plane_errors: Counter::default(),
            proxy_errors: Counter::default(),
            requests: Counter::default(),
            responses: Counter::default(),
            scrapes: Counter::default(),
            refused: Counter::default(),
            proxy_scrape_failures: Counter::default(),
            application_scrape_failures: Counter::default(),
            dns_requests: Counter::default(),
            dns_upstream_requests: Counter::default(),
            dns_upstream_failures: Counter::default(),
            dns_upstream_duration: Durations::default(),
            dns_crowded: Counter::default(),
            dns_malformed: Counter::default(),
            certificates: Counter::default(),
            certificate_failures: Counter::default(),
            expires: AtomicU64::new(0),
            startup: AtomicU64::new(0),
            started: Instant::now(),
        }
    }
}

impl Metrics {
    /// The proxy is ready: how long that took is remembered once.
    pub fn ready(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let _ = self.startup.compare_exchange(0, millis, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// As Prometheus reads it. `now` in seconds since the epoch.
    pub fn text(&self, now: u64) -> String {
        let mut out = String::new();
        for (name, labels, help, counter) in [
            (
                "istiod_connection_failures",
                "",
                "The total number of connection failures to Istiod",
                &self.control_plane_failures,
            ),
            (
                "istiod_connection_terminations",
                "{type=\"error\"}",
                "The total number of connection errors to Istiod",
                &self.control_plane_errors,
            ),
            (
                "envoy_connection_terminations",
                "{type=\"error\"}",
                "The total number of connection errors from envoy",
                &self.proxy_errors,
            ),
            ("xds_proxy_requests", "", "The total number of Xds Proxy Requests", &self.requests),
            ("xds_proxy_responses", "", "The total number of Xds Proxy Responses", &self.responses),
            ("scrapes_total", "", "The total number of scrapes.", &self.scrapes),
            (
                "refused_requests_total",
                "",
                "Requests on the status port that only this machine may make.",
                &self.refused,
            ),
            (
                "num_outgoing_requests",
                "{request_type=\"csr\"}",
                "Number of total outgoing requests (e.g. to a token exchange server, CA, etc.)",
                &self.certificates,
            ),
            (
                "num_failed_outgoing_requests",
                "{request_type=\"csr\"}",
                "Number of failed outgoing requests (e.g. to a token exchange server, CA, etc.)",
                &self.certificate_failures,
            ),
            ("dns_requests_total", "", "Total number of DNS requests.", &self.dns_requests),
            (
                "dns_upstream_requests_total",
                "",
                "Total number of DNS requests forwarded to upstream.",
                &self.dns_upstream_requests,
            ),
            ("dns_upstream_failures_total", "", "Total number of DNS failures.", &self.dns_upstream_failures),
        ] {
            sample(&mut out, name, help, "counter", labels, counter.value());
        }
        for (name, help, label, counters) in [
            (
                "scrape_failures_total",
                "The total number of failed scrapes.",
                "type",
                [("envoy", &self.proxy_scrape_failures), ("application", &self.application_scrape_failures)],
            ),
            (
                "dns_refused_total",
                "DNS requests that were not looked at: too many wait, or they are none.",
                "reason",
                [("crowded", &self.dns_crowded), ("malformed", &self.dns_malformed)],
            ),
        ] {
            let _ = writeln!(out, "# HELP istio_agent_{name} {help}\n# TYPE istio_agent_{name} counter");
            for (value, counter) in counters {
                let _ = writeln!(out, "istio_agent_{name}{{{label}=\"{value}\"}} {}", counter.value());
            }
        }
        let help = "Total time in seconds Istio takes to get DNS response from upstream.";
        self.dns_upstream_duration.text(&mut out, "dns_upstream_request_duration_seconds", help);
        let expires = self.expires.load(Ordering::Relaxed);
        if expires > 0 {
            let left = i128::from(expires) - i128::from(now);
            sample(
                &mut out,
                "cert_expiry_seconds",
                "The time remaining, in seconds, before the certificate chain will expire. A negative value indicates the cert is expired.",
                "gauge",
                "{resource_name=\"default\"}",
                left,
            );
        }
        let startup = self.startup.load(Ordering::Relaxed);
        if startup > 0 {
            let seconds = format!("{}.{:03}", startup / 1000, startup % 1000);
            let help = "The time from the process starting to being marked ready.";
            sample(&mut out, "startup_duration_seconds", help, "gauge", "", seconds);
        }
        out
    }
}

fn sample(out: &mut String, name: &str, help: &str, kind: &str, labels: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "# HELP istio_agent_{name} {help}\n# TYPE istio_agent_{name} {kind}\nistio_agent_{name}{labels} {value}"
    );
}
