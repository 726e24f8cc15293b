//! What every source file must be: not too long, opened by a header, free of unsafe code
//! unless it is listed.

use std::path::Path;

use anyhow::Result;

use crate::sources::{Source, all};

/// Lines of code (tests not counted) above which a file is refused.
const LIMIT: usize = 1000;

/// Files that are above the limit. This list only shrinks.
const TOO_LONG: &[&str] = &[];

/// Files that may hold `unsafe`; each use has a SAFETY comment (clippy checks that).
const UNSAFE: &[&str] = &[
    "crates/proxy/src/allocator.rs",
    "crates/proxy/src/io.rs",
    "crates/proxy/src/memory.rs",
    "crates/proxy/src/text.rs",
    "crates/proxy/src/turn.rs",
    "crates/node/src/",
];

/// Calls that production code must not make: time enters through `base::Clock`, tokio or an
/// argument, and threads are never put to sleep. Only tests wait for other processes, which tell nobody what they do.
const BANNED: &[(&str, &str)] = &[("thread::sleep(", "wait for an event instead")];

/// Problems of all files.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    Ok(all(root)?.iter().flat_map(problems).collect())
}

fn problems(source: &Source) -> Vec<String> {
    let path = &source.path;
    let mut problems = Vec::new();
    if !source.text.starts_with("//!") && !source.is_test() {
        problems.push(format!("{path}:1: a module starts with a //! header: what, why, where to read next"));
    }
    let lines = source.code().count();
    let listed = TOO_LONG.contains(&path.as_str());
    if !source.is_test() && lines > LIMIT && !listed {
        problems.push(format!("{path}: {lines} lines of code, more than {LIMIT}"));
    }
    if listed && lines <= LIMIT {
        problems.push(format!("{path}: short enough now, take it off TOO_LONG in xtask/src/files.rs"));
    }
    if source.is_test() || path.starts_with("xtask/") {
        return problems;
    }
    let may_be_unsafe = UNSAFE.iter().any(|place| path.starts_with(place));
    for (number, line) in (1..).zip(source.code()) {
        let code = line.split("//").next().unwrap_or_default();
        if !may_be_unsafe && (code.contains("unsafe {") || code.contains("unsafe fn")) {
            problems
                .push(format!("{path}:{number}: unsafe code outside the files listed in xtask/src/files.rs"));
        }
        for (call, instead) in BANNED {
            if code.contains(call) && path != "crates/testkit/src/process.rs" {
                problems.push(format!("{path}:{number}: {call}...) is banned: {instead}"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::{LIMIT, problems};
    use crate::sources::Source;

    fn check(path: &str, text: &str, expected: &[&str]) {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        assert_eq!(problems(&source), expected);
    }

    #[test]
    fn headers_sizes_and_bans_are_checked() {
        check("crates/a/src/lib.rs", "//! Fine.\n", &[]);
        check(
            "crates/a/src/lib.rs",
            "fn main() {}\n",
            &["crates/a/src/lib.rs:1: a module starts with a //! header: what, why, where to read next"],
        );
        let long = format!("//! Long.\n{}", "fn f() {}\n".repeat(LIMIT));
        check("crates/a/src/lib.rs", &long, &["crates/a/src/lib.rs: 1001 lines of code, more than 1000"]);
        check("crates/a/tests/long.rs", &long, &[]);
        check(
            "crates/a/src/x.rs",
            "//! X.\nfn f() { unsafe { g() } }\n",
            &["crates/a/src/x.rs:2: unsafe code outside the files listed in xtask/src/files.rs"],
        );
        check(
            "crates/a/src/x.rs",
            "//! X.\n#[cfg(test)]\nmod t { fn f() { std::thread::sleep(d); } }\n",
            &[],
        );
    }
}
