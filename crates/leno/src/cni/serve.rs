//! Health and metrics of the DaemonSet, over HTTP: `/healthz`, `/readyz` and `/metrics`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What the DaemonSet tells of itself.
#[derive(Debug, Default)]
pub(crate) struct Health {
    ready: AtomicBool,
    /// By outcome.
    installs: Mutex<BTreeMap<&'static str, u64>>,
    /// By what was done, and the outcome.
    repairs: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Health {
    /// Whether pods that start now are redirected.
    pub(crate) fn is_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Counts an attempt to install, with istio-cni's words for outcomes.
    pub(crate) fn installed(&self, result: &'static str) {
        *self.installs.lock().unwrap_or_else(PoisonError::into_inner).entry(result).or_default() += 1;
    }

    /// Counts a repair.
    pub(crate) fn repaired(&self, kind: &'static str, result: &'static str) {
        *self.repairs.lock().unwrap_or_else(PoisonError::into_inner).entry((kind, result)).or_default() += 1;
    }

    /// In the text format of Prometheus.
    pub(crate) fn metrics(&self) -> String {
        let mut text = String::from(
            "# HELP istio_cni_install_ready Whether the plugin is in place.\n\
             # TYPE istio_cni_install_ready gauge\n",
        );
        let ready = u8::from(self.ready.load(Ordering::Relaxed));
        let _ = writeln!(text, "istio_cni_install_ready {ready}");
        text.push_str("# HELP istio_cni_installs_total How often the plugin was put in place, or not.\n");
        text.push_str("# TYPE istio_cni_installs_total counter\n");
        for (result, count) in self.installs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(text, "istio_cni_installs_total{{result=\"{result}\"}} {count}");
        }
        text.push_str("# HELP istio_cni_repair_pods_repaired_total Pods that came before the plugin.\n");
        text.push_str("# TYPE istio_cni_repair_pods_repaired_total counter\n");
        for ((kind, result), count) in self.repairs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let labels = format!("result=\"{result}\",type=\"{kind}\"");
            let _ = writeln!(text, "istio_cni_repair_pods_repaired_total{{{labels}}} {count}");
        }
        text
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let (status, text) = match request.uri().path() {
            "/healthz" => (StatusCode::OK, String::new()),
            "/readyz" if self.ready.load(Ordering::Relaxed) => (StatusCode::OK, String::new()),
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable\n".to_owned()),
            "/metrics" => (StatusCode::OK, self.metrics()),
            _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    }
}

/// Answers until it is dropped.
pub(crate) async fn serve(listener: TcpListener, health: Arc<Health>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files, most likely.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let health = Arc::clone(&health);
        tokio::spawn(async move {
            let answer = |request: Request<Incoming>| {
                let response = health.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            };
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            // Whoever asks may go away.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(60), connection).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use http::Request;

    use super::Health;

    #[test]
    fn what_is_told() {
        let health = Health::default();
        let status = |path: &str| {
            health.answer(&Request::builder().uri(path).body(()).expect("a request")).status().as_u16()
        };
        assert_eq!((status("/healthz"), status("/readyz"), status("/")), (200, 503, 404));
        health.is_ready(true);
        assert_eq!(status("/readyz"), 200);
        health.installed("SUCCESS");
        health.repaired("label", "success");
        health.repaired("label", "success");
        expect![[r#"
            # HELP istio_cni_install_ready Whether the plugin is in place.
            # TYPE istio_cni_install_ready gauge
            istio_cni_install_ready 1
            # HELP istio_cni_installs_total How often the plugin was put in place, or not.
            # TYPE istio_cni_installs_total counter
            istio_cni_installs_total{result="SUCCESS"} 1
            # HELP istio_cni_repair_pods_repaired_total Pods that came before the plugin.
            # TYPE istio_cni_repair_pods_repaired_total counter
            istio_cni_repair_pods_repaired_total{result="success",type="label"} 2
        "#]]
        .assert_eq(&health.metrics());
    }
}
