//! `/logging`: levels of the proxy's own log, by component.
//!
//! A component is the target of an event. Envoy has more components than we: theirs are
//! accepted and shown, so that scripts that set them go on working.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::PoisonError;

use crate::admin::respond::{Query, Response};
use crate::admin::{Answer, Command, Context, Endpoint};
use crate::options::Options;

/// `/logging`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/logging",
    help: "query/change logging levels",
    parameters: &[
        ("paths", "change several levels, <name>:<level>,<name>:<level>"),
        ("level", "the level of all; One of (, trace, debug, info, warning, error, critical, off)"),
    ],
    mutates: true,
    answer: Answer::Now(change),
};

/// Envoy's components, and `xds`.
const COMPONENTS: &[&str] = &[
    "admin",
    "alternate_protocols_cache",
    "assert",
    "aws",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "compression",
    "config",
    "conn_handler",
    "connection",
    "decompression",
    "dns",
    "dubbo",
    "dynamic_modules",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "file",
    "filter",
    "forward_proxy",
    "golang",
    "grpc",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "http",
    "http2",
    "hystrix",
    "init",
    "io",
    "jwt",
    "kafka",
    "key_value_store",
    "local_rate_limit",
    "lua",
    "main",
    "matcher",
    "misc",
    "mongo",
    "multi_connection",
    "oauth2",
    "pool",
    "quic",
    "quic_stream",
    "rate_limit_quota",
    "rbac",
    "rds",
    "redis",
    "rocketmq",
    "router",
    "runtime",
    "secret",
    "stats",
    "stats_sinks",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "udp",
    "upstream",
    "wasm",
    "websocket",
    "xds",
];

/// Levels by Envoy's names, with tracing's. tracing has nothing above error.
const LEVELS: [(&str, &str); 8] = [
    ("trace", "trace"),
    ("debug", "debug"),
    ("info", "info"),
    ("warning", "warn"),
    ("warn", "warn"),
    ("error", "error"),
    ("critical", "error"),
    ("off", "off"),
];

/// The level of each component.
#[derive(Clone, Debug)]
pub(crate) struct Levels {
    /// Envoy's level names.
    by_component: BTreeMap<String, &'static str>,
    /// What events without a component of their own have.
    default: &'static str,
}

/// The filter of the log at the start, in the syntax of `tracing_subscriber::EnvFilter`.
pub(crate) fn filter(options: &Options) -> String {
    Levels::new(options).filter()
}

fn known(level: &str) -> Option<&'static str> {
    let level = if level == "warn" { "warning" } else { level };
    LEVELS.iter().map(|(name, _)| *name).find(|name| *name == level)
}

fn tracing_level(level: &str) -> &'static str {
    LEVELS.iter().find(|(name, _)| *name == level).map_or("info", |(_, level)| level)
}

impl Levels {
    /// As the command line has it. Levels that do not exist count as `info`: the command
    /// line's parser has refused them.
    pub(crate) fn new(options: &Options) -> Self {
        let default = known(&options.log_level).unwrap_or("info");
        let mut by_component: BTreeMap<String, &'static str> =
            COMPONENTS.iter().map(|component| ((*component).to_owned(), default)).collect();
        for (component, level) in &options.component_log_levels {
            by_component.insert(component.clone(), known(level).unwrap_or("info"));
        }
        Self { by_component, default }
    }

    fn set(&mut self, component: &str, level: &str) -> Result<(), &'static str> {
        let slot = self.by_component.get_mut(component).ok_or("error: unknown logger name\n")?;
        *slot = known(level).ok_or("error: unknown logger level\n")?;
        Ok(())
    }

    fn set_all(&mut self, level: &str) -> Result<(), &'static str> {
        self.default = known(level).ok_or("error: unknown logger level\n")?;
        self.by_component.values_mut().for_each(|slot| *slot = self.default);
        Ok(())
    }

    fn filter(&self) -> String {
        // Libraries tell much below info that is about themselves.
        let libraries = match self.default {
            "trace" | "debug" => "info",
            level => tracing_level(level),
        };
        let own = tracing_level(self.default);
        let mut out = format!("{libraries},leno_proxy={own},leno_xds={own}");
        let is_target = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        for (component, level) in self.by_component.iter().filter(|(component, _)| is_target(component)) {
            // Writing to a String cannot fail.
            let _ = write!(out, ",{component}={}", tracing_level(level));
        }
        out
    }

    fn list(&self) -> String {
        let lines = self.by_component.iter().map(|(component, level)| format!("  {component}: {level}\n"));
        format!("active loggers:\n{}\n", lines.collect::<String>())
    }
}

fn change(context: &Context, query: &Query) -> Response {
    let mut levels = context.levels.lock().unwrap_or_else(PoisonError::into_inner);
    let mut changed = levels.clone();
    let mut outcome = Ok(());
    for (name, value) in query.iter() {
        outcome = outcome.and_then(|()| match name {
            "level" if value.is_empty() => Ok(()),
            "level" => changed.set_all(value),
            "paths" => value.split(',').filter(|pair| !pair.is_empty()).try_for_each(|pair| {
                let (component, level) =
                    pair.split_once(':').ok_or("error: empty logger name or empty logger level\n")?;
                changed.set(component, level)
            }),
            component => changed.set(component, value),
        });
    }
    if let Err(error) = outcome {
        const USAGE: &str = "usage: /logging?<name>=<level> (change single level)\n\
             usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
             usage: /logging?level=<level> (change all levels)\n\
             levels: trace debug info warning error critical off \n";
        return Response::bad_request(format!("{error}\n{USAGE}{}", levels.list()));
    }
    if query.iter().next().is_some()
        && context.commands.send(Command::SetLogFilter(changed.filter())).is_err()
    {
        return Response::gone();
    }
    *levels = changed;
    Response::text(levels.list())
}

#[cfg(test)]
mod tests {
    use super::Levels;
    use crate::options::Options;

    #[test]
    fn libraries_stay_quiet() {
        let mut levels = Levels::new(&Options { log_level: "debug".into(), ..Options::default() });
        assert!(levels.filter().starts_with("info,leno_proxy=debug,leno_xds=debug,admin=debug,"));
        levels.set_all("critical").unwrap();
        levels.set("http", "warn").unwrap();
        assert!(
            levels.filter().starts_with("error,leno_proxy=error,") && levels.filter().contains(",http=warn,")
        );
        assert!(levels.list().contains("  http: warning\n") && levels.list().contains("  pool: critical\n"));
        assert!(levels.set("nope", "info").is_err() && levels.set("http", "nope").is_err());
    }
}
