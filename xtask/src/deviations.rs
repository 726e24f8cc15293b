//! Where Leno differs from Envoy or Istio on purpose: collected from `// Deviation:` comments
//! into docs/deviations.md, so that the list cannot fall behind the code.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::sources::{Source, all};

const LIST: &str = "docs/deviations.md";

const HEADER: &str = "# Deviations\n\n\
    Where Leno differs from Envoy 1.40 or Istio on purpose. This list is collected from the\n\
    `// Deviation:` comments of the sources by `cargo xtask deviations`; `cargo xtask tidy`\n\
    checks that it is up to date.\n";

/// A problem if the list is not what the comments say.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let current = fs::read_to_string(root.join(LIST)).unwrap_or_default();
    let stale = current != render(&all(root)?);
    Ok(stale.then(|| format!("{LIST} is out of date: run `cargo xtask deviations`")).into_iter().collect())
}

/// Writes the list anew.
pub(crate) fn write(root: &Path) -> Result<()> {
    fs::write(root.join(LIST), render(&all(root)?)).context(LIST)
}

fn render(sources: &[Source]) -> String {
    let mut list = HEADER.to_owned();
    for source in sources.iter().filter(|source| !source.path.starts_with("xtask/")) {
        let comments = comments(&source.text);
        if comments.is_empty() {
            continue;
        }
        let _ = write!(list, "\n## {}\n\n", source.path);
        for comment in comments {
            let _ = writeln!(list, "- {comment}");
        }
    }
    list
}

/// The texts of all deviation comments, of any kind of comment; one goes on over the comment
/// lines that follow, up to an empty one.
fn comments(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut open = false;
    for line in text.lines() {
        let comment = comment(line);
        if let Some((_, text)) = comment.and_then(|comment| comment.split_once("Deviation: ")) {
            found.push(text.to_owned());
            open = true;
        } else if let (true, Some(more)) = (open, comment.filter(|comment| !comment.is_empty())) {
            if let Some(last) = found.last_mut() {
                last.push(' ');
                last.push_str(more);
            }
        } else {
            open = false;
        }
    }
    found
}

/// What a line that is a comment says.
fn comment(line: &str) -> Option<&str> {
    let line = line.trim();
    let markers = ["//!", "///", "//"];
    markers.iter().find_map(|marker| line.strip_prefix(marker)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::comments;

    #[test]
    fn comments_go_on_over_several_lines() {
        let text = "x\n    // Deviation: Envoy closes here,\n    // we answer.\n    y // Deviation: no\n\
                    //! Header. Deviation: two\n//!\n//! more\n";
        assert_eq!(comments(text), ["Envoy closes here, we answer.", "two"]);
    }
}
