//! Lowering of envoy.config.overload.v3.OverloadManager.

use std::time::Duration;

use leno_api::proto::envoy::config::overload::v3 as proto;
use leno_api::proto::envoy::extensions::resource_monitors as monitors;
use leno_base::Name;
use prost_types::Any;

use crate::config::lower::Lower;
use crate::overload::monitor::Kind;
use crate::overload::{Plan, Reaction, TIMERS, Timed, TimerScale, Trigger};

/// Overload actions that Envoy has and this proxy does not.
const OTHER_ACTIONS: &[&str] = &[
    "envoy.overload_actions.close_idle_http_connections",
    "envoy.overload_actions.reset_high_memory_stream",
];

/// Load shed points that Envoy has and this proxy does not.
const OTHER_POINTS: &[&str] = &[
    "envoy.load_shed_points.http3_server_go_away_and_close_on_dispatch",
    "envoy.load_shed_points.http3_server_go_away_on_dispatch",
    "envoy.load_shed_points.tcp_proxy_on_data",
];

impl Plan {
    /// Lowers an OverloadManager.
    pub(crate) fn lower(proto: proto::OverloadManager, at: &mut Lower) -> Option<Self> {
        let proto::OverloadManager {
            refresh_interval,
            resource_monitors,
            actions,
            loadshed_points,
            buffer_factory_config,
        } = proto;
        at.unsupported("buffer_factory_config", buffer_factory_config.is_some());
        let mut plan = Self {
            refresh: at.timeout("refresh_interval", refresh_interval, None).unwrap_or(Duration::from_secs(1)),
            monitors: Vec::new(),
            max_connections: None,
            reactions: Vec::new(),
            timers: [None; TIMERS],
        };
        at.each("resource_monitors", resource_monitors, |monitor, at| plan.add_monitor(monitor, at));
        at.each("actions", actions, |action, at| {
            let proto::OverloadAction { name, triggers, typed_config } = action;
            let known =
                Reaction::ALL.iter().find(|(reaction, own)| *own == name && !reaction.is_shed_point());
            let Some((reaction, _)) = known else {
                at.error_at(
                    "name",
                    if OTHER_ACTIONS.contains(&name.as_str()) {
                        format!("overload action '{name}' is not supported yet")
                    } else {
                        format!("Unknown Overload Manager Action '{name}'")
                    },
                );
                return None;
            };
            plan.configure(*reaction, typed_config, at);
            plan.react(*reaction, triggers, at)
        });
        at.each("loadshed_points", loadshed_points, |point, at| {
            let proto::LoadShedPoint { name, triggers } = point;
            let known = Reaction::ALL.iter().find(|(reaction, own)| *own == name && reaction.is_shed_point());
            let Some((reaction, _)) = known else {
                // Envoy takes any name and never asks for it.
                if OTHER_POINTS.contains(&name.as_str()) {
                    at.error_at("name", format!("load shed point '{name}' is not supported yet"));
                }
                return None;
            };
            plan.react(*reaction, triggers, at)
        });
        Some(plan)
    }

    fn add_monitor(&mut self, monitor: proto::ResourceMonitor, at: &mut Lower) -> Option<()> {
        let proto::ResourceMonitor { name, config_type } = monitor;
        if self.monitors.iter().any(|(other, _)| **other == *name) {
            at.error_at("name", format!("Duplicate resource monitor {name}"));
        }
        let Some(proto::resource_monitor::ConfigType::TypedConfig(any)) = config_type else {
            at.error_at("typed_config", format!("resource monitor '{name}' must have a typed config"));
            return None;
        };
        let kind = at.field("typed_config", |at| {
            let any = at.extension(any)?;
            let connections =
                "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";
            if leno_api::any::type_name(&any.type_url) == connections {
                let monitors::downstream_connections::v3::DownstreamConnectionsConfig {
                    max_active_downstream_connections,
                } = at.unpack(&any)?;
                self.max_connections = u64::try_from(max_active_downstream_connections).ok();
                return None;
            }
            monitor_kind(&name, &any, at)
        })?;
        self.monitors.push((Name::from(name), kind));
        None
    }

    fn configure(&mut self, reaction: Reaction, config: Option<Any>, at: &mut Lower) {
        let Some(any) = config else {
            if reaction == Reaction::ReduceTimeouts {
                at.error_at(
                    "typed_config",
                    format!("Overload action \"{}\" requires typed_config.", reaction.name()),
                );
            }
            return;
        };
        at.field("typed_config", |at| match reaction {
            Reaction::ReduceTimeouts => {
                let proto::ScaleTimersOverloadActionConfig { timer_scale_factors } = at.unpack(&any)?;
                at.each("timer_scale_factors", timer_scale_factors, |factor, at| self.scale(factor, at));
                Some(())
            }
            Reaction::ShrinkHeap => {
                let proto::ShrinkHeapConfig { timer_interval, max_unfreed_memory_bytes } = at.unpack(&any)?;
                at.unsupported("timer_interval", timer_interval.is_some());
                at.unsupported("max_unfreed_memory_bytes", max_unfreed_memory_bytes.is_some());
                Some(())
            }
            _ => {
                at.error(format!(
                    "Overload action \"{}\" has an unexpected value for the typed_config field",
                    reaction.name()
                ));
                None
            }
        });
    }

    fn scale(
        &mut self,
        proto: proto::scale_timers_overload_action_config::ScaleTimer,
        at: &mut Lower,
    ) -> Option<()> {
        use proto::scale_timers_overload_action_config::scale_timer::OverloadAdjust;
        use proto::scale_timers_overload_action_config::{ScaleTimer, TimerType};
        let ScaleTimer { timer, overload_adjust } = proto;
        let timer = match at.value::<TimerType>("timer", timer)? {
            TimerType::HttpDownstreamConnectionIdle => Timed::ConnectionIdle,
            TimerType::HttpDownstreamStreamIdle => Timed::StreamIdle,
            TimerType::TransportSocketConnect => Timed::TransportConnect,
            TimerType::HttpDownstreamConnectionMax => Timed::ConnectionMax,
            TimerType::HttpDownstreamStreamFlush => Timed::StreamFlush,
            TimerType::Unspecified => {
                at.error_at("timer", "a timer is required");
                return None;
            }
        };
        let scale = match overload_adjust {
            Some(OverloadAdjust::MinTimeout(least)) => {
                TimerScale::Least(at.duration("min_timeout", Some(least))?)
            }
            Some(OverloadAdjust::MinScale(share)) => TimerScale::Share((share.value / 100.0).clamp(0.0, 1.0)),
            None => {
                at.error("one of min_timeout and min_scale is required");
                return None;
            }
        };
        *self.timers.get_mut(timer as usize)? = Some(scale);
        None
    }

    fn react(&mut self, reaction: Reaction, triggers: Vec<proto::Trigger>, at: &mut Lower) -> Option<()> {
        let name = reaction.name();
        if self.reactions.iter().any(|(other, _)| *other == reaction) {
            at.error_at("name", format!("Duplicate overload action {name}"));
        }
        let triggers = at.each("triggers", triggers, |trigger, at| {
            let proto::Trigger { name: resource, trigger_oneof } = trigger;
            let Some(monitor) = self.monitors.iter().position(|(other, _)| **other == *resource) else {
                at.error_at(
                    "name",
                    format!("Unknown trigger resource {resource} for overload action {name}"),
                );
                return None;
            };
            let (from, to) = match trigger_oneof {
                Some(proto::trigger::TriggerOneof::Threshold(proto::ThresholdTrigger { value })) => {
                    (value, value)
                }
                Some(proto::trigger::TriggerOneof::Scaled(scaled)) => {
                    let proto::ScaledTrigger { scaling_threshold, saturation_threshold } = scaled;
                    if scaling_threshold >= saturation_threshold {
                        at.error_at("scaled", "scaling_threshold must be less than saturation_threshold");
                    }
                    (scaling_threshold, saturation_threshold)
                }
                None => {
                    at.error("one of threshold and scaled is required");
                    return None;
                }
            };
            Some(Trigger { monitor, from, to })
        });
        self.reactions.push((reaction, triggers));
        None
    }
}

fn monitor_kind(name: &str, any: &Any, at: &mut Lower) -> Option<Kind> {
    match leno_api::any::type_name(&any.type_url) {
        "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig" => {
            let monitors::fixed_heap::v3::FixedHeapConfig {
                max_heap_size_bytes,
                max_heap_size_bytes_runtime,
            } = at.unpack(any)?;
            at.unsupported("max_heap_size_bytes_runtime", max_heap_size_bytes_runtime.is_some());
            if max_heap_size_bytes == 0 {
                at.error_at("max_heap_size_bytes", "must be greater than 0");
            }
            Some(Kind::Heap(max_heap_size_bytes))
        }
        "envoy.extensions.resource_monitors.cgroup_memory.v3.CgroupMemoryConfig" => {
            let monitors::cgroup_memory::v3::CgroupMemoryConfig { max_memory_bytes } = at.unpack(any)?;
            Some(Kind::Cgroup((max_memory_bytes > 0).then_some(max_memory_bytes)))
        }
        "envoy.extensions.resource_monitors.cpu_utilization.v3.CpuUtilizationConfig" => {
            let monitors::cpu_utilization::v3::CpuUtilizationConfig { mode } = at.unpack(any)?;
            at.unsupported("mode", mode != 0);
            Some(Kind::Cpu)
        }
        "envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig" => {
            let monitors::injected_resource::v3::InjectedResourceConfig { filename } = at.unpack(any)?;
            Some(Kind::Injected(filename.into()))
        }
        _ => {
            at.unsupported_extension(name, &any.type_url);
            None
        }
    }
}
