//! Which local command stands for a container image.

use leno_kubelet::{Image, repository, split};

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

/// What this process passes on to commands of the user's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inherited {
    /// The program that stands for the samples' image, as `/proc/self/exe`.
    pub(crate) executable: String,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) directory: Option<String>,
}

/// The names of variables that commands of the user's get from the one who called `leno up`.
pub(crate) const INHERITED: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "TMPDIR", "TZ"];

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

impl Program {
    /// What runs for the image.
    pub(crate) fn image(&self, inherited: &Inherited) -> Image {
        match self {
            Program::Sample => Image {
                entrypoint: vec![inherited.executable.clone(), "sample".to_owned()],
                keeps_entrypoint: true,
                ..Image::default()
            },
            Program::Command(words) => Image {
                entrypoint: words.clone(),
                keeps_entrypoint: true,
                environment: inherited.variables.clone(),
                directory: inherited.directory.clone(),
                ..Image::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Images, Program};

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
}
