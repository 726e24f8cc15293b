//! The Container Network Interface: commands in the environment, configuration on stdin, results and errors on
//! stdout. Versions 0.3.0 to 1.1.0 of the specification; what they differ in, for us, is that results of 1.0.0 and
//! later have no `version` in their addresses.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The versions that we speak.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What a runtime asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Check,
    Delete,
    Version,
    Status,
    Collect,
}

/// The variables of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) command: Command,
    pub(crate) container: String,
    /// A file that stands for the container's network namespace; empty if it is gone.
    pub(crate) namespace: String,
    pub(crate) arguments: Arguments,
}

/// What Kubernetes' runtimes say of the pod, in `CNI_ARGS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) pod: String,
    pub(crate) namespace: String,
}

/// Why a call fails; written to stdout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CniError {
    pub(crate) code: u32,
    pub(crate) message: String,
    pub(crate) details: String,
}

/// Codes of the specification; those of plugins begin with 100.
impl CniError {
    pub(crate) const VERSION: u32 = 1;
    pub(crate) const ENVIRONMENT: u32 = 4;
    pub(crate) const DECODING: u32 = 6;
    pub(crate) const CONFIGURATION: u32 = 7;
    pub(crate) const TRY_AGAIN: u32 = 11;
    pub(crate) const UNAVAILABLE: u32 = 50;
    /// The rules cannot be put in place, or are not.
    pub(crate) const RULES: u32 = 100;
    /// The pod asks for what cannot be.
    pub(crate) const POD: u32 = 101;

    pub(crate) fn new(code: u32, message: impl Into<String>, details: impl Into<String>) -> CniError {
        CniError { code, message: message.into(), details: details.into() }
    }

    /// As it is written.
    pub(crate) fn to_json(&self, version: &str) -> Value {
        let CniError { code, message, details } = self;
        json!({ "cniVersion": version, "code": code, "msg": message, "details": details })
    }
}

impl Call {
    /// Reads the variables.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Call, CniError> {
        let missing = |name: &str| CniError::new(CniError::ENVIRONMENT, format!("{name} is missing"), "");
        let text = |name: &str| variable(name).unwrap_or_default();
        let command = match text("CNI_COMMAND").as_str() {
            "ADD" => Command::Add,
            "CHECK" => Command::Check,
            "DEL" => Command::Delete,
            "VERSION" => Command::Version,
            "STATUS" => Command::Status,
            "GC" => Command::Collect,
            "" => return Err(missing("CNI_COMMAND")),
            other => {
                let message = format!("CNI_COMMAND {other:?} is not known");
                return Err(CniError::new(CniError::ENVIRONMENT, message, ""));
            }
        };
        let call = Call {
            command,
            container: text("CNI_CONTAINERID"),
            namespace: text("CNI_NETNS"),
            arguments: arguments(&text("CNI_ARGS")),
        };
        let of_container = matches!(command, Command::Add | Command::Check | Command::Delete);
        if of_container && call.container.is_empty() {
            return Err(missing("CNI_CONTAINERID"));
        }
        if of_container && text("CNI_IFNAME").is_empty() {
            return Err(missing("CNI_IFNAME"));
        }
        if matches!(command, Command::Add | Command::Check) && call.namespace.is_empty() {
            return Err(missing("CNI_NETNS"));
        }
        Ok(call)
    }
}

/// `IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-1`
fn arguments(text: &str) -> Arguments {
    let pairs: BTreeMap<&str, &str> = text.split(';').filter_map(|pair| pair.split_once('=')).collect();
    let value = |name: &str| pairs.get(name).copied().unwrap_or_default().to_owned();
    Arguments { pod: value("K8S_POD_NAME"), namespace: value("K8S_POD_NAMESPACE") }
}

/// Refuses versions that we do not speak.
pub(crate) fn check_version(version: &str) -> Result<(), CniError> {
    if VERSIONS.contains(&version) {
        return Ok(());
    }
    let details = format!("cniVersion {version:?}; supported are {}", VERSIONS.join(", "));
    Err(CniError::new(CniError::VERSION, "incompatible CNI version", details))
}

/// The answer to VERSION.
pub(crate) fn versions(version: &str) -> Value {
    json!({ "cniVersion": version, "supportedVersions": VERSIONS })
}

/// The result of ADD: that of the plugin before us, in the version of the configuration.
pub(crate) fn result(previous: Option<&Value>, version: &str) -> Result<Value, CniError> {
    let Some(previous) = previous.filter(|value| !value.is_null()) else {
        return Ok(json!({ "cniVersion": version }));
    };
    let wrong = |words: &str| CniError::new(CniError::DECODING, format!("prevResult: {words}"), "");
    let mut result = previous.as_object().cloned().ok_or_else(|| wrong("it is no object"))?;
    result.insert("cniVersion".to_owned(), version.into());
    let has_versions = version.starts_with("0.");
    if let Some(ips) = result.get_mut("ips") {
        for ip in ips.as_array_mut().ok_or_else(|| wrong("ips is no list"))? {
            let ip = ip.as_object_mut().ok_or_else(|| wrong("ips has something else than objects"))?;
            if has_versions {
                let address = ip.get("address").and_then(Value::as_str).unwrap_or_default();
                let word = if address.contains(':') { "6" } else { "4" };
                ip.entry("version").or_insert_with(|| word.into());
            } else {
                ip.shift_remove("version");
            }
        }
    }
    Ok(Value::Object(result))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Call, Command, check_version, result};

    fn call(variables: &[(&str, &str)]) -> Result<Call, String> {
        let find = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Call::read(find).map_err(|error| format!("{}: {}", error.code, error.message))
    }

    #[test]
    fn calls() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-1;K8S_POD_INFRA_CONTAINER_ID=9";
        let variables = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "9"),
            ("CNI_NETNS", "/var/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", args),
        ];
        let add = call(&variables).unwrap();
        assert_eq!((add.command, add.namespace.as_str()), (Command::Add, "/var/run/netns/x"));
        assert_eq!((add.arguments.pod.as_str(), add.arguments.namespace.as_str()), ("cart-1", "shop"));
        assert_eq!(call(&variables[..2]).unwrap_err(), "4: CNI_IFNAME is missing");
        assert_eq!(call(&[]).unwrap_err(), "4: CNI_COMMAND is missing");
        assert_eq!(call(&[("CNI_COMMAND", "JUMP")]).unwrap_err(), "4: CNI_COMMAND \"JUMP\" is not known");
        assert!(call(&[("CNI_COMMAND", "STATUS")]).is_ok());
        // The namespace may be gone when it is deleted.
        let delete = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "9"), ("CNI_IFNAME", "eth0")];
        assert!(call(&delete).is_ok());
    }

    #[test]
    fn results_are_passed_on_in_the_version_of_the_configuration() {
        let previous = json!({"ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}], "dns": {}});
        let old = result(Some(&previous), "0.4.0").unwrap();
        assert_eq!(old["ips"][0]["version"], "4");
        assert_eq!(old["ips"][1]["version"], "6");
        let new = result(Some(&old), "1.1.0").unwrap();
        assert_eq!(new["cniVersion"], "1.1.0");
        assert_eq!(new["ips"], previous["ips"]);
        assert_eq!(result(None, "1.0.0").unwrap(), json!({"cniVersion": "1.0.0"}));
        assert!(result(Some(&Value::from(7)), "1.0.0").is_err());
        assert!(check_version("0.3.1").is_ok());
        assert_eq!(check_version("0.2.0").unwrap_err().code, 1);
    }
}
