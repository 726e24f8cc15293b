//! `original_ip_detection_extensions`: who the client is, where neither the socket nor
//! `xff_num_trusted_hops` says it, and the lowering of these extensions.

use std::net::IpAddr;

use leno_api::proto::envoy::config::core::v3 as core;
use leno_api::proto::envoy::extensions::http::original_ip_detection as proto;
use leno_base::{CidrSet, Name};

use crate::config::address;
use crate::config::lower::Lower;
use crate::http::headers::{HeaderMap, Known};
use crate::http::normalize::nth_last;
use crate::http::reply::Reply;
use crate::http::route::matcher::header_name;

/// One extension.
#[derive(Clone, Debug)]
pub(crate) enum Detection {
    /// `x-forwarded-for`.
    Forwarded {
        /// What is skipped at the end of the list.
        skip: Skip,
        /// `skip_xff_append`, true by default.
        skip_append: bool,
    },
    /// A header of its own.
    Header {
        /// Lower case.
        name: Name,
        /// `allow_extension_to_set_address_as_trusted`.
        trusted: bool,
        /// `reject_with_status`: requests without a valid address are answered so.
        reject: Option<u16>,
    },
}

/// What is skipped at the end of `x-forwarded-for`.
#[derive(Clone, Debug)]
pub(crate) enum Skip {
    /// So many addresses.
    Hops(u32),
    /// Addresses of these networks, if the peer is of them too.
    Networks(CidrSet),
}

/// What an extension found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Detected {
    /// The client.
    pub(crate) address: IpAddr,
    /// Whether it may count as internal.
    pub(crate) checkable: bool,
}

impl Detection {
    /// Whether the peer is appended to `x-forwarded-for`, whatever was found there.
    pub(crate) fn appends(&self) -> bool {
        matches!(self, Detection::Forwarded { skip_append: false, .. })
    }

    /// Asks the extension; `Err`: the request is answered.
    pub(crate) fn detect(&self, peer: IpAddr, head: &HeaderMap) -> Result<Option<Detected>, Reply> {
        match self {
            Detection::Forwarded { skip: Skip::Hops(hops), .. } => {
                Ok(nth_last(head, *hops).map(|(address, checkable)| Detected { address, checkable }))
            }
            Detection::Forwarded { skip: Skip::Networks(networks), .. } => {
                if !networks.contains(peer) {
                    return Ok(None);
                }
                let text = head.get_str(Known::XForwardedFor).unwrap_or_default();
                let checkable = !text.contains(',');
                let mut address = None;
                for entry in text.rsplit(',') {
                    let Ok(parsed) = entry.trim().parse::<IpAddr>() else { return Ok(None) };
                    address = Some(parsed);
                    if !networks.contains(parsed) {
                        break;
                    }
                }
                Ok(address.map(|address| Detected { address, checkable }))
            }
            Detection::Header { name, trusted, reject } => {
                let value = head.find(name).and_then(|value| std::str::from_utf8(value).ok());
                match (value.and_then(|text| text.parse().ok()), reject) {
                    (Some(address), _) => Ok(Some(Detected { address, checkable: *trusted })),
                    (None, Some(status)) => {
                        Err(Reply::new(*status, "rejecting_because_detection_failed", ""))
                    }
                    (None, None) => Ok(None),
                }
            }
        }
    }
}

/// Lowers one extension.
pub(super) fn lower(extension: core::TypedExtensionConfig, at: &mut Lower) -> Option<Detection> {
    let name = extension.name;
    let any = at.required("typed_config", extension.typed_config, |any, at| at.extension(any))?;
    at.field("typed_config", |at| match leno_api::any::type_name(&any.type_url) {
        "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig" => {
            let proto::xff::v3::XffConfig { xff_num_trusted_hops, xff_trusted_cidrs, skip_xff_append } =
                at.unpack(&any)?;
            if xff_trusted_cidrs.is_some() && xff_num_trusted_hops > 0 {
                at.error("Cannot set both xff_num_trusted_hops and xff_trusted_cidrs");
            }
            let skip = match xff_trusted_cidrs {
                Some(proto::xff::v3::XffTrustedCidrs { cidrs }) => {
                    Skip::Networks(at.field("xff_trusted_cidrs", |at| address::cidrs("cidrs", cidrs, at)))
                }
                None => Skip::Hops(xff_num_trusted_hops),
            };
            Some(Detection::Forwarded { skip, skip_append: skip_xff_append.unwrap_or(true) })
        }
        "envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig" => {
            let proto::custom_header::v3::CustomHeaderConfig {
                header_name: header,
                allow_extension_to_set_address_as_trusted,
                reject_with_status,
            } = at.unpack(&any)?;
            // As Envoy: what is no error is Forbidden.
            let reject = reject_with_status.map(|status| {
                u16::try_from(status.code).ok().filter(|code| (400..600).contains(code)).unwrap_or(403)
            });
            let trusted = allow_extension_to_set_address_as_trusted;
            Some(Detection::Header { name: header_name(&header), trusted, reject })
        }
        _ => {
            at.unsupported_extension(&name, &any.type_url);
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{Detection, Skip};
    use crate::http::headers::HeaderMap;

    #[test]
    fn networks_that_are_trusted_are_skipped() {
        let networks = ["10.0.0.0/8".parse().expect("a network")].into_iter().collect();
        let detection = Detection::Forwarded { skip: Skip::Networks(networks), skip_append: true };
        let check = |peer: &str, list: &str, expected: Option<&str>| {
            let mut head = HeaderMap::new();
            head.append(b"x-forwarded-for", list.as_bytes());
            let detected = detection.detect(peer.parse().expect("an address"), &head).ok().flatten();
            assert_eq!(detected.map(|found| found.address.to_string()).as_deref(), expected, "{peer} {list}");
        };
        check("10.0.0.1", "1.1.1.1, 2.2.2.2, 10.0.0.2", Some("2.2.2.2"));
        check("10.0.0.1", "10.0.0.3,10.0.0.2", Some("10.0.0.3"));
        check("10.0.0.1", "1.1.1.1,x", None);
        check("1.0.0.1", "1.1.1.1", None);
    }
}
