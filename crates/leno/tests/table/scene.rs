//! Everything that rows need, and how one is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::backend::{Backend, Seen};
use crate::client::{self, Answer};
use crate::collector::Span;
use crate::keys::Keys;
use crate::mesh::Mesh;
use crate::place::Place;
use crate::row::{Expectation, Label, Metric, Row, fits};

/// How much less than it should a wait may take.
const COARSE: Duration = Duration::from_millis(20);
/// How long it may take until what comes after a response is there: copies of the request, lines of
/// logs, counts; and until a change is everywhere.
const LATE: Duration = Duration::from_secs(20);
/// How long to wait before looking again.
const AGAIN: Duration = Duration::from_millis(10);

/// Everything that a row needs.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    pub(crate) places: BTreeMap<String, Place>,
    pub(crate) backend: Arc<Backend>,
    pub(crate) keys: Keys,
    /// Where logs are.
    pub(crate) folder: PathBuf,
}

impl Scene {
    /// Asks what a row asks; gives what is not as it says.
    pub(crate) async fn row(self: &Arc<Scene>, row: &Row) -> Vec<String> {
        let start = Instant::now();
        for round in 0.. {
            let faults = self.round(row, round).await;
            if faults.is_empty() || !row.ask.soon || start.elapsed() > LATE {
                return faults;
            }
            tokio::time::sleep(AGAIN).await;
        }
        Vec::new()
    }

    async fn round(self: &Arc<Scene>, row: &Row, round: usize) -> Vec<String> {
        let ask = &row.ask;
        if ask.source != "outside" && !self.places.contains_key(&ask.source) {
            return vec![format!("there is no proxy beside {:?}", ask.source)];
        }
        let Some(to) = self.target(row) else { return vec!["where is that?".to_owned()] };
        let mut faults = BTreeSet::new();
        // How often it ended as each of the alternatives says, and where.
        let mut counts = vec![0; row.expect.len()];
        let mut places: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        let shared = Arc::new(row.clone());
        let mut asked = JoinSet::new();
        for index in 0..ask.times {
            let (scene, row) = (Arc::clone(self), Arc::clone(&shared));
            let id = format!("{}.{index}.{round}", row.line);
            asked.spawn(async move { Box::pin(scene.question(&row, to, &id)).await });
            if ask.together && index + 1 < ask.times {
                continue;
            }
            while let Some(done) = asked.join_next().await {
                match done {
                    Ok((Ok(alternative), place)) => {
                        counts[alternative] += 1;
                        if let Some(place) = place {
                            *places.entry((alternative, place)).or_default() += 1;
                        }
                    }
                    Ok((Err(wrong), _)) => faults.extend(wrong),
                    Err(error) => drop(faults.insert(error.to_string())),
                }
            }
        }
        for (alternative, expect) in row.expect.iter().enumerate() {
            if counts[alternative] == 0 && faults.is_empty() && ask.times >= row.expect.len() {
                faults.insert(format!("never ends with {:?}", expect.end));
            }
            let at = |place: usize| places.get(&(alternative, place)).copied().unwrap_or(0);
            if expect.same {
                let used = (0..expect.places.len()).filter(|&place| at(place) > 0).count();
                if used > 1 {
                    faults.insert(format!("ends at {used} places"));
                }
                continue;
            }
            for (index, (share, name)) in expect.places.iter().enumerate() {
                let count = at(index);
                let percent = u32::try_from(count * 100 / ask.times).unwrap_or(u32::MAX);
                let fits = match share {
                    Some(share) => share.abs_diff(percent) <= 18,
                    None => count > 0 || ask.times < 2,
                };
                if !fits {
                    faults.insert(format!("{count} of {} at {name}", ask.times));
                }
            }
        }
        faults.into_iter().collect()
    }

    /// Asks once; gives which of the alternatives has come of it, or what is wrong with the nearest one,
    /// and where it ended.
    async fn question(
        &self,
        row: &Row,
        to: SocketAddr,
        id: &str,
    ) -> (Result<usize, Vec<String>>, Option<usize>) {
        let pod = self.places.get(&row.ask.source).map(|place| &place.pod);
        let answer = client::ask(pod, to, &row.ask, id, &self.keys).await;
        let seen = self.seen(id, &row.expect).await;
        let mut nearest: Option<Vec<String>> = None;
        for (index, expect) in row.expect.iter().enumerate() {
            let mut faults = compare(expect, &answer, &seen, self);
            if faults.is_empty() {
                faults.extend(self.logged(id, expect).await);
                faults.extend(self.counted(expect).await);
                faults.extend(self.traced(id, expect).await);
            }
            if faults.is_empty() {
                return (Ok(index), self.place_of(expect, &seen));
            }
            if nearest.as_ref().is_none_or(|nearest| faults.len() < nearest.len()) {
                nearest = Some(faults);
            }
        }
        (Err(nearest.unwrap_or_default()), None)
    }

    /// Where a client connects to.
    fn target(&self, row: &Row) -> Option<SocketAddr> {
        if let Some(to) = &row.ask.to {
            let (name, port) = to.rsplit_once(':')?;
            let pod = self.mesh.pod(name).map(|pod| pod.address.into());
            return Some(SocketAddr::new(
                pod.or_else(|| self.mesh.find(name, "default"))?,
                port.parse().ok()?,
            ));
        }
        let namespace = self.places.get(&row.ask.source).map_or("default", |place| place.namespace.as_str());
        Some(SocketAddr::new(self.mesh.find(&row.ask.host, namespace)?, row.ask.port))
    }

    /// What back ends have seen of a question; copies of it take their time.
    async fn seen(&self, id: &str, expect: &[Expectation]) -> Vec<Seen> {
        let start = Instant::now();
        loop {
            let seen = self.backend.seen(id);
            let arrived = |name: &String| seen.iter().any(|seen| self.is_at(seen.at, name));
            if expect.iter().any(|expect| expect.mirrors.iter().all(arrived)) || start.elapsed() > LATE {
                return seen;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Waits for what must be in logs; gives what is not.
    async fn logged(&self, id: &str, expect: &Expectation) -> Vec<String> {
        let start = Instant::now();
        loop {
            let mut faults = Vec::new();
            for (log, text) in &expect.logs {
                let Some(text) = text else { continue };
                let lines = self.lines(log, id);
                if !lines.iter().any(|line| fits(text, line)) {
                    faults.push(format!("the log {log} has {lines:?}"));
                }
            }
            for (log, text) in &expect.lines {
                let all = self.log(log);
                if !all.lines().any(|line| fits(text, line)) {
                    faults.push(format!("the log {log} has no such line: {text}"));
                }
            }
            if faults.is_empty() || start.elapsed() > LATE {
                return faults;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// All that a log says.
    fn log(&self, log: &str) -> String {
        fs::read_to_string(self.folder.join(format!("{log}.log"))).unwrap_or_default()
    }

    /// What a log says of a question: what comes after its number, or of JSON the whole line.
    fn lines(&self, log: &str, id: &str) -> Vec<String> {
        let text = self.log(log);
        let (begin, within) = (format!("{id} "), format!("{id:?}"));
        let about = |line: &str| match line.strip_prefix(&begin) {
            Some(rest) => Some(rest.to_owned()),
            None => line.contains(&within).then(|| line.to_owned()),
        };
        text.lines().filter_map(about).collect()
    }

    /// Lines about questions in logs which are to have none. To be called at the end, when all that is
    /// to be written has been.
    pub(crate) fn unexpected_logs(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for row in self.mesh.steps.iter().flat_map(|step| &step.chains).flatten() {
            let logs = row.expect.iter().flat_map(|expect| &expect.logs);
            for (log, _) in logs.filter(|(_, text)| text.is_none()) {
                let lines: Vec<_> = (0..row.ask.times)
                    .flat_map(|time| self.lines(log, &format!("{}.{time}.0", row.line)))
                    .collect();
                if !lines.is_empty() {
                    wrong.push(format!("line {}: {}\n      the log {log} has {lines:?}", row.line, row.text));
                }
            }
        }
        wrong
    }

    /// Waits for what must have been counted; gives what is not as it should be.
    async fn counted(&self, expect: &Expectation) -> Vec<String> {
        let start = Instant::now();
        let mut faults = Vec::new();
        for metric in &expect.metrics {
            loop {
                let Some(place) = self.places.get(&metric.pod) else {
                    faults.push(format!("there is no proxy {:?}", metric.pod));
                    break;
                };
                // Histograms are counted under the name that their samples begin with.
                let stat = ["_count", "_sum", "_bucket"].iter().find_map(|end| metric.name.strip_suffix(end));
                let stat = stat.unwrap_or(&metric.name);
                let page = place.admin(&format!("/stats/prometheus?filter={stat}")).await;
                let page = page.unwrap_or_default();
                let found = page.lines().any(|line| metric.is(line));
                if found == metric.there {
                    break;
                }
                // What must not be there is looked for after what must.
                if !metric.there || start.elapsed() > LATE {
                    let all: Vec<_> = page.lines().filter(|line| line.starts_with(&metric.name)).collect();
                    faults.push(format!("{} of {}: {all:#?}", metric.name, metric.pod));
                    break;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
        faults
    }

    /// Waits for the spans that there must be of a question; gives what is not there.
    async fn traced(&self, id: &str, expect: &Expectation) -> Vec<String> {
        let start = Instant::now();
        loop {
            let spans = self.backend.spans(id);
            let is_told = |wanted: &[Label]| {
                let fits = |span: &Span| wanted.iter().all(|label| label.fits(span.get(&label.0)));
                spans.iter().any(fits)
            };
            let missing = expect.spans.iter().filter(|wanted| !is_told(wanted));
            let faults: Vec<String> =
                missing.map(|wanted| format!("no span has {wanted:?}, but there are {spans:#?}")).collect();
            if faults.is_empty() || start.elapsed() > LATE {
                return faults;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether an address is what a table calls by a name: `POD`, `POD:PORT`, `HOST:PORT`,
    /// `ADDRESS:PORT`.
    fn is_at(&self, at: SocketAddr, name: &str) -> bool {
        let names = self.mesh.names(at.ip());
        let is = |host: &str| names.contains(&host) || at.ip().to_string() == host;
        match name.rsplit_once(':') {
            Some((host, port)) => is(host) && at.port().to_string() == port,
            None => is(name),
        }
    }

    fn is_mirror(&self, expect: &Expectation, seen: &Seen) -> bool {
        expect.mirrors.iter().any(|name| self.is_at(seen.at, name))
    }

    /// Which of the places that are expected a request has ended at.
    fn place_of(&self, expect: &Expectation, seen: &[Seen]) -> Option<usize> {
        let last = seen.iter().rfind(|seen| !self.is_mirror(expect, seen))?;
        expect.places.iter().position(|(_, name)| self.is_at(last.at, name))
    }
}

fn compare(expect: &Expectation, answer: &Answer, seen: &[Seen], scene: &Scene) -> Vec<String> {
    let mut faults = Vec::new();
    if answer.end != expect.end {
        let words = format!("{:?} {} {:?}", answer.end, answer.error, answer.body.trim());
        faults.push(format!("ends with {words}"));
    }
    let own: Vec<&Seen> = seen.iter().filter(|seen| !scene.is_mirror(expect, seen)).collect();
    match (own.last(), expect.places.is_empty()) {
        (Some(last), true) => faults.push(format!("arrives at {}", describe(last, scene))),
        (None, false) => faults.push("arrives nowhere".to_owned()),
        (Some(last), false) if scene.place_of(expect, seen).is_none() => {
            faults.push(format!("arrives at {}", describe(last, scene)));
        }
        _ => {}
    }
    for name in &expect.mirrors {
        if !seen.iter().any(|seen| scene.is_at(seen.at, name)) {
            faults.push(format!("no copy at {name}"));
        }
    }
    if let Some(last) = own.last() {
        for (name, value) in &expect.facts {
            let actual = last.facts.get(name.as_str()).map_or("", String::as_str);
            if !fits(value, actual) {
                faults.push(format!("{name} is {actual:?}"));
            }
        }
        faults.extend(headers(&expect.seen, &last.headers).map(|fault| format!("the back end sees {fault}")));
    }
    faults.extend(headers(&expect.headers, &answer.headers).map(|fault| format!("the client sees {fault}")));
    if let Some(body) = &expect.body
        && !fits(body, answer.body.trim())
    {
        faults.push(format!("the body is {:?}", answer.body));
    }
    if expect.attempts.is_some_and(|count| count != own.len()) {
        faults.push(format!("{} attempts", own.len()));
    }
    // Proxies count in whole milliseconds, of a clock that they read once a turn.
    if expect.after.is_some_and(|time| answer.took + COARSE < time)
        || expect.within.is_some_and(|time| answer.took > time)
    {
        faults.push(format!("took {:?}", answer.took));
    }
    if expect.certificate.is_some() && expect.certificate != answer.certificate {
        faults.push(format!("the certificate is of {:?}", answer.certificate));
    }
    faults
}

impl Metric {
    /// Whether a line of a page is such a sample, and counts something.
    fn is(&self, line: &str) -> bool {
        let Some((name, rest)) = line.split_once('{') else { return false };
        let Some((labels, value)) = rest.rsplit_once("} ") else { return false };
        let label = |name: &str| {
            let begin = format!("{name}=\"");
            labels
                .split("\",")
                .find_map(|label| label.strip_prefix(&begin))
                .map(|text| text.trim_end_matches('"'))
        };
        let is = |wanted: &Label| wanted.fits(label(&wanted.0));
        name == self.name && value != "0" && self.labels.iter().all(is)
    }
}

/// Headers that are not as they should be. `*` stands for anything.
fn headers<'e>(
    expected: &'e [(String, Option<String>)],
    actual: &'e http::HeaderMap,
) -> impl Iterator<Item = String> + 'e {
    expected.iter().filter_map(|(name, value)| {
        let all = actual.get_all(name.as_str()).iter();
        let all: Vec<String> =
            all.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
        let joined = (!all.is_empty()).then(|| all.join(","));
        let fits = match (value.as_deref(), &joined) {
            (Some(value), Some(joined)) => fits(value, joined),
            (None, joined) => joined.is_none(),
            (Some(_), None) => false,
        };
        (!fits).then(|| format!("{name}: {joined:?}"))
    })
}

fn describe(seen: &Seen, scene: &Scene) -> String {
    let names = scene.mesh.names(seen.at.ip()).join(" ");
    format!("{} {names} {:?}", seen.at, seen.facts)
}
