//! What templates see of a Pod and of the mesh: Istio's `SidecarTemplateData`, whose Go structs are
//! JSON here, asked by the names of Go's fields.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use leno_gotemplate::{Heap, Numbers, Object, Value};
use serde_json::{Value as Json, json};

use super::{Owner, Refused, Settings, pod};

/// All that a template is rendered for.
pub(crate) struct View<'v> {
    pub(crate) pod: &'v Json,
    pub(crate) owner: &'v Owner,
    pub(crate) proxy_config: &'v Json,
    pub(crate) mesh: &'v Json,
    pub(crate) settings: &'v Settings,
    pub(crate) native: bool,
}

/// The user and group of proxies.
pub(crate) const PROXY_ID: i64 = 1337;

impl View<'_> {
    /// The template's dot.
    pub(crate) fn value(&self, heap: &Heap) -> Result<Value, Refused> {
        let part = |name: &str| self.pod.get(name).cloned().unwrap_or_else(|| json!({}));
        let names = |entries: &[(&str, &str)]| {
            let entries = entries.iter().map(|(key, value)| ((*key).into(), Value::text(value)));
            Value::Map(heap.map(entries.collect()))
        };
        let values = heap.json(&self.settings.values, Numbers::Floats)?;
        let revision = &self.settings.revision;
        let policy = self.mesh.pointer("/inboundTrafficPolicy/mode").and_then(Json::as_str);
        let image = image(&self.settings.values, self.proxy_config, self.pod);
        let entries: BTreeMap<Rc<str>, Value> = [
            ("TypeMeta", names(&[("Kind", &self.owner.kind), ("APIVersion", &self.owner.api_version)])),
            ("DeploymentMeta", names(&[("Name", &self.owner.name), ("Namespace", &self.owner.namespace)])),
            ("ObjectMeta", go(part("metadata"), "v1.ObjectMeta")),
            ("Spec", go(part("spec"), "v1.PodSpec")),
            ("ProxyConfig", go(self.proxy_config.clone(), "*v1alpha1.ProxyConfig")),
            ("MeshConfig", go(self.mesh.clone(), "*v1alpha1.MeshConfig")),
            ("Values", values),
            ("Revision", Value::text(revision)),
            ("NativeSidecars", Value::Bool(self.native)),
            ("ProxyImage", Value::text(&image)),
            ("ProxyUID", Value::Int(PROXY_ID)),
            ("ProxyGID", Value::Int(PROXY_ID)),
            (
                "InboundTrafficPolicyMode",
                Value::text(if policy == Some("LOCALHOST") { "localhost" } else { "passthrough" }),
            ),
            ("CompliancePolicy", Value::text(&std::env::var("COMPLIANCE_POLICY").unwrap_or_default())),
        ]
        .into_iter()
        .map(|(key, value)| (key.into(), value))
        .collect();
        Ok(Value::Map(heap.map(entries)))
    }
}

/// The proxy's image: hub, name and tag of the values, and the variant that the Pod asks for.
pub(crate) fn image(values: &Json, proxy_config: &Json, pod: &Json) -> String {
    let value = |path: &str| match values.pointer(path) {
        Some(Json::String(text)) => text.clone(),
        Some(other @ (Json::Number(_) | Json::Bool(_))) => other.to_string(),
        _ => String::new(),
    };
    let asked = pod::annotation(pod, "sidecar.istio.io/proxyImageType").map(str::to_owned);
    let configured = proxy_config.get("image").filter(|image| image.is_object());
    let configured =
        configured.map(|image| image.get("imageType").and_then(Json::as_str).unwrap_or_default().to_owned());
    let variant = asked.or(configured).unwrap_or_else(|| value("/global/variant"));
    let mut tag = value("/global/tag");
    if !variant.is_empty() {
        for known in ["-distroless", "-debug"] {
            if let Some(rest) = tag.strip_suffix(known) {
                tag = rest.to_owned();
                break;
            }
        }
        if variant != "default" {
            tag = format!("{tag}-{variant}");
        }
    }
    let name = Some(value("/global/proxy/image")).filter(|name| !name.is_empty());
    format!("{}/{}:{tag}", value("/global/hub"), name.unwrap_or_else(|| "proxyv2".to_owned()))
}

/// JSON that is asked by Go's names.
pub(crate) struct GoStruct {
    json: Arc<Json>,
    name: &'static str,
}

pub(crate) fn go(json: Json, name: &'static str) -> Value {
    Value::Object(Rc::new(GoStruct { json: Arc::new(json), name }))
}

/// A Go enum: it prints as its name and has `String`.
struct Enum(String);

/// A wrapper message (google.protobuf.BoolValue and others): it has `Value` and `GetValue`.
struct Wrapper(Json);

impl Object for Enum {
    fn type_name(&self) -> &str {
        "enum"
    }

    fn field(&self, _: &Heap, name: &str, _: &[Value]) -> Result<Option<Value>, String> {
        Ok((name == "String").then(|| Value::text(&self.0)))
    }

    fn text(&self) -> Option<String> {
        Some(self.0.clone())
    }

    fn to_json(&self) -> Json {
        Json::from(self.0.as_str())
    }
}

impl Object for Wrapper {
    fn type_name(&self) -> &str {
        "*wrapperspb"
    }

    fn field(&self, heap: &Heap, name: &str, _: &[Value]) -> Result<Option<Value>, String> {
        match name {
            "Value" | "GetValue" => heap.json(&self.0, Numbers::Natural).map(Some),
            _ => Ok(None),
        }
    }

    fn text(&self) -> Option<String> {
        Some(format!("value:{}", self.0))
    }

    fn to_json(&self) -> Json {
        self.0.clone()
    }
}

/// Fields that are empty text, false, an empty list or an empty map where Go has them so.
const TEXTS: &[&str] = &[
    "name",
    "namespace",
    "generateName",
    "serviceAccountName",
    "nodeName",
    "hostname",
    "subdomain",
    "schedulerName",
    "priorityClassName",
    "dnsPolicy",
    "restartPolicy",
    "image",
    "imagePullPolicy",
    "uid",
    "protocol",
    "value",
    "discoveryAddress",
    "trustDomain",
    "rootNamespace",
    "configPath",
    "binaryPath",
    "serviceCluster",
    "customConfigFile",
    "proxyBootstrapTemplatePath",
    "imageType",
    "caCertificates",
    "address",
    "accessToken",
    "mountPath",
    "workingDir",
];
const SWITCHES: &[&str] = &["hostNetwork", "hostPID", "hostIPC", "readOnly", "stdin", "tty", "enableTracing"];
const LISTS: &[&str] = &[
    "containers",
    "initContainers",
    "volumes",
    "imagePullSecrets",
    "tolerations",
    "ports",
    "env",
    "envFrom",
    "args",
    "command",
    "volumeMounts",
    "ownerReferences",
    "finalizers",
    "extensionProviders",
    "hostAliases",
    "ephemeralContainers",
];
/// Maps from text to text.
const MAPS: &[&str] =
    &["annotations", "labels", "nodeSelector", "proxyMetadata", "matchLabels", "runtimeValues"];
const NUMBERS: &[&str] =
    &["statusPort", "proxyAdminPort", "proxyListenPort", "proxyInboundListenPort", "proxyHttpPort"];
const ENUMS: &[(&str, &str)] = &[
    ("interceptionMode", "REDIRECT"),
    ("controlPlaneAuthPolicy", "NONE"),
    ("accessLogEncoding", "TEXT"),
    ("ingressControllerMode", "UNSPECIFIED"),
];
const WRAPPERS: &[&str] = &[
    "holdApplicationUntilProxyStarts",
    "enablePrometheusMerge",
    "enableAutoMtls",
    "enableIstioTags",
    "concurrency",
];

impl Object for GoStruct {
    fn type_name(&self) -> &str {
        self.name
    }

    fn field(&self, heap: &Heap, name: &str, args: &[Value]) -> Result<Option<Value>, String> {
        if !args.is_empty() {
            return Ok(None);
        }
        // Getters of messages; `Get` itself is no name of a field.
        let is_message = self.name.starts_with("*v1alpha1");
        let field = match name.strip_prefix("Get") {
            Some(rest) if is_message && rest.starts_with(char::is_uppercase) => rest,
            _ => name,
        };
        let key = json_name(field);
        let found = self.json.get(&key).filter(|value| !value.is_null());
        let message = if is_message { "*v1alpha1.Message" } else { "v1.Struct" };
        if let Some((_, zero)) = ENUMS.iter().find(|(known, _)| *known == key).filter(|_| is_message) {
            let text = found.and_then(Json::as_str).unwrap_or(zero);
            return Ok(Some(Value::Object(Rc::new(Enum(text.to_owned())))));
        }
        if is_message && WRAPPERS.contains(&key.as_str()) {
            return Ok(Some(match found {
                Some(value) => Value::Object(Rc::new(Wrapper(value.clone()))),
                None => Value::Nil,
            }));
        }
        if MAPS.contains(&key.as_str()) {
            let map = found.and_then(Json::as_object);
            let text = |value: &Json| match value {
                Json::String(text) => Value::text(text),
                other => Value::text(&other.to_string()),
            };
            let entries =
                map.into_iter().flatten().map(|(key, value)| (key.as_str().into(), text(value))).collect();
            return Ok(Some(Value::Map(heap.strings(entries))));
        }
        Ok(Some(match found {
            Some(value) => wrap(heap, value, message)?,
            None if TEXTS.contains(&key.as_str()) => Value::text(""),
            None if SWITCHES.contains(&key.as_str()) => Value::Bool(false),
            None if LISTS.contains(&key.as_str()) => heap.list(Vec::new())?,
            None if NUMBERS.contains(&key.as_str()) => Value::Int(0),
            None => Value::Nil,
        }))
    }

    fn to_json(&self) -> Json {
        (*self.json).clone()
    }
}

fn wrap(heap: &Heap, value: &Json, name: &'static str) -> Result<Value, String> {
    match value {
        Json::Object(_) => Ok(go(value.clone(), name)),
        Json::Array(items) => {
            heap.list(items.iter().map(|item| wrap(heap, item, name)).collect::<Result<_, _>>()?)
        }
        other => heap.json(other, Numbers::Natural),
    }
}

/// The JSON name of a Go field: `HostNetwork` is `hostNetwork`, `DNSPolicy` is `dnsPolicy`.
fn json_name(field: &str) -> String {
    let capitals = field.chars().take_while(char::is_ascii_uppercase).count();
    let lower = match capitals {
        0 => 0,
        1 => 1,
        all if all == field.len() => all,
        // The last capital begins the next word.
        several => several - 1,
    };
    let (start, rest) = field.split_at(lower);
    start.to_ascii_lowercase() + rest
}
