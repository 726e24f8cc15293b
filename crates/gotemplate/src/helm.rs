//! Charts rendered as `helm template` renders them: values merged over the chart's own, named
//! templates of all files, and the objects `.Values`, `.Release`, `.Chart`, `.Capabilities`,
//! `.Files` and `.Template`. Charts have no dependencies here.

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, OnceLock},
};

use serde_json::{Map as JsonMap, Value as Json};

use crate::{Error, Functions, Heap, Limits, Numbers, Object, Templates, Value, yaml};

/// A chart, read.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// `Chart.yaml`.
    pub metadata: Json,
    /// `values.yaml`.
    pub values: Json,
    /// Files below `templates/` by their path in the chart (`templates/x.yaml`), and their text.
    pub templates: BTreeMap<String, String>,
    /// All other files by their path in the chart, for `.Files`.
    pub files: BTreeMap<String, String>,
}

/// `.Release`.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its name.
    pub name: String,
    /// Where it is installed.
    pub namespace: String,
    /// 1 when installed, more when upgraded.
    pub revision: i64,
    /// Whether this is an upgrade.
    pub upgrade: bool,
}

/// `.Capabilities`.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// As `v1.33.0`.
    pub kube_version: String,
    /// As `v1`, `apps/v1`, `apps/v1/Deployment`.
    pub api_versions: Vec<String>,
}

/// Renders all templates of a chart: the text of each file by its path below the chart's name
/// (`leno/templates/x.yaml`). Files whose names begin with `_` only define.
pub fn render(
    chart: &Chart,
    values: &Json,
    release: &Release,
    capabilities: &Capabilities,
    limits: Limits,
) -> Result<BTreeMap<String, String>, Error> {
    static FUNCTIONS: OnceLock<Arc<Functions>> = OnceLock::new();
    let functions = FUNCTIONS.get_or_init(|| Arc::new(Functions::helm()));
    let name = chart.metadata.get("name").and_then(Json::as_str).unwrap_or_default().to_owned();
    let mut templates = Templates::new(Arc::clone(functions));
    templates.lenient = false;
    // Later definitions win: files that lie deeper first, then by name, as Helm sorts them.
    let mut paths: Vec<_> = chart.templates.keys().collect();
    paths.sort_by_key(|path| (path.matches('/').count(), path.as_str()));
    for path in paths.iter().rev() {
        templates.add(&format!("{name}/{path}"), &chart.templates[*path])?;
    }
    let mut merged = chart.values.clone();
    coalesce(&mut merged, values);
    let mut rendered = BTreeMap::new();
    // All files share the objects, as in Helm: what one sets those after it see.
    let files = chart.templates.len().max(1) as u64;
    let limits = Limits { steps: limits.steps * files, bytes: limits.bytes * files };
    let heap = limits.heap();
    let failed = |template: &str, message: String| Error {
        template: template.to_owned(),
        line: 1,
        column: 0,
        at: None,
        message,
    };
    let dot = dot(&heap, chart, &merged, release, capabilities).map_err(|message| failed(&name, message))?;
    for path in paths.iter().rev() {
        let file = path.rsplit('/').next().unwrap_or(path);
        if file.starts_with('_') {
            continue;
        }
        let full = format!("{name}/{path}");
        let base = [("Name", full.clone()), ("BasePath", format!("{name}/templates"))];
        let base = base.into_iter().map(|(key, value)| (key.into(), Value::text(&value))).collect();
        if let Value::Map(dot) = &dot {
            dot.insert("Template", Value::Map(heap.map(base)));
        }
        let text = templates.render(&heap, &full, &dot)?;
        rendered.insert(full, text.replace("<no value>", ""));
    }
    Ok(rendered)
}

/// Values over a chart's: maps are merged, null takes a key away, all else replaces.
pub fn coalesce(base: &mut Json, over: &Json) {
    match (base, over) {
        (Json::Object(base), Json::Object(over)) => {
            for (key, value) in over {
                match (base.get_mut(key), value) {
                    (_, Json::Null) => {
                        base.shift_remove(key);
                    }
                    (Some(old @ Json::Object(_)), Json::Object(_)) => coalesce(old, value),
                    (Some(old), _) => *old = value.clone(),
                    (None, _) => {
                        base.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (_, Json::Null) => {}
        (base, over) => *base = over.clone(),
    }
}

fn dot(
    heap: &Heap,
    chart: &Chart,
    values: &Json,
    release: &Release,
    capabilities: &Capabilities,
) -> Result<Value, String> {
    let text = |text: &str| Value::text(text);
    let map = |entries: Vec<(&str, Value)>| {
        Value::Map(heap.map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect()))
    };
    let mut metadata = JsonMap::new();
    metadata.insert("IsRoot".to_owned(), Json::Bool(true));
    // `.Chart.AppVersion`: fields of a Go struct.
    for (key, value) in chart.metadata.as_object().into_iter().flatten() {
        let field = match key.as_str() {
            "apiVersion" => "APIVersion".to_owned(),
            other => {
                let mut letters = other.chars();
                let first = letters.next().map(|letter| letter.to_uppercase().collect::<String>());
                first.unwrap_or_default() + letters.as_str()
            }
        };
        metadata.insert(field, value.clone());
    }
    Ok(map(vec![
        ("Values", heap.json(values, Numbers::Floats)?),
        ("Chart", heap.json(&Json::Object(metadata), Numbers::Natural)?),
        (
            "Release",
            map(vec![
                ("Name", text(&release.name)),
                ("Namespace", text(&release.namespace)),
                ("Revision", Value::Int(release.revision)),
                ("IsUpgrade", Value::Bool(release.upgrade)),
                ("IsInstall", Value::Bool(!release.upgrade)),
                ("Service", text("Helm")),
            ]),
        ),
        ("Capabilities", Value::Object(Rc::new(CapabilitiesObject(capabilities.clone())))),
        ("Files", Value::Object(Rc::new(Files(Rc::new(chart.files.clone()))))),
        ("Subcharts", map(Vec::new())),
    ]))
}

struct CapabilitiesObject(Capabilities);

impl Object for CapabilitiesObject {
    fn type_name(&self) -> &str {
        "*chartutil.Capabilities"
    }

    fn field(&self, heap: &Heap, name: &str, _: &[Value]) -> Result<Option<Value>, String> {
        Ok(match name {
            "KubeVersion" => {
                let version = &self.0.kube_version;
                let mut parts = version.trim_start_matches('v').split(['.', '-', '+']);
                let mut part = || Value::text(parts.next().unwrap_or_default());
                let (major, minor) = (part(), part());
                let entries = [
                    ("Version", Value::text(version)),
                    ("GitVersion", Value::text(version)),
                    ("Major", major),
                    ("Minor", minor),
                ];
                let entries = entries.into_iter().map(|(key, value)| (key.into(), value)).collect();
                Some(Value::Map(heap.map(entries)))
            }
            "APIVersions" => Some(Value::Object(Rc::new(ApiVersions(self.0.api_versions.clone())))),
            "HelmVersion" => {
                let entries = [("Version".into(), Value::text("v3.21.0"))].into_iter().collect();
                Some(Value::Map(heap.map(entries)))
            }
            _ => None,
        })
    }
}

struct ApiVersions(Vec<String>);

impl Object for ApiVersions {
    fn type_name(&self) -> &str {
        "chartutil.VersionSet"
    }

    fn field(&self, _: &Heap, name: &str, args: &[Value]) -> Result<Option<Value>, String> {
        match (name, args) {
            ("Has", [Value::String(version)]) => {
                Ok(Some(Value::Bool(self.0.iter().any(|known| **known == **version))))
            }
            ("Has", _) => Err("Has takes one text".to_owned()),
            _ => Ok(None),
        }
    }

    fn to_json(&self) -> Json {
        Json::from(self.0.clone())
    }
}

/// `.Files`, or some of them.
struct Files(Rc<BTreeMap<String, String>>);

impl Object for Files {
    fn type_name(&self) -> &str {
        "engine.files"
    }

    fn field(&self, heap: &Heap, name: &str, args: &[Value]) -> Result<Option<Value>, String> {
        let by_base =
            || self.0.iter().map(|(path, text)| (path.rsplit('/').next().unwrap_or(path).to_owned(), text));
        match (name, args) {
            ("Get" | "GetBytes", [Value::String(path)]) => match self.0.get(&**path) {
                Some(text) => heap.text(text).map(Some),
                None => Ok(Some(Value::text(""))),
            },
            ("Lines", [Value::String(path)]) => {
                let text = self.0.get(&**path).map_or("", String::as_str);
                let text = text.strip_suffix('\n').unwrap_or(text);
                let lines =
                    if text.is_empty() { Vec::new() } else { text.split('\n').map(Value::text).collect() };
                heap.list(lines).map(Some)
            }
            ("Glob", [Value::String(pattern)]) => {
                let pattern = glob(pattern)?;
                let found = self.0.iter().filter(|(path, _)| pattern.is_match(path));
                let found = found.map(|(path, text)| (path.clone(), text.clone())).collect();
                Ok(Some(Value::Object(Rc::new(Files(Rc::new(found))))))
            }
            ("AsConfig", []) => {
                let object: JsonMap<_, _> =
                    by_base().map(|(path, text)| (path, Json::from(text.as_str()))).collect();
                let text = if object.is_empty() { String::new() } else { yaml::text(&Json::Object(object)) };
                heap.text(text.trim_end_matches('\n')).map(Some)
            }
            ("AsSecrets", []) => {
                let encode = |text: &String| Json::from(leno_base::base64::encode(text.as_bytes()));
                let object: JsonMap<_, _> = by_base().map(|(path, text)| (path, encode(text))).collect();
                let text = if object.is_empty() { String::new() } else { yaml::text(&Json::Object(object)) };
                heap.text(text.trim_end_matches('\n')).map(Some)
            }
            // As a map, with the path as a method: `.Files.name`.
            (path, []) => self.0.get(path).map(|text| heap.text(text)).transpose(),
            (method, _) => Err(format!("{method} does not take these arguments")),
        }
    }

    fn entries(&self) -> Option<Vec<(String, Value)>> {
        Some(self.0.iter().map(|(path, text)| (path.clone(), Value::text(text))).collect())
    }

    fn to_json(&self) -> Json {
        self.0.iter().map(|(path, text)| (path.clone(), Json::from(text.as_str()))).collect()
    }
}

/// gobwas/glob with `/` as separator: `*`, `**`, `?`, `{a,b}`, `[a-z]`.
fn glob(pattern: &str) -> Result<regex::Regex, String> {
    let mut text = String::from("^");
    let mut letters = pattern.chars().peekable();
    let mut depth = 0;
    while let Some(letter) = letters.next() {
        match letter {
            '*' if letters.peek() == Some(&'*') => {
                letters.next();
                text.push_str(".*");
            }
            '*' => text.push_str("[^/]*"),
            '?' => text.push_str("[^/]"),
            '{' => {
                depth += 1;
                text.push_str("(?:");
            }
            '}' if depth > 0 => {
                depth -= 1;
                text.push(')');
            }
            ',' if depth > 0 => text.push('|'),
            '[' | ']' | '-' => text.push(letter),
            other => text.push_str(&regex::escape(&other.to_string())),
        }
    }
    text.push('$');
    regex::Regex::new(&text).map_err(|_| format!("bad pattern {pattern:?}"))
}
