//! The profile of release builds (profile/README.md): builds Leno so that it counts what it runs,
//! runs it under the benchmark's loads, and keeps what was counted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// What is run, as arguments of `leno-bench`; `{leno}` is the program. Cases are here for what they run
/// through, not for how often: what is never run is laid out as if it did not matter.
const LOADS: &[&str] = &[
    "h1,h1istio,h1stats,h1peers,log,h2,mtls,h2mtls,handshake,body10k,body1m,grpc,tcp,tcpconn,ringhash,maglev,\
     clusters:500,scale:1000,idle:200 --alone --rounds 1 --saturated 1.5 --fixed 0.5 --proxy {leno}",
    "sidecar --alone --services 200 --calls 5,20 --proxy {leno}",
    "push --services 300 --endpoints 3000 --proxies 100 --repeat 3",
    "push --services 300 --endpoints 3000 --proxies 100 --repeat 3 --used 5",
];

/// Makes the profile. Takes two release builds' time.
pub(crate) fn make(root: &Path) -> Result<()> {
    let compiler = output(Command::new("rustc").arg("-V"))?;
    let merge = tool()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let target = target.join("profile");
    let counts = target.join("counts");
    if counts.exists() {
        std::fs::remove_dir_all(&counts)?;
    }
    std::fs::create_dir_all(&counts)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "-p", "leno", "-p", "leno-bench", "--target-dir"]).arg(&target);
    // The project's own wrapper makes the build that counts.
    build.env("LENO_PROFILE", &counts).env_remove("RUSTC_WRAPPER").current_dir(root);
    run(&mut build)?;
    let (leno, bench) = (target.join("release/leno"), target.join("release/leno-bench"));
    for load in LOADS {
        let mut command = Command::new(&bench);
        for argument in load.split_whitespace() {
            if argument == "{leno}" {
                command.arg(&leno)
            } else {
                command.arg(argument)
            };
        }
        // Processes of one program add to one file.
        command.env("LLVM_PROFILE_FILE", counts.join("%m.profraw")).current_dir(root);
        run(&mut command)?;
    }
    let counted = std::fs::read_dir(&counts)?.next().is_some();
    ensure!(counted, "nothing was counted: is there another rustc-wrapper than that of .cargo/config.toml?");
    let profile = root.join("profile");
    let mut command = Command::new(merge);
    command.args(["merge", "--sparse", "-o"]).arg(profile.join("leno.profdata"));
    for entry in std::fs::read_dir(&counts)? {
        command.arg(entry?.path());
    }
    run(&mut command)?;
    std::fs::write(profile.join("compiler"), compiler)?;
    Ok(())
}

/// The program that merges counts, of the compiler's own version.
fn tool() -> Result<PathBuf> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let host = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let path = Path::new(sysroot.trim()).join("lib/rustlib").join(host.trim()).join("bin/llvm-profdata");
    ensure!(path.exists(), "{} is missing: rustup component add llvm-tools", path.display());
    Ok(path)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed");
    Ok(String::from_utf8(output.stdout)?)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} failed") }
}
