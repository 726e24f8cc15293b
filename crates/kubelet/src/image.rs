//! What stands on this machine for a container image.

use leno_node::Bind;

/// What runs for an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The program and its first arguments: what a container's `command` takes the place of.
    pub entrypoint: Vec<String>,
    /// The arguments after it, unless the container has `args` or a `command`.
    pub arguments: Vec<String>,
    /// Whether a container's `command` is of no use here, since it names a file of the real image.
    pub keeps_entrypoint: bool,
    /// Variables that the container may override.
    pub environment: Vec<(String, String)>,
    /// The folder that it runs in, unless the container says.
    pub directory: Option<String>,
    /// The user that it runs as, unless the container says.
    pub user: Option<u32>,
    /// Files that it brings.
    pub files: Vec<Bind>,
}

/// Images by their names.
#[derive(Clone, Debug, Default)]
pub struct Images {
    known: Vec<(String, Image)>,
}

impl Images {
    /// Makes an image known: by its whole name, its name without tag and digest, the last part of that, or
    /// any name that ends in `*`.
    pub fn add(&mut self, name: &str, image: Image) {
        self.known.push((name.to_owned(), image));
    }

    /// What stands for an image: the whole name counts before the name without tag, that before its last
    /// parts, and those before beginnings of the last part.
    pub fn find(&self, image: &str) -> Option<&Image> {
        let repository = repository(image);
        let last = repository.rsplit('/').next().unwrap_or_default();
        for candidate in [image, repository, last] {
            if let Some((_, found)) = self.known.iter().find(|(name, _)| name == candidate) {
                return Some(found);
            }
        }
        let begins = |name: &str| name.strip_suffix('*').is_some_and(|beginning| last.starts_with(beginning));
        self.known.iter().find(|(name, _)| begins(name)).map(|(_, found)| found)
    }
}

/// An image's name without tag and digest.
pub fn repository(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    match name.rsplit_once(':') {
        // A colon before the last slash is that of the registry's port.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

/// Words as a shell splits them: quotes and backslashes, nothing else. `None` if a quote is not
/// closed or there are no words.
pub fn split(command: &str) -> Option<Vec<String>> {
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
    use super::{Image, Images, repository, split};

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
        let mut images = Images::default();
        for name in ["app", "team/app:v2", "examples-*"] {
            images.add(name, Image { entrypoint: vec![name.to_owned()], ..Image::default() });
        }
        let found = |image| images.find(image).and_then(|it| it.entrypoint.first()).map(String::as_str);
        assert_eq!(found("team/app:v1"), Some("app"));
        assert_eq!(found("team/app:v2"), Some("team/app:v2"));
        assert_eq!(found("istio/examples-x:1"), Some("examples-*"));
        assert_eq!(found("team/other"), None);
    }

    #[test]
    fn splits_as_a_shell() {
        let words = |text| split(text).map(|words| words.join("|"));
        assert_eq!(words(r#" a  "b \" c" d\ e '' "#).as_deref(), Some(r#"a|b " c|d e|"#));
        assert_eq!(words("a 'b"), None);
        assert_eq!(words("  "), None);
    }
}
