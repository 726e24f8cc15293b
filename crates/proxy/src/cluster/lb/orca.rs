//! Open Request Cost Aggregation: what an endpoint says of its load with a response
//! (xds.data.orca.v3.OrcaLoadReport), in one of three headers or trailers:
//! `endpoint-load-metrics` (`TEXT cpu_utilization=0.3`, or `cpu_utilization:0.3,...`),
//! `endpoint-load-metrics-json` and `endpoint-load-metrics-bin` (base64).

use std::collections::HashMap;

use prost::Message;

use leno_api::proto::xds::data::orca::v3::OrcaLoadReport;

use crate::http::headers::HeaderMap;

const TEXT: &str = "endpoint-load-metrics";
const JSON: &str = "endpoint-load-metrics-json";
const BINARY: &str = "endpoint-load-metrics-bin";

/// A report, as far as balancers read it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LoadReport(OrcaLoadReport);

impl LoadReport {
    /// The report in these headers or trailers; `None`: there is none, or none that makes sense.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let (text, json, binary) = (headers.find(TEXT), headers.find(JSON), headers.find(BINARY));
        let report = match (text, json, binary) {
            (Some(text), None, None) => {
                if let Some(json) = text.strip_prefix(b"JSON ") {
                    from_json(json)
                } else if let Some(binary) = text.strip_prefix(b"BIN ") {
                    from_binary(binary)
                } else {
                    let lines =
                        headers.find_all(TEXT).map(|line| line.strip_prefix(b"TEXT ").unwrap_or(line));
                    from_text(lines)
                }
            }
            (None, Some(json), None) => from_json(json),
            (None, None, Some(binary)) => from_binary(binary),
            // None, or more than one: which is meant is not known.
            _ => None,
        };
        report.map(Self)
    }

    /// How far the endpoint is used up: the greatest of the named metrics, else what the
    /// application says, else its processors.
    pub(crate) fn utilization(&self, names: &[String]) -> f64 {
        let greatest = names.iter().filter_map(|name| self.metric(name)).fold(0.0, f64::max);
        let candidates = [greatest, self.0.application_utilization];
        candidates.into_iter().find(|used| *used > 0.0).unwrap_or(self.0.cpu_utilization)
    }

    /// A metric by its path: `cpu_utilization`, `named_metrics.NAME` and so on.
    fn metric(&self, path: &str) -> Option<f64> {
        let report = &self.0;
        let of = |map: &HashMap<String, f64>, name: &str| {
            if name == "*" { map.values().copied().reduce(f64::max) } else { map.get(name).copied() }
        };
        match path {
            "cpu_utilization" => Some(report.cpu_utilization),
            "mem_utilization" => Some(report.mem_utilization),
            "application_utilization" => Some(report.application_utilization),
            "eps" => Some(report.eps),
            "rps_fractional" => Some(report.rps_fractional),
            _ => match path.split_once('.')? {
                ("named_metrics", name) => of(&report.named_metrics, name),
                ("utilization", name) => of(&report.utilization, name),
                ("request_cost", name) => of(&report.request_cost, name),
                _ => None,
            },
        }
    }

    /// Requests per second over utilization, errors making it worse; `None`: the report does not
    /// say enough.
    pub(crate) fn weight(&self, names: &[String], error_penalty: f64) -> Option<u32> {
        let rate = self.0.rps_fractional;
        if rate.is_nan() || rate <= 0.0 {
            return None;
        }
        let utilization = self.utilization(names) + error_penalty * self.0.eps / rate;
        // A float that is too large becomes the greatest integer.
        (utilization > 0.0).then(|| (rate / utilization) as u32)
    }
}

fn from_json(text: &[u8]) -> Option<OrcaLoadReport> {
    leno_api::decode::decode_text(std::str::from_utf8(text).ok()?, "").ok()
}

fn from_binary(text: &[u8]) -> Option<OrcaLoadReport> {
    OrcaLoadReport::decode(leno_base::base64::decode(text.trim_ascii())?.as_slice()).ok()
}

/// `name: value` or `name=value`, separated by commas; a name that comes twice, one that is not
/// known, or a number that is none, spoils the whole report, as in Envoy.
fn from_text<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<OrcaLoadReport> {
    let mut report = OrcaLoadReport::default();
    let mut seen: Vec<&str> = Vec::new();
    for line in lines {
        for pair in std::str::from_utf8(line).ok()?.split(',').map(str::trim).filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once([':', '='])?;
            let (name, value) = (name.trim(), value.trim().parse::<f64>().ok()?);
            if !value.is_finite() || seen.contains(&name) {
                return None;
            }
            seen.push(name);
            let field = match name {
                "cpu_utilization" => &mut report.cpu_utilization,
                "mem_utilization" => &mut report.mem_utilization,
                "application_utilization" => &mut report.application_utilization,
                "eps" => &mut report.eps,
                "rps_fractional" => &mut report.rps_fractional,
                _ => match name.split_once('.')? {
                    ("named_metrics", name) if !name.is_empty() => {
                        report.named_metrics.entry(name.to_owned()).or_default()
                    }
                    _ => return None,
                },
            };
            *field = value;
        }
    }
    Some(report)
}

#[cfg(test)]
mod tests {
    use super::LoadReport;
    use crate::http::headers::HeaderMap;

    fn weight(headers: &[(&str, &str)], names: &[&str]) -> Option<u32> {
        let mut head = HeaderMap::default();
        headers.iter().for_each(|(name, value)| head.append(name.as_bytes(), value.as_bytes()));
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        LoadReport::read(&head)?.weight(&names, 1.0)
    }

    #[test]
    fn reports_come_in_three_forms() {
        let text = "cpu_utilization: 0.5, rps_fractional:100";
        assert_eq!(weight(&[("endpoint-load-metrics", text)], &[]), Some(200));
        assert_eq!(
            weight(&[("endpoint-load-metrics", "TEXT cpu_utilization=0.5,rps_fractional=100")], &[]),
            Some(200)
        );
        let json = r#"{"cpu_utilization": 0.5, "rps_fractional": 100.0, "eps": 50}"#;
        assert_eq!(weight(&[("endpoint-load-metrics-json", json)], &[]), Some(100));
        assert_eq!(weight(&[("endpoint-load-metrics", &format!("JSON {json}"))], &[]), Some(100));
        // Field 1: 0.5; field 6: 100.
        let binary = "CQAAAAAAAOA/MQAAAAAAAFlA";
        assert_eq!(weight(&[("endpoint-load-metrics-bin", binary)], &[]), Some(200));
    }

    #[test]
    fn what_is_used_most_counts() {
        let text = "application_utilization:0.25,cpu_utilization:0.5,named_metrics.a:0.8,rps_fractional:100";
        assert_eq!(weight(&[("endpoint-load-metrics", text)], &["named_metrics.a"]), Some(125));
        assert_eq!(weight(&[("endpoint-load-metrics", text)], &[]), Some(400));
        let text = "cpu_utilization:0.5,named_metrics.a:0.8,named_metrics.b:0.1,rps_fractional:100";
        assert_eq!(
            weight(&[("endpoint-load-metrics", text)], &["named_metrics.a", "named_metrics.b"]),
            Some(125)
        );
        assert_eq!(weight(&[("endpoint-load-metrics", text)], &["named_metrics.c"]), Some(200));
        assert_eq!(weight(&[("endpoint-load-metrics", text)], &["named_metrics.*"]), Some(125));
    }

    #[test]
    fn nonsense_is_no_report() {
        for text in [
            "cpu_utilization",
            "cpu_utilization:x",
            "cpu_utilization:nan",
            "a:1",
            "eps:1,eps:2",
            "named_metrics.:1",
        ] {
            assert_eq!(weight(&[("endpoint-load-metrics", text)], &[]), None, "{text}");
        }
        let both = [("endpoint-load-metrics", "eps:1"), ("endpoint-load-metrics-json", "{}")];
        assert_eq!(weight(&both, &[]), None);
        assert_eq!(weight(&[("endpoint-load-metrics", "cpu_utilization:0.5")], &[]), None, "no rate");
        assert_eq!(weight(&[("endpoint-load-metrics-bin", "!")], &[]), None);
        assert_eq!(weight(&[("endpoint-load-metrics-json", "{")], &[]), None);
    }
}
