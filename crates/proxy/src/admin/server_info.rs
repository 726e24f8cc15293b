//! `/server_info`: version, state and command line.

use std::time::Duration;

use leno_api::proto::envoy::config::bootstrap::v3::Bootstrap;
use leno_base::duration::format_proto;
use serde_json::{Value, json};

use crate::admin::json::unpacked;
use crate::admin::respond::Response;
use crate::admin::{Answer, Asking, Context, Endpoint};

/// `/server_info`
pub(super) const ENDPOINT: Endpoint = Endpoint {
    path: "/server_info",
    help: "print server version/status information",
    parameters: &[],
    mutates: false,
    answer: Answer::Asking(|context, _| show(context)),
};

/// In the form of Envoy's: revision, version, state of the tree, kind of build, TLS library.
pub(crate) const VERSION: &str =
    concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"), "/Clean/RELEASE/none");

fn show(context: &Context) -> Asking<'_> {
    Box::pin(async {
        let Some(view) = context.view().await else { return Response::gone() };
        // Whole seconds, as `server.uptime` has.
        let uptime = format_proto(Duration::from_secs(context.server.started.elapsed().as_secs()));
        let mut info = json!({
            "version": VERSION,
            "state": view.state.text(),
            "uptime_current_epoch": uptime,
            "uptime_all_epochs": uptime,
            "hot_restart_version": "disabled",
            "command_line_options": command_line(context),
        });
        let mut bootstrap = unpacked::<Bootstrap>(&context.server.bootstrap);
        if let (Some(node), Some(info)) = (bootstrap.get_mut("node"), info.as_object_mut()) {
            info.insert("node".to_owned(), node.take());
        }
        Response::json(&info)
    })
}

/// envoy.admin.v3.CommandLineOptions, as far as there are such options.
fn command_line(context: &Context) -> Value {
    let options = &context.server.options;
    let path = |path: &Option<std::path::PathBuf>| {
        path.as_deref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let components: Vec<String> = options
        .component_log_levels
        .iter()
        .map(|(component, level)| format!("{component}:{level}"))
        .collect();
    json!({
        "concurrency": context.server.concurrency,
        "config_path": path(&options.config_path),
        "config_yaml": options.config_yaml.as_deref().unwrap_or_default(),
        "allow_unknown_static_fields": options.allow_unknown_static_fields,
        "admin_address_path": path(&options.admin_address_path),
        "log_level": options.log_level,
        "component_log_level": components.join(","),
        "log_path": path(&options.log_path),
        "service_cluster": options.service_cluster,
        "service_node": options.service_node,
        "service_zone": options.service_zone,
        "file_flush_interval": format_proto(options.file_flush_interval),
        "drain_time": format_proto(options.drain_time),
        "mode": "Serve",
        "disable_hot_restart": true,
        "reject_unknown_dynamic_fields": options.reject_unknown_dynamic_fields,
        "ignore_unknown_dynamic_fields": options.ignore_unknown_dynamic_fields,
        "drain_strategy": if options.drain_immediately { "Immediate" } else { "Gradual" },
        "file_flush_min_size": options.file_flush_min_size / 1024,
    })
}
