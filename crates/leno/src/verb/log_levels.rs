//! `--log_output_level`, as Istio's programs have it: `default:info,xdsproxy:debug`.

use anyhow::bail;

/// The level of one scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scoped<'t> {
    pub(crate) scope: &'t str,
    /// In `tracing`'s words.
    pub(crate) level: &'static str,
}

/// Levels in the order in which they are written; one without a scope is that of `default`.
pub(crate) fn parse(text: &str) -> anyhow::Result<Vec<Scoped<'_>>> {
    let mut levels = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (scope, level) = pair.split_once(':').unwrap_or(("default", pair));
        let level = match level {
            "none" => "off",
            "fatal" | "error" => "error",
            "warn" => "warn",
            "info" => "info",
            "debug" => "debug",
            "trace" => "trace",
            _ => bail!("--log_output_level: {pair:?} is not SCOPE:LEVEL"),
        };
        levels.push(Scoped { scope, level });
    }
    Ok(levels)
}
