//! Versions and the constraints on them, as Masterminds/semver reads them (`>= 1.20-0`, `^1.2`,
//! `~1.2.3`, `1.x`, `1.2 - 1.4`, with commas or blanks for *and* and `||` for *or*).

use std::cmp::Ordering;

/// A version; parts that are missing are 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) numbers: [u64; 3],
    /// The pre-release, without `-`.
    pub(super) before: String,
    /// The metadata, without `+`.
    pub(super) build: String,
}

impl Version {
    pub(super) fn parse(text: &str) -> Option<Version> {
        let (version, given) = partial(text)?;
        (given > 0).then_some(version)
    }

    fn compare(&self, other: &Version) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| before(&self.before, &other.before))
    }
}

/// A version of which parts may be missing or `x`; how many parts were given.
fn partial(text: &str) -> Option<(Version, usize)> {
    let text = text.trim();
    let text = text.strip_prefix('v').unwrap_or(text);
    let (text, build) = text.split_once('+').unwrap_or((text, ""));
    let (core, before) = text.split_once('-').unwrap_or((text, ""));
    let word =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
    if !word(before) || !word(build) {
        return None;
    }
    let mut numbers = [0; 3];
    let mut given = 0;
    let mut wild = false;
    let parts: Vec<_> = core.split('.').collect();
    if parts.len() > 3 {
        return None;
    }
    for (number, part) in numbers.iter_mut().zip(parts) {
        if matches!(part, "x" | "X" | "*") {
            wild = true;
            continue;
        }
        *number = part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())??;
        given += usize::from(!wild);
    }
    let version = Version { numbers, before: before.to_owned(), build: build.to_owned() };
    Some((version, given))
}

/// Pre-releases come before the release and are compared part by part.
fn before(a: &str, b: &str) -> Ordering {
    match (a.is_empty(), b.is_empty()) {
        (true, true) => return Ordering::Equal,
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        _ => {}
    }
    let (mut left, mut right) = (a.split('.'), b.split('.'));
    loop {
        let ordering = match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(a), Some(b)) => match (a.parse::<u64>(), b.parse::<u64>()) {
                (Ok(a), Ok(b)) => a.cmp(&b),
                (Ok(_), Err(_)) => Ordering::Less,
                (Err(_), Ok(_)) => Ordering::Greater,
                _ => a.cmp(b),
            },
        };
        if ordering != Ordering::Equal {
            return ordering;
        }
    }
}

/// Whether a version satisfies a constraint.
pub(super) fn matches(constraint: &str, version: &Version) -> Result<bool, String> {
    let bad = || format!("improper constraint: {constraint}");
    let mut any = false;
    for alternative in constraint.split("||") {
        let mut all = true;
        for (operator, bound) in terms(alternative).ok_or_else(bad)? {
            let (bound, given) = partial(&bound).ok_or_else(bad)?;
            all &= satisfies(&operator, &bound, given, version);
        }
        any |= all;
    }
    Ok(any)
}

/// The operators and versions of one alternative.
fn terms(text: &str) -> Option<Vec<(String, String)>> {
    // `1.2 - 1.4` is a range.
    if let Some((from, to)) = text.split_once(" - ") {
        return Some(vec![
            (">=".to_owned(), from.trim().to_owned()),
            ("<=".to_owned(), to.trim().to_owned()),
        ]);
    }
    let mut terms = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let length = rest.find(|letter: char| !"=!<>~^".contains(letter))?;
        let (operator, after) = rest.split_at(length);
        let after = after.trim_start();
        let end = after.find([',', ' ', '<', '>', '=', '!', '~', '^']).unwrap_or(after.len());
        let (version, after) = after.split_at(end);
        if version.is_empty() {
            return None;
        }
        if !matches!(operator, "" | "=" | "!=" | ">" | "<" | ">=" | "=>" | "<=" | "=<" | "~" | "~>" | "^") {
            return None;
        }
        terms.push((operator.to_owned(), version.to_owned()));
        rest = after.trim_start_matches([',', ' ']);
    }
    Some(terms)
}

fn satisfies(operator: &str, bound: &Version, given: usize, version: &Version) -> bool {
    // Pre-releases are only looked at where the constraint names one.
    if !version.before.is_empty() && bound.before.is_empty() {
        return false;
    }
    let ordering = version.compare(bound);
    let same = |parts: usize| version.numbers[..parts] == bound.numbers[..parts];
    match operator {
        "" | "=" if given < 3 => same(given) && (bound.before.is_empty() || ordering.is_ge()),
        "" | "=" => ordering.is_eq(),
        "!=" if given < 3 => !same(given),
        "!=" => ordering.is_ne(),
        ">" if given < 3 => ordering.is_gt() && !same(given),
        ">" => ordering.is_gt(),
        "<" => ordering.is_lt(),
        ">=" | "=>" => ordering.is_ge(),
        "<=" | "=<" if given < 3 => ordering.is_le() || same(given),
        "<=" | "=<" => ordering.is_le(),
        "~" | "~>" => ordering.is_ge() && same(given.min(2)),
        _ => {
            // `^`: nothing changes left of the first figure that is not zero.
            let first = bound.numbers.iter().position(|number| *number != 0);
            let fixed = first.map_or(given, |first| (first + 1).min(given.max(1)));
            ordering.is_ge() && same(fixed.min(3))
        }
    }
}
