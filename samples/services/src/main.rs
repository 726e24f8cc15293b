//! The samples as a program of their own, for container images: `leno-samples bookinfo reviews`.

fn main() -> anyhow::Result<()> {
    leno_samples::run(std::env::args_os().skip(1))
}
