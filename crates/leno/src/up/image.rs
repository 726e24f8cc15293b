//! Which local command stands for a container image.

/// The images that have a command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Images {
    given: Vec<(String, Vec<String>)>,
}

/// A command that stands for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// A service of the samples: the container's `args` say which.
    Sample,
    /// A command of the user's, before the container's `args`.
    Command(Vec<String>),
}

/// The image of the samples.
const SAMPLES: &str = "lenomesh/samples";

impl Images {
    /// Those given as `--image NAME=COMMAND`.
    ///
    /// # Errors
    /// The command whose quotes do not match.
    pub(crate) fn new(given: &[(String, String)]) -> anyhow::Result<Images> {
        let split = |(name, command): &(String, String)| {
            let words = split(command).ok_or_else(|| {
                anyhow::anyhow!("--image {name}={command}: a quote is not closed, or there is no command")
            })?;
            Ok((name.clone(), words))
        };
        Ok(Images { given: given.iter().map(split).collect::<anyhow::Result<_>>()? })
    }

    /// The command for an image: the whole name counts before the name without tag, and that before
    /// its last part.
    pub(crate) fn find(&self, image: &str) -> Option<Program> {
        let repository = repository(image);
        let last = repository.rsplit('/').next().unwrap_or_default();
        for candidate in [image, repository, last] {
            if let Some((_, command)) = self.given.iter().find(|(name, _)| name == candidate) {
                return Some(Program::Command(command.clone()));
            }
        }
        let of_samples = repository == SAMPLES || repository.ends_with(&format!("/{SAMPLES}"));
        of_samples.then_some(Program::Sample)
    }
}

/// An image's name without tag and digest.
pub(crate) fn repository(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    match name.rsplit_once(':') {
        // A colon before the last slash is that of the registry's port.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

/// Words as a shell splits them: quotes and backslashes, nothing else. `None` if a quote is not
/// closed or there are no words.
fn split(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = command.chars();
    while let Some(c) = characters.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\\' => word.get_or_insert_default().push(characters.next()?),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next()? {
                        end if end == c => break,
                        '\\' if c == '"' => word.push(characters.next()?),
                        other => word.push(other),
                    }
                }
            }
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::{Images, Program, repository, split};

    #[test]
    fn repositories() {
        for (image, expected) in [
            ("nginx", "nginx"),
            ("nginx:1.27", "nginx"),
            ("host:5000/team/app", "host:5000/team/app"),
            ("host:5000/team/app:v1@sha256:ab", "host:5000/team/app"),
        ] {
            assert_eq!(repository(image), expected);
        }
    }

    #[test]
    fn the_more_exact_name_counts() {
        let given =
            [("app", "./a"), ("team/app:v2", "./b --x 'y z'")].map(|(n, c)| (n.to_owned(), c.to_owned()));
        let images = Images::new(&given).unwrap();
        let command = |words: &[&str]| Some(Program::Command(words.iter().map(|&w| w.to_owned()).collect()));
        assert_eq!(images.find("team/app:v1"), command(&["./a"]));
        assert_eq!(images.find("team/app:v2"), command(&["./b", "--x", "y z"]));
        assert_eq!(images.find("lenomesh/samples:0.1"), Some(Program::Sample));
        assert_eq!(images.find("team/other"), None);
    }

    #[test]
    fn splits_as_a_shell() {
        let words = |text| split(text).map(|words| words.join("|"));
        assert_eq!(words(r#" a  "b \" c" d\ e '' "#).as_deref(), Some(r#"a|b " c|d e|"#));
        assert_eq!(words("a 'b"), None);
        assert_eq!(words("  "), None);
    }
}
