//! The functions that Istio gives to templates of injection, over sprig's.

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, OnceLock},
};

use leno_gotemplate::{Call, Functions, Numbers, Value, print, yaml};
use serde_json::{Value as Json, json};

use super::{PROXY, pod, proxy};

/// Any number of arguments.
const ANY: usize = leno_gotemplate::functions::ANY;

/// All functions.
pub(crate) fn all() -> Arc<Functions> {
    static ALL: OnceLock<Arc<Functions>> = OnceLock::new();
    Arc::clone(ALL.get_or_init(|| {
        let mut functions = Functions::sprig();
        texts(&mut functions);
        maps(&mut functions);
        encoders(&mut functions);
        ports(&mut functions);
        Arc::new(functions)
    }))
}

fn texts(functions: &mut Functions) {
    functions.add("annotation", 3, 3, |call| {
        let name = call.text(1)?;
        let found = annotations(call, 0)?.find(name);
        match found {
            Some(value) => Ok(value),
            None => call.reply(print::default(call.arg(2))?),
        }
    });
    functions.add("valueOrDefault", 2, 2, |call| {
        let is_empty = match call.arg(0) {
            Value::Nil => true,
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        Ok(call.arg(usize::from(is_empty)).clone())
    });
    // The first line keeps its place: the template has indented it.
    functions.add("indent", 2, 2, |call| {
        let blanks = usize::try_from(call.int(0)?).map_err(|_| "negative indent".to_owned())?;
        let text = call.text(1)?;
        call.heap().spend(blanks.saturating_mul(text.matches('\n').count()))?;
        let pad = " ".repeat(blanks.max(1));
        call.reply(text.replace('\n', &format!("\n{pad}")))
    });
    functions.add("directory", 1, 1, |call| {
        let path = call.text(0)?;
        call.reply(&path[..path.rfind('/').map_or(0, |at| at + 1)])
    });
    functions.add("contains", 2, 2, |call| Ok(Value::Bool(call.text(1)?.contains(call.text(0)?))));
    functions.add("toLower", 1, 1, |call| call.reply(call.text(0)?.to_lowercase()));
    functions.add("kubevirtInterfaces", 1, 1, |call| Ok(call.arg(0).clone()));
    functions.add("excludeInterfaces", 1, 1, |call| Ok(call.arg(0).clone()));
    functions.add("formatDuration", 1, 1, |call| match call.arg(0) {
        Value::Nil => call.reply("0s"),
        value => {
            let text = print::default(value)?;
            match crate::model::duration::Span::parse(&text) {
                Some(span) => call.reply(go_duration(span.0)),
                None => Err(format!("{text:?} is no duration")),
            }
        }
    });
    // Variables of the control plane that are meant for Pods.
    functions.add("env", 2, 2, |call| {
        let value = std::env::var(call.text(0)?).unwrap_or_default();
        call.reply(if value.is_empty() { call.text(1)? } else { &value })
    });
    functions.add("appendMultusNetwork", 2, 2, |call| {
        let result = multus(call.text(0)?, call.text(1)?);
        call.reply(result)
    });
    functions.add("otelResourceAttributes", 5, 5, |call| {
        let mesh = call.arg(0).to_json()?;
        let (annotations, labels) = (annotations(call, 1)?, annotations(call, 2)?);
        let namespace = call.text(3)?;
        let containers = call.arg(4).to_json()?;
        call.reply(resource_attributes(&mesh, &annotations, &labels, namespace, &containers))
    });
}

fn maps(functions: &mut Functions) {
    functions.add("isset", 2, 2, |call| {
        let key = call.text(1)?;
        Ok(Value::Bool(annotations(call, 0)?.find(key).is_some()))
    });
    functions.add("omit", 1, ANY, |call| {
        let mut keys = Vec::new();
        for index in 1..call.args().len() {
            keys.push(call.text(index)?);
        }
        let entries =
            annotations(call, 0)?.0.into_iter().filter(|(key, _)| !keys.contains(&&**key)).collect();
        Ok(Value::Map(call.heap().strings(entries)))
    });
    functions.add("strdict", 0, ANY, |call| {
        let mut entries = BTreeMap::new();
        for index in (0..call.args().len()).step_by(2) {
            let value = if index + 1 < call.args().len() { call.text(index + 1)? } else { "" };
            entries.insert(Rc::from(call.text(index)?), Value::text(value));
        }
        Ok(Value::Map(call.heap().strings(entries)))
    });
    functions.add("mergeMaps", 0, ANY, |call| {
        let entries = merged(call)?;
        Ok(Value::Map(call.heap().strings(entries)))
    });
    functions.add("toJsonMap", 0, ANY, |call| {
        let object: Json = merged(call)?
            .into_iter()
            .map(|(key, value)| Ok((key.to_string(), value.to_json()?)))
            .collect::<Result<serde_json::Map<_, _>, String>>()?
            .into();
        call.reply(object.to_string())
    });
    functions.add("omitNil", 1, 1, |call| {
        let json = without_nil(&call.arg(0).to_json()?);
        call.heap().json(&json, Numbers::Floats)
    });
}

fn encoders(functions: &mut Functions) {
    functions.add("toYaml", 1, 1, |call| call.reply(yaml::text(&call.arg(0).to_json()?)));
    functions.add("toJSON", 1, 1, |call| match call.arg(0) {
        Value::Nil => call.reply("{}"),
        value => call.reply(value.to_json()?.to_string()),
    });
    functions.add("fromJSON", 1, 1, |call| match serde_json::from_str(call.text(0)?) {
        Ok(json) => call.heap().json(&json, Numbers::Floats),
        Err(_) => call.reply("{}"),
    });
    functions.add("structToJSON", 1, 1, |call| match call.arg(0) {
        Value::Nil => call.reply("{}"),
        value => call.reply(ordered(&value.to_json()?).to_string()),
    });
    functions.add("protoToJSON", 1, 1, |call| match call.arg(0) {
        Value::Nil => call.reply("{}"),
        Value::Object(object) if object.type_name() == "*v1alpha1.ProxyConfig" => {
            call.reply(proxy::without_defaults(&object.to_json()).to_string())
        }
        value => call.reply(value.to_json()?.to_string()),
    });
}

fn ports(functions: &mut Functions) {
    functions.add("excludeInboundPort", 2, 2, |call| {
        let port = print::default(call.arg(0))?;
        let (port, excluded) = (port.trim(), call.text(1)?);
        if port.is_empty() || port == "0" || excluded.split(',').any(|known| known == port) {
            return call.reply(excluded);
        }
        let known = excluded.split(',').map(str::trim).filter(|port| !port.is_empty());
        call.reply(known.chain([port]).collect::<Vec<_>>().join(","))
    });
    functions.add("includeInboundPorts", 1, 1, |call| {
        let containers = call.arg(0).to_json()?;
        call.reply(container_ports(&containers, |_| true))
    });
    functions.add("applicationPorts", 1, 1, |call| {
        let containers = call.arg(0).to_json()?;
        call.reply(container_ports(&containers, |name| name != PROXY))
    });
}

/// A map from text to text, or the annotations of an ObjectMeta.
struct Texts(BTreeMap<Rc<str>, Value>);

impl Texts {
    fn find(&self, name: &str) -> Option<Value> {
        self.0.get(name).cloned()
    }

    fn text(&self, name: &str) -> Option<String> {
        match self.0.get(name) {
            Some(Value::String(text)) if !text.is_empty() => Some(text.to_string()),
            _ => None,
        }
    }
}

fn annotations(call: &Call<'_>, index: usize) -> Result<Texts, String> {
    match call.arg(index) {
        Value::Map(map) => Ok(Texts(map.entries().into_iter().collect())),
        Value::Nil => Ok(Texts(BTreeMap::new())),
        Value::Object(object) => match object.field(call.heap(), "Annotations", &[])? {
            Some(Value::Map(map)) => Ok(Texts(map.entries().into_iter().collect())),
            _ => Ok(Texts(BTreeMap::new())),
        },
        other => Err(format!("wrong type for value; expected map[string]string; got {}", other.type_name())),
    }
}

fn merged(call: &Call<'_>) -> Result<BTreeMap<Rc<str>, Value>, String> {
    let mut entries = BTreeMap::new();
    for index in 0..call.args().len() {
        entries.extend(annotations(call, index)?.0);
    }
    Ok(entries)
}

/// Without null, and without what is empty for that reason.
fn without_nil(value: &Json) -> Json {
    fn has_nil(value: &Json) -> bool {
        match value {
            Json::Null => true,
            Json::Object(map) => map.values().any(has_nil),
            Json::Array(items) => items.iter().any(has_nil),
            _ => false,
        }
    }
    if !has_nil(value) {
        return value.clone();
    }
    match value {
        Json::Object(map) => {
            let kept: serde_json::Map<_, _> = map
                .iter()
                .map(|(key, value)| (key.clone(), without_nil(value)))
                .filter(|(_, value)| !value.is_null())
                .collect();
            if kept.is_empty() { Json::Null } else { Json::Object(kept) }
        }
        Json::Array(items) => {
            let kept: Vec<_> = items.iter().map(without_nil).filter(|value| !value.is_null()).collect();
            if kept.is_empty() { Json::Null } else { Json::Array(kept) }
        }
        _ => Json::Null,
    }
}

/// A port in the order of Kubernetes' type, as the proxy's metadata have it.
fn ordered(value: &Json) -> Json {
    let Json::Object(map) = value else { return value.clone() };
    if !map.contains_key("containerPort") {
        return value.clone();
    }
    let order = ["name", "hostPort", "containerPort", "protocol", "hostIP"];
    order.iter().filter_map(|key| Some(((*key).to_owned(), map.get(*key)?.clone()))).collect()
}

fn container_ports(containers: &Json, wanted: impl Fn(&str) -> bool) -> String {
    let mut found = Vec::new();
    for container in containers.as_array().into_iter().flatten().filter(|it| wanted(pod::name(it))) {
        for port in container.get("ports").and_then(Json::as_array).into_iter().flatten() {
            if !matches!(port.get("protocol").and_then(Json::as_str), Some("UDP" | "SCTP")) {
                found.extend(port.get("containerPort").map(Json::to_string));
            }
        }
    }
    found.join(",")
}

/// Adds our network to Multus' annotation: a list of names, or JSON.
fn multus(existing: &str, network: &str) -> String {
    if existing.is_empty() {
        return network.to_owned();
    }
    let Some(end) = existing.rfind(']') else {
        return match existing.split(',').any(|known| known.trim() == network) {
            true => existing.to_owned(),
            false => format!("{existing}, {network}"),
        };
    };
    let Ok(networks) = serde_json::from_str::<Vec<Json>>(existing) else { return existing.to_owned() };
    let (namespace, name) = network.split_once('/').unwrap_or(("", network));
    let is_ours = |known: &Json| {
        let text = |key: &str| known.get(key).and_then(Json::as_str).unwrap_or_default();
        text("name") == name && text("namespace") == namespace
    };
    if networks.iter().any(is_ours) {
        return existing.to_owned();
    }
    let ours = match namespace {
        "" => json!({"name": name}).to_string(),
        _ => format!("{{\"name\": \"{name}\", \"namespace\": \"{namespace}\"}}"),
    };
    format!("{}, {ours}{}", &existing[..end], &existing[end..])
}

/// OTEL_RESOURCE_ATTRIBUTES, if a provider asks for OpenTelemetry's conventions.
fn resource_attributes(
    mesh: &Json,
    annotations: &Texts,
    labels: &Texts,
    namespace: &str,
    containers: &Json,
) -> String {
    let providers = mesh.get("extensionProviders").and_then(Json::as_array).into_iter().flatten();
    let mut modes = providers.filter_map(|it| it.pointer("/opentelemetry/serviceAttributeEnrichment"));
    if !modes.any(|mode| mode == "OTEL_SEMANTIC_CONVENTIONS") {
        return String::new();
    }
    let containers = containers.as_array().map_or(&[][..], Vec::as_slice);
    let mut found = Vec::new();
    let own = |name: &str| annotations.text(&format!("resource.opentelemetry.io/{name}"));
    let set = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let namespace_value = own("service.namespace").or_else(|| set(namespace));
    let version = own("service.version").or_else(|| labels.text("app.kubernetes.io/version")).or_else(|| {
        match containers {
            [only] => image_version(only.get("image").and_then(Json::as_str).unwrap_or_default()),
            _ => None,
        }
    });
    let instance = own("service.instance.id")
        .or_else(|| Some(format!("{namespace}.$(POD_NAME).{}", pod::name(containers.first()?))));
    for (name, value) in [
        ("service.namespace", namespace_value),
        ("service.version", version),
        ("service.instance.id", instance),
    ] {
        found.extend(value.map(|value| format!("{name}={value}")));
    }
    found.join(",")
}

/// Tag and digest of an image.
fn image_version(image: &str) -> Option<String> {
    let (image, digest) =
        image.split_once('@').map_or((image, None), |(image, digest)| (image, Some(digest)));
    let name = image.rsplit('/').next().unwrap_or(image);
    match (name.rsplit_once(':').map(|(_, tag)| tag), digest) {
        (Some(tag), Some(digest)) => Some(format!("{tag}@{digest}")),
        (tag, digest) => tag.or(digest).map(str::to_owned),
    }
}

/// Go's Duration.String.
fn go_duration(duration: std::time::Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    if seconds == 0 && nanos > 0 {
        let micros = f64::from(nanos) / 1e3;
        return if micros >= 1e3 { format!("{}ms", micros / 1e3) } else { format!("{micros}µs") };
    }
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = (seconds % 60) as f64 + f64::from(nanos) / 1e9;
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}
