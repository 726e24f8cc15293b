//! A row of a table: who asks what, and what must come of it. meshes/README.md says how to write one.

use std::collections::BTreeMap;
use std::time::Duration;

/// What is asked of a mesh in one state. The rows of a chain are asked one after the other, chains at
/// the same time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Step {
    /// The folder of what is written anew first; none: the mesh as it is at its start.
    pub(crate) change: Option<String>,
    pub(crate) chains: Vec<Vec<Row>>,
}

/// A row.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Where it is written, counted from one.
    pub(crate) line: usize,
    /// The text, for messages.
    pub(crate) text: String,
    pub(crate) ask: Ask,
    /// What may come of it; of what is asked often all must be seen.
    pub(crate) expect: Vec<Expectation>,
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// HTTP in plain text.
    Http,
    /// HTTP over TLS.
    Https,
    /// Lines of text.
    Tcp,
    /// Lines of text over TLS.
    Tls,
}

/// A question.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// The name of the pod whose workload asks, or `outside`.
    pub(crate) source: String,
    pub(crate) kind: Kind,
    /// The method of HTTP.
    pub(crate) method: String,
    /// The name that is asked for.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The path of HTTP.
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) version: Version,
    /// Where to connect to, if that is not what the name stands for: `NAME:PORT`.
    pub(crate) to: Option<String>,
    /// The name in the TLS handshake, if it is another one; empty: none.
    pub(crate) sni: Option<String>,
    /// The identity that the client shows in the handshake.
    pub(crate) identity: Option<String>,
    /// Protocols that the client offers in the handshake, if not those of HTTP.
    pub(crate) alpn: Option<Vec<String>>,
    /// A body.
    pub(crate) body: String,
    /// How often to ask.
    pub(crate) times: usize,
    /// Whether the client waits for the server's first words.
    pub(crate) waits: bool,
    /// Whether it is asked at once so often.
    pub(crate) together: bool,
    /// Whether it is asked again until what comes of it is as it should be.
    pub(crate) soon: bool,
    /// Whether it is about what only our proxy has.
    pub(crate) ours: bool,
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http10,
    Http11,
    H2,
}

/// What must come of a question.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expectation {
    pub(crate) end: End,
    /// Where it may end, with the share in percent; all of them must be seen if it is asked often.
    pub(crate) places: Vec<(Option<u32>, String)>,
    /// Headers as the back end sees them; `None`: absent.
    pub(crate) seen: Vec<(String, Option<String>)>,
    /// Headers of the response.
    pub(crate) headers: Vec<(String, Option<String>)>,
    /// Facts of the request as the back end sees it, by name.
    pub(crate) facts: BTreeMap<String, String>,
    /// Where a copy must arrive.
    pub(crate) mirrors: Vec<String>,
    /// The body of the response.
    pub(crate) body: Option<String>,
    /// How long it takes at least and at most.
    pub(crate) after: Option<Duration>,
    pub(crate) within: Option<Duration>,
    /// How many requests back ends see.
    pub(crate) attempts: Option<usize>,
    /// The name in the certificate that the client is shown.
    pub(crate) certificate: Option<String>,
    /// Whether all questions must end at one and the same of the places.
    pub(crate) same: bool,
    /// What must be written to logs, by their names; `None`: nothing.
    pub(crate) logs: Vec<(String, Option<String>)>,
    /// Lines that there must be in logs, by their names, whoever they are about: nothing tells what
    /// question a connection was made for.
    pub(crate) lines: Vec<(String, String)>,
    /// What must be counted.
    pub(crate) metrics: Vec<Metric>,
    /// Spans that collectors must be told, each by what it must have.
    pub(crate) spans: Vec<Vec<Label>>,
}

/// A name with its value; `None`: absent.
#[derive(Clone, Debug)]
pub(crate) struct Label(pub(crate) String, pub(crate) Option<String>);

/// A sample of a proxy's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metric {
    /// Whether there must be one, or must not.
    pub(crate) there: bool,
    pub(crate) pod: String,
    pub(crate) name: String,
    pub(crate) labels: Vec<Label>,
}

/// How it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum End {
    /// With a response of this status.
    Status(u16),
    /// A back end's words arrive.
    Words,
    /// Without a word.
    #[default]
    Closed,
}

/// Reads a table. `{name}` stands for what `names` says.
pub(crate) fn read(text: &str, names: &BTreeMap<String, String>) -> Result<Vec<Step>, String> {
    let mut steps = vec![Step::default()];
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(change) = line.strip_prefix("@ ") {
            steps.push(Step { change: Some(change.trim().to_owned()), chains: Vec::new() });
            continue;
        }
        let Some(step) = steps.last_mut() else { continue };
        let mut expanded = line.to_owned();
        for (name, value) in names {
            expanded = expanded.replace(&format!("{{{name}}}"), value);
        }
        let wrong = |error| format!("line {}: {error}: {line}", index + 1);
        let (follows, rest) = match expanded.strip_prefix("then ") {
            Some(rest) => (true, rest),
            None => (false, expanded.as_str()),
        };
        let (mut ask, expect) = parse(rest).map_err(wrong)?;
        // It takes its time until a change is everywhere.
        ask.soon |= step.change.is_some();
        let row = Row { line: index + 1, text: line.to_owned(), ask, expect };
        match step.chains.last_mut() {
            Some(chain) if follows => chain.push(row),
            None if follows => return Err(wrong("after what?".to_owned())),
            _ => step.chains.push(vec![row]),
        }
    }
    Ok(steps)
}

/// Columns are separated by two spaces or more.
fn columns(text: &str) -> Vec<&str> {
    text.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect()
}

fn parse(line: &str) -> Result<(Ask, Vec<Expectation>), String> {
    let (left, right) = line.split_once(" -> ").ok_or("there is no `->`")?;
    let left = columns(left);
    let [source, request, options @ ..] = left.as_slice() else {
        return Err("who asks what?".to_owned());
    };
    let mut ask = question(source, request)?;
    for option in options {
        option_of(&mut ask, option)?;
    }
    let right = columns(right);
    let expect = right.split(|column| *column == "or").map(expectation);
    Ok((ask, expect.collect::<Result<_, _>>()?))
}

fn expectation(columns: &[&str]) -> Result<Expectation, String> {
    let [end, facts @ ..] = columns else { return Err("what comes of it?".to_owned()) };
    let mut expect = outcome(end)?;
    for fact in facts {
        fact_of(&mut expect, fact)?;
    }
    Ok(expect)
}

fn question(source: &str, request: &str) -> Result<Ask, String> {
    let (method, target) = request.split_once(' ').ok_or("METHOD URL or TCP HOST:PORT")?;
    let target = target.trim();
    let (kind, rest) = match (method, target.split_once("://")) {
        ("TCP", None) => (Kind::Tcp, target),
        ("TLS", None) => (Kind::Tls, target),
        (_, Some(("http", rest))) => (Kind::Http, rest),
        (_, Some(("https", rest))) => (Kind::Https, rest),
        _ => return Err(format!("{target:?} is no URL")),
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let default = if kind == Kind::Https { "443" } else { "80" };
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, default));
    Ok(Ask {
        source: source.to_owned(),
        kind,
        method: method.to_owned(),
        host: host.to_owned(),
        port: port.parse().map_err(|_| format!("{port:?} is no port"))?,
        path: path.to_owned(),
        headers: Vec::new(),
        version: Version::Http11,
        to: None,
        sni: None,
        identity: None,
        alpn: None,
        body: String::new(),
        times: 1,
        waits: false,
        together: false,
        soon: false,
        ours: false,
    })
}

fn option_of(ask: &mut Ask, option: &str) -> Result<(), String> {
    if let Some((name, value)) = option.split_once(": ") {
        ask.headers.push((name.to_owned(), value.trim().to_owned()));
        return Ok(());
    }
    match option.split_once(' ').unwrap_or((option, "")) {
        ("h2", "") => ask.version = Version::H2,
        ("http/1.0", "") => ask.version = Version::Http10,
        ("waits", "") => ask.waits = true,
        ("together", "") => ask.together = true,
        ("soon", "") => ask.soon = true,
        ("ours", "") => ask.ours = true,
        ("to", place) => ask.to = Some(place.to_owned()),
        ("sni", name) => ask.sni = Some(name.to_owned()),
        ("as", identity) => ask.identity = Some(identity.to_owned()),
        ("alpn", names) => ask.alpn = Some(names.split(',').map(str::to_owned).collect()),
        ("body", text) => ask.body = text.to_owned(),
        (times, "") if times.starts_with('x') => {
            ask.times = times[1..].parse().map_err(|_| format!("{times:?}: how often?"))?;
        }
        _ => return Err(format!("{option:?} is no option of a request")),
    }
    Ok(())
}

fn outcome(text: &str) -> Result<Expectation, String> {
    let (end, places) = text.split_once(' ').unwrap_or((text, ""));
    let end = match end {
        "words" => End::Words,
        "closed" => End::Closed,
        status => End::Status(status.parse().map_err(|_| format!("{status:?} is no outcome"))?),
    };
    let place = |text: &str| match text.trim().split_once("% ") {
        Some((share, name)) => {
            let share = share.parse().map_err(|_| format!("{share:?} is no share"))?;
            Ok((Some(share), name.to_owned()))
        }
        None => Ok((None, text.trim().to_owned())),
    };
    let places = places.split('|').filter(|text| !text.trim().is_empty()).map(place);
    Ok(Expectation { end, places: places.collect::<Result<_, String>>()?, ..Expectation::default() })
}

fn fact_of(expect: &mut Expectation, fact: &str) -> Result<(), String> {
    let header = |text: &str| match text.split_once(':') {
        Some((name, value)) => (name.trim().to_owned(), Some(value.trim().to_owned())),
        None => (text.trim_start_matches('!').trim().to_owned(), None),
    };
    let time = |text: &str| {
        let seconds: f64 = text.trim_end_matches('s').parse().map_err(|_| format!("{text:?}: how long?"))?;
        Ok::<_, String>(Some(Duration::from_secs_f64(seconds)))
    };
    match fact.split_once(' ').unwrap_or((fact, "")) {
        (">", text) => expect.seen.push(header(text)),
        ("<", text) => expect.headers.push(header(text)),
        ("mirror", place) => expect.mirrors.push(place.to_owned()),
        ("body", text) => expect.body = Some(text.to_owned()),
        ("after", text) => expect.after = time(text)?,
        ("within", text) => expect.within = time(text)?,
        ("attempts", count) => {
            expect.attempts = Some(count.parse().map_err(|_| format!("{count:?}: how many?"))?);
        }
        ("same", "") => expect.same = true,
        ("log", text) => {
            let (log, text) = text.split_once(' ').ok_or_else(|| format!("{text:?}: what does it say?"))?;
            expect.logs.push((log.to_owned(), Some(text.to_owned())));
        }
        ("!log", log) => expect.logs.push((log.to_owned(), None)),
        ("line", text) => {
            let (log, text) = text.split_once(' ').ok_or_else(|| format!("{text:?}: what does it say?"))?;
            expect.lines.push((log.to_owned(), text.to_owned()));
        }
        ("metric", text) => expect.metrics.push(metric(true, text)?),
        ("!metric", text) => expect.metrics.push(metric(false, text)?),
        ("span", text) => {
            expect.spans.push(text.split(' ').map(label).collect::<Result<_, _>>()?);
        }
        ("certificate", name) => expect.certificate = Some(name.to_owned()),
        (name @ ("path" | "host" | "method" | "protocol" | "tls" | "peer" | "proxied" | "sent"), value) => {
            expect.facts.insert(name.to_owned(), value.to_owned());
        }
        _ => return Err(format!("{fact:?} is nothing that can be expected")),
    }
    Ok(())
}

fn metric(there: bool, text: &str) -> Result<Metric, String> {
    let mut words = text.split(' ');
    let (Some(pod), Some(name)) = (words.next(), words.next()) else {
        return Err(format!("{text:?}: which proxy counts what?"));
    };
    let labels = words.map(label).collect::<Result<_, _>>()?;
    Ok(Metric { there, pod: pod.to_owned(), name: name.to_owned(), labels })
}

fn label(word: &str) -> Result<Label, String> {
    match (word.split_once('='), word.strip_prefix('!')) {
        (Some((name, value)), _) => Ok(Label(name.to_owned(), Some(value.to_owned()))),
        (None, Some(name)) => Ok(Label(name.to_owned(), None)),
        _ => Err(format!("{word:?} is no label")),
    }
}

impl Label {
    /// Whether the value that there is of this name, if any, is as it should be.
    pub(crate) fn fits(&self, actual: Option<&str>) -> bool {
        match (&self.1, actual) {
            (Some(value), Some(actual)) => fits(value, actual),
            (None, actual) => actual.is_none(),
            (Some(_), None) => false,
        }
    }
}

/// Whether a text is as a pattern says, in which `*` stands for anything.
pub(crate) fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}
