//! The calendars of processes, which jump.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use leno_base::Rng;

/// By how many seconds calendars are off at most: ten years.
const MOST: u64 = 10 * 365 * 86_400;

/// The calendar of all processes that are told to go by it.
#[derive(Clone)]
pub(crate) struct Calendar(Option<Arc<Made>>);

struct Made {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl Calendar {
    /// Has the library compiled that makes it; without a compiler nothing jumps.
    pub(crate) fn make(folder: &Path) -> Calendar {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/skew.rs");
        let library = folder.join("libskew.so");
        // Cargo says where it is itself, and the compiler is beside it.
        let compiler = std::env::var_os("CARGO").map(|cargo| Path::new(&cargo).with_file_name("rustc"));
        let compiler = compiler.filter(|path| path.exists()).unwrap_or_else(|| "rustc".into());
        let mut command = Command::new(compiler);
        command.args(["--edition", "2024", "-O", "--crate-type", "cdylib", "-o"]).arg(&library).arg(source);
        match command.output() {
            Ok(output) if output.status.success() => {}
            other => {
                println!("skipped: no calendar jumps: {other:?}");
                return Calendar(None);
            }
        }
        let path = folder.join("skew");
        let file = File::create(&path).expect("writable");
        let made = Calendar(Some(Arc::new(Made { library, path, file })));
        made.set(0);
        made
    }

    /// Makes a process that is to be started go by this calendar.
    pub(crate) fn rule(&self, command: &mut Command) {
        if let Some(made) = &self.0 {
            command.env("LD_PRELOAD", &made.library).env("SKEW", &made.path);
        }
    }

    /// Jumps ahead or back.
    pub(crate) fn jump(&self, rng: &mut Rng) {
        let by = i64::try_from(rng.below(MOST)).unwrap_or(0);
        self.set(if rng.chance(1, 2) { by } else { -by });
    }

    fn set(&self, seconds: i64) {
        if let Some(made) = &self.0 {
            made.file.write_all_at(&seconds.to_ne_bytes(), 0).expect("writable");
        }
    }
}
