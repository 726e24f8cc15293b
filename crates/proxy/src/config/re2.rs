//! RE2's dialect of regular expressions, which Envoy's configuration is written in, on top of
//! the `regex` crate.
//!
//! The two are siblings, but a pattern may mean different things to them: `\d`, `\w`, `\s` and
//! `\b` are ASCII in RE2; `[`, `&&`, `--` and `~~` are ordinary in its classes; a brace that is
//! no repetition is ordinary; `**` is an error. The pattern is rewritten accordingly.

use regex::bytes::{Regex, RegexBuilder};

/// What RE2 takes in `{n,m}`.
const MAX_REPETITION: u32 = 1000;

/// Compiles a pattern that may match anywhere.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    build(&translate(pattern)?, pattern)
}

/// Compiles a pattern that must match the whole text, as all of Envoy's matchers do.
pub(crate) fn compile_full(pattern: &str) -> Result<Regex, String> {
    let translated = translate(pattern)?;
    // On its own first: `a)(b` must not be closed by our group.
    build(&translated, pattern)?;
    build(&format!(r"\A(?:{translated})\z"), pattern)
}

fn build(translated: &str, pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(translated).size_limit(8 << 20).build().map_err(|error| {
        // The crate's message quotes the translated pattern over several lines; the last one says why.
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        format!("invalid regex '{pattern}': {reason}")
    })
}

/// Translates RE2's substitution syntax (`\1`, `\\`) into that of the crate (`${1}`).
///
/// As in RE2, a group that the pattern lacks leaves every match as it is, and a backslash with
/// anything else behind it ends the substitution: Envoy does not check either.
pub(crate) fn substitution(text: &str, pattern: &Regex) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text.chars();
    let mut ended = false;
    while let Some(next) = rest.next() {
        match next {
            '\\' => match rest.next() {
                Some('\\') if !ended => out.push('\\'),
                Some(digit @ '0'..='9') => {
                    if digit as usize - '0' as usize >= pattern.captures_len() {
                        return "${0}".to_owned();
                    }
                    if !ended {
                        out.push_str("${");
                        out.push(digit);
                        out.push('}');
                    }
                }
                Some('\\') => {}
                _ => ended = true,
            },
            _ if ended => {}
            '$' => out.push_str("$$"),
            other => out.push(other),
        }
    }
    out
}

/// Rewrites what the crate would read differently.
fn translate(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    // Whether the last thing was a repetition (another one right behind it is an error in RE2).
    let mut repeated = false;
    while let Some(next) = rest.chars().next() {
        let width = next.len_utf8();
        match next {
            '\\' => {
                let escape = rest.get(1..).and_then(|rest| rest.chars().next());
                if escape == Some('Q') {
                    let body = rest.get(2..).unwrap_or_default();
                    let (quoted, behind) = body.split_once(r"\E").unwrap_or((body, ""));
                    out.push_str(&regex::escape(quoted));
                    rest = behind;
                    repeated = false;
                    continue;
                }
                match escape {
                    Some('d') => out.push_str("[0-9]"),
                    Some('D') => out.push_str("[^0-9]"),
                    Some('w') => out.push_str("[0-9A-Za-z_]"),
                    Some('W') => out.push_str("[^0-9A-Za-z_]"),
                    Some('s') => out.push_str(r"[\t\n\x0C\r ]"),
                    Some('S') => out.push_str(r"[^\t\n\x0C\r ]"),
                    Some('b') => out.push_str(r"(?-u:\b)"),
                    Some('B') => out.push_str(r"(?-u:\B)"),
                    Some('C') => out.push_str("(?s-u:.)"),
                    Some(literal @ ('<' | '>')) => out.push(literal),
                    Some(other) => {
                        out.push('\\');
                        out.push(other);
                    }
                    None => return Err(format!("invalid regex '{pattern}': trailing \\")),
                }
                rest = rest.get(1 + escape.map_or(0, char::len_utf8)..).unwrap_or_default();
                // The braces of \p{..} and \x{..} are no repetition.
                if matches!(escape, Some('p' | 'P' | 'x')) && rest.starts_with('{') {
                    let end = rest.find('}').map_or(rest.len(), |end| end + 1);
                    out.push_str(&rest[..end]);
                    rest = &rest[end..];
                }
                repeated = false;
                continue;
            }
            '[' => {
                rest = class(rest, &mut out);
                repeated = false;
                continue;
            }
            '{' => match repetition_end(rest) {
                Some(end) => {
                    let counts = rest[1..end - 1].split(',').filter(|count| !count.is_empty());
                    if counts
                        .map(str::parse::<u32>)
                        .any(|count| count.map_or(true, |count| count > MAX_REPETITION))
                    {
                        return Err(format!("invalid regex '{pattern}': invalid repetition size"));
                    }
                    if repeated {
                        return Err(format!("invalid regex '{pattern}': bad repetition operator"));
                    }
                    out.push_str(&rest[..end]);
                    rest = &rest[end..];
                    if let Some(lazy) = rest.strip_prefix('?') {
                        out.push('?');
                        rest = lazy;
                    }
                    repeated = true;
                    continue;
                }
                None => out.push_str(r"\{"),
            },
            '*' | '+' | '?' => {
                if repeated {
                    return Err(format!("invalid regex '{pattern}': bad repetition operator"));
                }
                out.push(next);
                rest = &rest[width..];
                if let Some(lazy) = rest.strip_prefix('?') {
                    out.push('?');
                    rest = lazy;
                }
                repeated = true;
                continue;
            }
            other => {
                out.push(other);
                // `(?` begins a group with flags or a name: its question mark repeats nothing.
                // Names may be repeated in RE2, and nothing here reads them.
                if other == '(' && rest.get(1..).is_some_and(|rest| rest.starts_with('?')) {
                    let named = rest.strip_prefix("(?P<").or_else(|| rest.strip_prefix("(?<"));
                    let name = named.and_then(|behind| behind.split_once('>'));
                    match name {
                        Some((name, behind)) if is_name(name) => {
                            rest = behind;
                            repeated = false;
                            continue;
                        }
                        _ => {
                            out.push('?');
                            rest = &rest[1..];
                        }
                    }
                }
            }
        }
        rest = &rest[width..];
        repeated = false;
    }
    Ok(out)
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|letter| letter.is_alphanumeric() || letter == '_')
}

/// The length of `{n}`, `{n,}` or `{n,m}` at the beginning of the text.
fn repetition_end(text: &str) -> Option<usize> {
    let end = text.find('}')?;
    let body = &text[1..end];
    let (low, high) = body.split_once(',').unwrap_or((body, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (!low.is_empty() && digits(low) && digits(high)).then_some(end + 1)
}

/// Copies the class at the beginning of the text; gives what follows it.
fn class<'p>(text: &'p str, out: &mut String) -> &'p str {
    out.push('[');
    let mut rest = &text[1..];
    if let Some(negated) = rest.strip_prefix('^') {
        out.push('^');
        rest = negated;
    }
    let mut first = true;
    while let Some(next) = rest.chars().next() {
        match next {
            ']' if !first => {
                out.push(']');
                return &rest[1..];
            }
            ']' => out.push_str(r"\]"),
            '[' => {
                let named = rest.starts_with("[:").then(|| rest.find(":]")).flatten();
                if let Some(end) = named {
                    out.push_str(&rest[..end + 2]);
                    rest = &rest[end + 2..];
                    first = false;
                    continue;
                }
                out.push_str(r"\[");
            }
            '&' | '~' => {
                out.push('\\');
                out.push(next);
            }
            '\\' => {
                let escape = rest.get(1..).and_then(|rest| rest.chars().next());
                match escape {
                    Some('d') => out.push_str("0-9"),
                    Some('D') => out.push_str("[^0-9]"),
                    Some('w') => out.push_str("0-9A-Za-z_"),
                    Some('W') => out.push_str("[^0-9A-Za-z_]"),
                    Some('s') => out.push_str(r"\t\n\x0C\r "),
                    Some('S') => out.push_str(r"[^\t\n\x0C\r ]"),
                    Some(literal @ ('<' | '>')) => out.push(literal),
                    Some(other) => {
                        out.push('\\');
                        out.push(other);
                    }
                    None => out.push('\\'),
                }
                rest = rest.get(1 + escape.map_or(0, char::len_utf8)..).unwrap_or_default();
                first = false;
                continue;
            }
            // `--` would be a difference; a `-` in front of `]` or behind `[` is ordinary anyway.
            '-' if rest.starts_with("--") => out.push_str(r"\-"),
            other => out.push(other),
        }
        rest = &rest[next.len_utf8()..];
        first = false;
    }
    rest
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::{compile, compile_full, substitution};

    fn check(pattern: &str, texts: &[&str], expected: &Expect) {
        let shown = match compile_full(pattern) {
            Ok(regex) => {
                let matches = texts.iter().filter(|text| regex.is_match(text.as_bytes()));
                matches.copied().collect::<Vec<_>>().join(" ")
            }
            Err(error) => error,
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn patterns_match_the_whole_text() {
        check("/a.*", &["/a", "/ab", "x/a"], &expect!["/a /ab"]);
        check("a|b", &["a", "b", "ab"], &expect!["a b"]);
        check(r"\d+", &["12", "١٢"], &expect!["12"]);
        check(r"[\w.]+", &["a_1.b", "é"], &expect!["a_1.b"]);
        check("é.", &["éa", "éé"], &expect!["éa éé"]);
    }

    #[test]
    fn what_the_crate_would_read_differently() {
        check("[[a]+", &["[a[", "a"], &expect!["[a[ a"]);
        check("[a&&b]+", &["a&b", "a"], &expect!["a&b a"]);
        check("a{,2}", &["a{,2}", "aa"], &expect!["a{,2}"]);
        check("a{2}", &["aa", "a"], &expect!["aa"]);
        check(r"\Qa.b\E.", &["a.bc", "axbc"], &expect!["a.bc"]);
        check("(?i)ab(?:c)?", &["AB", "abC", "x"], &expect!["AB abC"]);
        check("[[:alpha:]-]+", &["a-b", "1"], &expect!["a-b"]);
        check("[]a]+", &["]a", "b"], &expect!["]a"]);
        check(r"\<a\>", &["<a>", "a"], &expect!["<a>"]);
        check(r"\x{41}\pL+", &["Aé", "B"], &expect!["Aé"]);
    }

    #[test]
    fn errors() {
        check("a**", &[], &expect!["invalid regex 'a**': bad repetition operator"]);
        check("(a", &[], &expect!["invalid regex '(a': unclosed group"]);
        check("a)(b", &[], &expect!["invalid regex 'a)(b': unopened group"]);
        check(
            "(?=a)",
            &[],
            &expect![
                "invalid regex '(?=a)': look-around, including look-ahead and look-behind, is not supported"
            ],
        );
        check("a{1001}", &[], &expect!["invalid regex 'a{1001}': invalid repetition size"]);
        check("(?P<x>a)(?P<x>b)", &["ab"], &expect!["ab"]);
        check("a\\", &[], &expect!["invalid regex 'a\\': trailing \\"]);
    }

    #[test]
    fn substitutions_are_translated() {
        let regex = compile("^/(.*)/(.*)$").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(substitution(r"/\2/\1$\\", &regex), r"/${2}/${1}$$\");
        assert_eq!(substitution(r"\3", &regex), "${0}");
        assert_eq!(substitution(r"a\xb", &regex), "a");
    }
}
