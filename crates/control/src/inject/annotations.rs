//! What annotations may say.

use std::net::IpAddr;

use serde_json::Value as Json;

use super::{Refused, pod};

/// The annotations that are checked, and how.
#[allow(clippy::type_complexity, reason = "a name for it would say no more")]
const CHECKED: [(&str, fn(&str) -> Result<(), String>); 19] = [
    ("sidecar.istio.io/interceptionMode", interception_mode),
    ("status.sidecar.istio.io/port", |text| port(text).map(drop)),
    ("readiness.status.sidecar.istio.io/initialDelaySeconds", number),
    ("readiness.status.sidecar.istio.io/periodSeconds", number),
    ("readiness.status.sidecar.istio.io/failureThreshold", number),
    (
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
        |text| if text == "*" { Ok(()) } else { ranges(text) },
    ),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", ranges),
    ("traffic.sidecar.istio.io/includeInboundPorts", |text| if text == "*" { Ok(()) } else { ports(text) }),
    ("traffic.sidecar.istio.io/excludeInboundPorts", ports),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", ports),
    ("traffic.sidecar.istio.io/excludeInterfaces", interfaces),
    ("traffic.sidecar.istio.io/kubevirtInterfaces", interfaces),
    ("istio.io/reroute-virtual-interfaces", interfaces),
    ("prometheus.istio.io/merge-metrics", boolean),
    ("proxy.istio.io/config", proxy_config),
    ("sidecar.istio.io/proxyCPU", quantity),
    ("sidecar.istio.io/proxyMemory", quantity),
    ("sidecar.istio.io/proxyCPULimit", quantity),
    ("sidecar.istio.io/proxyMemoryLimit", quantity),
];

/// Checks all annotations of a Pod; all that is wrong is said at once.
pub(crate) fn validate(original: &Json) -> Result<(), Refused> {
    let mut wrong = Vec::new();
    for (name, check) in CHECKED {
        if let Some(value) = pod::annotation(original, name)
            && let Err(reason) = check(value)
        {
            wrong.push(format!("invalid value '{value}' for annotation '{name}': {reason}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(Refused(wrong.join("; "))) }
}

fn interception_mode(mode: &str) -> Result<(), String> {
    match mode {
        "REDIRECT" | "TPROXY" | "NONE" => Ok(()),
        _ => Err(format!("interceptionMode invalid, use REDIRECT,TPROXY,NONE: {mode}")),
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.trim().parse().map_err(|_| format!("failed parsing port '{text}'"))
}

fn ports(text: &str) -> Result<(), String> {
    match text.trim() {
        "" => Ok(()),
        list => list.split(',').try_for_each(|item| port(item).map(drop)),
    }
}

fn number(text: &str) -> Result<(), String> {
    text.parse::<u32>().map(drop).map_err(|_| format!("{text:?} is no positive number"))
}

fn boolean(text: &str) -> Result<(), String> {
    pod::parse_bool(text).map(drop).ok_or_else(|| format!("{text:?} is neither true nor false"))
}

fn ranges(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    text.split(',').try_for_each(|range| {
        let bad = || format!("failed parsing cidr '{range}'");
        let (address, bits) = range.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let bits: u8 = bits.parse().map_err(|_| bad())?;
        if bits > if address.is_ipv4() { 32 } else { 128 } { Err(bad()) } else { Ok(()) }
    })
}

/// Names of interfaces as the kernel takes them: they become arguments of a program.
fn interfaces(text: &str) -> Result<(), String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).try_for_each(|name| {
        let fits = name.len() < 16
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@' | b'+'))
            && !name.starts_with('-');
        if fits { Ok(()) } else { Err(format!("{name:?} is no name of an interface")) }
    })
}

fn proxy_config(text: &str) -> Result<(), String> {
    let json = leno_gotemplate::yaml::parse(text)
        .map_err(|error| format!("failed to convert to apply proxy config: {error}"))?;
    let Json::Object(map) = &json else {
        return if json.is_null() { Ok(()) } else { Err("not a mapping".to_owned()) };
    };
    let text = serde_json::to_string(map).map_err(|error| error.to_string())?;
    serde_json::from_str::<crate::model::mesh::proxy::ProxyConfig>(&text)
        .map(drop)
        .map_err(|error| format!("failed to convert to apply proxy config: {error}"))
}

/// Kubernetes' quantities: a number, and a suffix or an exponent.
pub(crate) fn quantity(text: &str) -> Result<(), String> {
    let bad = || format!("{text:?} is no quantity such as 100m or 128Mi");
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = digits.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    if number.matches('.').count() > 1 || !number.contains(|letter: char| letter.is_ascii_digit()) {
        return Err(bad());
    }
    let known = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let exponent = || {
        let rest = suffix.strip_prefix(['e', 'E'])?;
        rest.strip_prefix(['+', '-']).unwrap_or(rest).parse::<u8>().ok()
    };
    if known.contains(&suffix) || exponent().is_some() { Ok(()) } else { Err(bad()) }
}
