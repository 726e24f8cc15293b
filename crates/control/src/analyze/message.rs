//! What analysis says, with istioctl's codes where it says the same, and codes of our own else.

use std::fmt;

use super::raw::RawKey;

/// How bad it is, from the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Nothing is wrong.
    Info,
    /// It may not do what its author expects.
    Warning,
    /// It does not work.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A sort of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// As `IST0101`.
    pub code: &'static str,
    /// As `ReferencedResourceNotFound`.
    pub name: &'static str,
    /// How bad it is.
    pub level: Level,
}

const fn code(code: &'static str, name: &'static str, level: Level) -> Code {
    Code { code, name, level }
}

use Level::{Error, Info, Warning};

/// All sorts. Those of istioctl have its codes, names and levels, also where nothing raises them here:
/// IST0001, IST0143 and IST0168 are raised by nothing in Istio 1.30 either, IST0169 is of upgrades of
/// Istio (`istioctl experimental precheck`), and IST0170 needs several clusters. IST0141 and IST0142 are
/// about a cluster, not about an object (`run.rs`).
pub const CODES: &[Code] = &[
    code("IST0001", "InternalError", Error),
    code("IST0002", "Deprecated", Warning),
    code("IST0101", "ReferencedResourceNotFound", Error),
    code("IST0102", "NamespaceNotInjected", Info),
    code("IST0103", "PodMissingProxy", Warning),
    code("IST0106", "SchemaValidationError", Error),
    code("IST0107", "MisplacedAnnotation", Warning),
    code("IST0108", "UnknownAnnotation", Warning),
    code("IST0109", "ConflictingMeshGatewayVirtualServiceHosts", Error),
    code("IST0110", "ConflictingSidecarWorkloadSelectors", Error),
    code("IST0111", "MultipleSidecarsWithoutWorkloadSelectors", Error),
    code("IST0112", "VirtualServiceDestinationPortSelectorRequired", Error),
    code("IST0116", "DeploymentAssociatedToMultipleServices", Warning),
    code("IST0118", "PortNameIsNotUnderNamingConvention", Info),
    code("IST0123", "NamespaceMultipleInjectionLabels", Warning),
    code("IST0125", "InvalidAnnotation", Warning),
    code("IST0126", "UnknownMeshNetworksServiceRegistry", Error),
    code("IST0127", "NoMatchingWorkloadsFound", Warning),
    code("IST0128", "NoServerCertificateVerificationDestinationLevel", Warning),
    code("IST0129", "NoServerCertificateVerificationPortLevel", Warning),
    code("IST0130", "VirtualServiceUnreachableRule", Warning),
    code("IST0131", "VirtualServiceIneffectiveMatch", Info),
    code("IST0132", "VirtualServiceHostNotFoundInGateway", Warning),
    code("IST0133", "SchemaWarning", Warning),
    code("IST0134", "ServiceEntryAddressesRequired", Warning),
    code("IST0135", "DeprecatedAnnotation", Info),
    code("IST0136", "AlphaAnnotation", Info),
    code("IST0137", "DeploymentConflictingPorts", Warning),
    code("IST0138", "GatewayDuplicateCertificate", Warning),
    code("IST0139", "InvalidWebhook", Error),
    code("IST0140", "IngressRouteRulesNotAffected", Warning),
    code("IST0141", "InsufficientPermissions", Error),
    code("IST0142", "UnsupportedKubernetesVersion", Error),
    code("IST0143", "LocalhostListener", Error),
    code("IST0144", "InvalidApplicationUID", Warning),
    code("IST0145", "ConflictingGateways", Error),
    code("IST0146", "ImageAutoWithoutInjectionWarning", Warning),
    code("IST0147", "ImageAutoWithoutInjectionError", Error),
    code("IST0148", "NamespaceInjectionEnabledByDefault", Info),
    code("IST0149", "JwtClaimBasedRoutingWithoutRequestAuthN", Error),
    code("IST0150", "ExternalNameServiceTypeInvalidPortName", Warning),
    code("IST0151", "EnvoyFilterUsesRelativeOperation", Warning),
    code("IST0152", "EnvoyFilterUsesReplaceOperationIncorrectly", Error),
    code("IST0153", "EnvoyFilterUsesAddOperationIncorrectly", Error),
    code("IST0154", "EnvoyFilterUsesRemoveOperationIncorrectly", Error),
    code("IST0155", "EnvoyFilterUsesRelativeOperationWithProxyVersion", Warning),
    code("IST0156", "UnsupportedGatewayAPIVersion", Error),
    code("IST0157", "InvalidTelemetryProvider", Warning),
    code("IST0158", "PodsIstioProxyImageMismatchInNamespace", Warning),
    code("IST0159", "ConflictingTelemetryWorkloadSelectors", Error),
    code("IST0160", "MultipleTelemetriesWithoutWorkloadSelectors", Error),
    code("IST0161", "InvalidGatewayCredential", Error),
    code("IST0162", "GatewayPortNotDefinedOnService", Warning),
    code("IST0163", "InvalidExternalControlPlaneConfig", Warning),
    code("IST0164", "ExternalControlPlaneAddressIsNotAHostname", Info),
    code("IST0165", "ReferencedInternalGateway", Warning),
    code("IST0166", "IneffectiveSelector", Warning),
    code("IST0167", "IneffectivePolicy", Warning),
    code("IST0168", "UnknownUpgradeCompatibility", Warning),
    code("IST0169", "UpdateIncompatibility", Warning),
    code("IST0170", "MultiClusterInconsistentService", Warning),
    code("IST0171", "NegativeConditionStatus", Warning),
    code("IST0172", "FutureUnsupportedGatewayAPIVersion", Warning),
    code("IST0173", "DestinationRuleSubsetNotSelectPods", Error),
    code("IST0174", "UnknownDestinationRuleHost", Warning),
    code("IST0175", "JwksUriFetchUnrestricted", Warning),
    code("IST0176", "GatewayAPICRDVersionBelowMinimum", Warning),
    code("IST0177", "ConflictingServiceEntryProtocol", Warning),
    code("LENO0001", "NotSupportedYet", Warning),
    code("LENO0002", "UnknownKind", Warning),
    code("LENO0003", "UnknownField", Warning),
    code("LENO0004", "DuplicateObject", Warning),
    code("LENO0101", "DelegateNotFound", Warning),
    code("LENO0102", "ConflictingDelegate", Warning),
    code("LENO0103", "PortConflict", Warning),
    code("LENO0104", "NoEffect", Warning),
    code("LENO0105", "ListenerLeftOut", Warning),
    code("LENO0106", "RouteNotAttached", Warning),
    code("LENO0107", "SelectorInRootNamespace", Warning),
    code("LENO0108", "ConflictingPolicy", Warning),
    code("LENO0109", "UnusableProvider", Warning),
    code("LENO0110", "InvalidValue", Warning),
    code("LENO0111", "OutdatedCertificate", Warning),
    code("LENO0201", "RefusedByProxy", Error),
];

/// The sort with a code.
pub(crate) fn of_code(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|known| known.code == code)
}

/// The sort of a finding of the readers, of translation or of a proxy, by its word and the kind of the
/// object.
pub(crate) fn of_finding(word: &str, kind: &str, is_error: bool) -> &'static Code {
    let code = match (word, kind) {
        ("unsupported-field" | "unsupported-kind" | "unsupported-value", _) => "LENO0001",
        ("unknown-kind", _) if !is_error => "LENO0002",
        ("unknown-field", _) if !is_error => "LENO0003",
        ("duplicate-object", _) => "LENO0004",
        ("nack", _) => "LENO0201",
        ("unknown-host", "DestinationRule") => "IST0174",
        ("unknown-host" | "unknown-port" | "unknown-subset" | "unknown-gateway", _) => "IST0101",
        ("host-not-exposed", _) => "IST0132",
        ("conflicting-host", _) => "IST0109",
        ("unreachable-rule", _) => "IST0130",
        ("unknown-delegate", _) => "LENO0101",
        ("conflicting-delegate", _) => "LENO0102",
        ("duplicate-subset", _) => "LENO0108",
        ("port-conflict", _) => "LENO0103",
        ("no-effect", _) if !is_error => "LENO0104",
        ("listener-left-out", _) => "LENO0105",
        ("not-routed", _) => "LENO0106",
        ("selector-in-root-namespace", _) => "LENO0107",
        ("policy-conflict", _) => "LENO0108",
        ("bad-provider", _) => "LENO0109",
        ("invalid-value", _) if !is_error => "LENO0110",
        ("outdated-certificate", _) => "LENO0111",
        _ if is_error => "IST0106",
        _ => "IST0133",
    };
    // Every code above is in the table, as a test sees to.
    of_code(code).unwrap_or(&CODES[0])
}

/// Something to be said about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) code: &'static str,
    pub(crate) object: RawKey,
    /// The field, as `spec.http[0].route`; empty for the whole object.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Message {
    /// A message about a whole object.
    pub(crate) fn new(code: &'static str, object: &RawKey, text: String) -> Message {
        Message { code, object: object.clone(), path: String::new(), text }
    }

    /// The same about a field.
    pub(crate) fn at(self, path: impl Into<String>) -> Message {
        Message { path: path.into(), ..self }
    }

    /// That something is not there that an object refers to.
    pub(crate) fn missing(object: &RawKey, what: &str, name: &str) -> Message {
        Message::new("IST0101", object, format!("Referenced {what} not found: {name:?}"))
    }
}

/// A list as istioctl prints it.
pub(crate) fn words<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(" "))
}

#[cfg(test)]
mod tests {
    use super::{CODES, of_code, of_finding};

    #[test]
    fn codes_are_known_and_unique() {
        for known in CODES {
            assert_eq!(of_code(known.code).map(|it| it.name), Some(known.name));
        }
        for (word, kind, is_error, expected) in [
            ("unknown-host", "VirtualService", false, "IST0101"),
            ("unknown-host", "DestinationRule", false, "IST0174"),
            ("no-effect", "Gateway", true, "IST0106"),
            ("no-effect", "Gateway", false, "LENO0104"),
            ("whatever", "Gateway", false, "IST0133"),
            ("nack", "Gateway", true, "LENO0201"),
            ("policy-conflict", "PeerAuthentication", false, "LENO0108"),
        ] {
            assert_eq!(of_finding(word, kind, is_error).code, expected, "{word}");
        }
    }
}
