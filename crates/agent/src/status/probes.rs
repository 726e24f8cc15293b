//! Kubelet's probes of the application, made on its behalf: `ISTIO_KUBE_APP_PROBERS`.
//!
//! Injection has put `/app-health/CONTAINER/readyz` in place of each probe and written down what it was.
//! We make it as kubelet would, from an address that the redirection lets pass.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::Full;
use prost::Message;
use rustls::ClientConfig;
use serde::Deserialize;
use tonic_prost::ProstCodec;

use super::text;
use crate::http::{Answer, Reads, Target, call, credulous, request};

/// The address that applications see: packets from it are not redirected.
const FROM_V4: &str = "127.0.0.6";
/// The other family's.
const FROM_V6: &str = "::6";
/// How much of an answer is read and passed on, as kubelet does it.
const MOST: usize = 10 * 1024;
/// How often an application may send us elsewhere.
const REDIRECTS: usize = 10;

/// A probe, as Kubernetes writes it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Probe {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    timeout_seconds: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HttpGet {
    path: String,
    port: u16,
    scheme: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct TcpSocket {
    port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Grpc {
    port: u16,
    service: Option<String>,
}

/// All of them, by path.
#[derive(Debug)]
pub struct Probes {
    by_path: BTreeMap<String, Probe>,
    host: String,
    from: Option<IpAddr>,
    status_port: u16,
    tls: Option<Arc<ClientConfig>>,
}

impl Probes {
    /// Reads what injection has written. `host` is where the application is: the Pod's address, as a
    /// rule; `h2` whether HTTPS may be HTTP/2.
    ///
    /// # Errors
    /// If it is no such thing.
    pub fn read(
        text: &str,
        host: &str,
        status_port: u16,
        redirected: bool,
        h2: bool,
    ) -> Result<Probes, String> {
        const NAME: &str = "ISTIO_KUBE_APP_PROBERS";
        let by_path: BTreeMap<String, Probe> = match text {
            "" => BTreeMap::new(),
            text => serde_json::from_str(text).map_err(|error| format!("{NAME}: {error}"))?,
        };
        for (path, probe) in &by_path {
            if !is_path(path) {
                return Err(format!("{NAME}: {path} is not /app-health/CONTAINER/(livez|readyz|startupz)"));
            }
            let kinds = [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
            if kinds.into_iter().filter(|kind| *kind).count() != 1 {
                return Err(format!("{NAME}: {path}: it must be one of httpGet, tcpSocket, grpc"));
            }
        }
        let from = if host.contains(':') { FROM_V6 } else { FROM_V4 };
        let from = from.parse().ok().filter(|_| redirected);
        let tls = if by_path.is_empty() { None } else { Some(credulous(h2)?) };
        Ok(Probes { by_path, host: host.to_owned(), from, status_port, tls })
    }

    pub(super) async fn answer(&self, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let Some(probe) = self.by_path.get(path) else {
            tracing::error!(path, "there is no such probe");
            let words = format!("app prober config does not exists for {path}");
            return text(StatusCode::BAD_REQUEST, words);
        };
        // Kubernetes' default is a second.
        let timeout = Duration::from_secs(probe.timeout_seconds.max(1).into());
        let failed = |error: String| {
            tracing::warn!(path, error, "a probe of the application has failed");
            text(StatusCode::INTERNAL_SERVER_ERROR, "")
        };
        match (&probe.http_get, &probe.tcp_socket, &probe.grpc) {
            (Some(get), ..) => match self.get_within(get, headers, timeout).await {
                // What leads away is fine, and cannot be passed on without its place.
                Ok(answer) if answer.status.is_redirection() => text(StatusCode::OK, ""),
                Ok(answer) => text(answer.status, answer.body),
                Err(error) => failed(error),
            },
            (_, Some(socket), _) => {
                let target = self.target(socket.port);
                match tokio::time::timeout(timeout, target.connect()).await {
                    Ok(Ok(_)) => text(StatusCode::OK, ""),
                    Ok(Err(error)) => failed(error),
                    Err(_) => failed(format!("{}: no connection within {timeout:?}", target.authority())),
                }
            }
            (.., Some(grpc)) => {
                match tokio::time::timeout(timeout, Box::pin(self.check(grpc, headers))).await {
                    Ok(Ok(())) => text(StatusCode::OK, ""),
                    Ok(Err(error)) => failed(error),
                    Err(_) => failed(format!("no answer within {timeout:?}")),
                }
            }
            (None, None, None) => failed("it asks for nothing".to_owned()),
        }
    }

    fn target(&self, port: u16) -> Target {
        Target { from: self.from, ..Target::new(self.host.clone(), port) }
    }

    /// One time for all that an application sends us to.
    async fn get_within(
        &self,
        get: &HttpGet,
        headers: &HeaderMap,
        timeout: Duration,
    ) -> Result<Answer, String> {
        let answer = tokio::time::timeout(timeout, Box::pin(self.get(get, headers, timeout))).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
    }

    async fn get(&self, get: &HttpGet, headers: &HeaderMap, timeout: Duration) -> Result<Answer, String> {
        let mut at = Place {
            is_secure: get.scheme.eq_ignore_ascii_case("https"),
            port: get.port,
            path: if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) },
        };
        let mut host = headers.get(HOST).map(|host| self.host_header(host, get.port));
        for _ in 0..REDIRECTS {
            let mut target = self.target(at.port);
            target.tls = self.tls.clone().filter(|_| at.is_secure);
            let mut request = request(Method::GET, &at.path, &target)?;
            for (name, value) in headers.iter().filter(|(name, _)| !matches!(**name, HOST | CONNECTION)) {
                request.headers_mut().append(name, value.clone());
            }
            if let Some(host) = &host {
                request.headers_mut().insert(HOST, host.clone());
            }
            let answer = call(&target, request, timeout, Reads::First(MOST)).await?;
            let leads = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = answer.headers.get(LOCATION).filter(|to| leads && !to.is_empty()) else {
                return Ok(answer);
            };
            let location =
                location.to_str().map_err(|_| "the place that it leads to is no text".to_owned())?;
            let Some((next, names_host)) = at.follow(location, &self.host)? else { return Ok(answer) };
            if names_host {
                host = None;
            }
            at = next;
        }
        Err(format!("stopped after {REDIRECTS} redirects"))
    }

    /// What kubelet has asked for, with the port of the application in place of ours.
    fn host_header(&self, given: &HeaderValue, port: u16) -> HeaderValue {
        let own = format!(":{}", self.status_port);
        let text = given.to_str().ok().and_then(|text| text.strip_suffix(&own));
        let replaced = text.map(|host| format!("{host}:{port}")).and_then(|text| text.parse().ok());
        replaced.unwrap_or_else(|| given.clone())
    }

    /// Asks `grpc.health.v1.Health`.
    async fn check(&self, grpc: &Grpc, headers: &HeaderMap) -> Result<(), String> {
        let target = self.target(grpc.port);
        let stream = target.connect().await?;
        let connection = leno_xds::client::grpc::Connection {
            authority: target.authority(),
            connect_timeout: Duration::from_secs(1),
            keepalive: None,
        };
        let channel =
            leno_xds::client::grpc::over(stream, &connection).await.map_err(|error| error.to_string())?;
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.map_err(|error| error.to_string())?;
        let mut request =
            tonic::Request::new(HealthCheckRequest { service: grpc.service.clone().unwrap_or_default() });
        if let Some(agent) = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()?.parse().ok()) {
            request.metadata_mut().insert("user-agent", agent);
        }
        let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let answer = client.unary(request, path, ProstCodec::default()).await;
        let answer: tonic::Response<HealthCheckResponse> =
            answer.map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
        match answer.into_inner().status {
            SERVING => Ok(()),
            other => Err(format!("its health is {other}")),
        }
    }
}

fn is_path(path: &str) -> bool {
    let mut parts = path.split('/');
    let known = [parts.next(), parts.next(), parts.next(), parts.next(), parts.next()];
    matches!(
        known,
        [Some(""), Some("app-health" | "app-lifecycle"), Some(container), Some(kind), None]
            if !container.is_empty()
                && ["livez", "readyz", "startupz", "prestopz", "poststartz"].contains(&kind)
    )
}

/// What is asked for of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    is_secure: bool,
    port: u16,
    /// With the query.
    path: String,
}

impl Place {
    /// Where a `Location` leads from here (RFC 3986, section 5.2), and whether it names the host; `None` if that
    /// is another host than this, which kubelet does not follow to either.
    fn follow(&self, location: &str, host: &str) -> Result<Option<(Place, bool)>, String> {
        let bad = || format!("it leads to {location:?}, which is no place");
        let location = location.split('#').next().unwrap_or_default();
        let is_absolute = location.split(['/', '?']).next().is_some_and(|start| start.contains(':'));
        if !is_absolute && !location.starts_with("//") {
            let path = relative(&self.path, location);
            return Ok(Some((Place { path, ..self.clone() }, false)));
        }
        let scheme = if self.is_secure { "https:" } else { "http:" };
        let text = if is_absolute { location.to_owned() } else { format!("{scheme}{location}") };
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let is_secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        if uri.host().ok_or_else(bad)?.trim_matches(['[', ']']) != host.trim_matches(['[', ']']) {
            return Ok(None);
        }
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Some((Place { is_secure, port, path: relative("/", path) }, true)))
    }
}

/// A path, and a query, relative to another one.
fn relative(base: &str, to: &str) -> String {
    let base = base.split('?').next().unwrap_or_default();
    let (path, query) = to.split_at(to.find('?').unwrap_or(to.len()));
    let joined = match path {
        "" => return format!("{base}{query}"),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("{}{path}", base.get(..base.rfind('/').map_or(0, |at| at + 1)).unwrap_or_default()),
    };
    let mut segments: Vec<&str> = Vec::new();
    for segment in joined.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    // A folder stays one.
    if joined.ends_with("/.") || joined.ends_with("/..") {
        segments.push("");
    }
    format!("/{}{query}", segments.join("/"))
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.SERVING`.
const SERVING: i32 = 1;

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn where_redirects_lead() {
        let from = Place { is_secure: false, port: 8080, path: "/a/b?x=1".to_owned() };
        for (location, expected) in [
            ("/ready", "http 8080 /ready"),
            ("ready", "http 8080 /a/ready"),
            ("../ready?y", "http 8080 /ready?y"),
            ("./", "http 8080 /a/"),
            ("?y=2#part", "http 8080 /a/b?y=2"),
            ("https://10.0.0.7:8443/c", "https 8443 /c named"),
            ("https://10.0.0.7", "https 443 / named"),
            ("http://10.0.0.7/../c", "http 80 /c named"),
            ("//10.0.0.7:9/c", "http 9 /c named"),
            ("http://example.com/", "elsewhere"),
            ("ftp://10.0.0.7/", "no place"),
            ("http://", "no place"),
        ] {
            let found = match from.follow(location, "10.0.0.7") {
                Ok(Some((Place { is_secure, port, path }, named))) => {
                    let scheme = if is_secure { "https" } else { "http" };
                    format!("{scheme} {port} {path}{}", if named { " named" } else { "" })
                }
                Ok(None) => "elsewhere".to_owned(),
                Err(_) => "no place".to_owned(),
            };
            assert_eq!(found, expected, "{location}");
        }
    }
}
