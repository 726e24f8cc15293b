//! Sampling of resources, on the main thread.

use std::path::{Path, PathBuf};

use crate::overload::{Levels, Plan};
use crate::telemetry::server_stats::Memory;
use crate::telemetry::stats::{ThreadStats, stats_scope};

stats_scope! {
    /// `overload.RESOURCE.`
    struct ResourceStats {
        counter failed_updates;
        gauge pressure;
        counter skipped_updates;
    }
}

stats_scope! {
    /// `overload.ACTION.`
    struct ActionStats {
        gauge active;
        gauge scale_percent;
    }
}

stats_scope! {
    /// `overload.POINT.`; the workers count what they shed.
    pub(crate) struct ShedStats {
        gauge scale_percent;
        counter shed_load_count;
    }
}

/// A resource, by what tells how much of it is used.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// fixed_heap: anonymous memory, of so many bytes.
    Heap(u64),
    /// cgroup_memory: memory of the control group, of its limit or of fewer bytes.
    Cgroup(Option<u64>),
    /// cpu_utilization of the machine.
    Cpu,
    /// injected_resource: a file with a number from 0 to 1.
    Injected(PathBuf),
}

/// What is sampled again and again.
pub(crate) struct Watch {
    plan: Plan,
    resources: Vec<ResourceStats>,
    actions: Vec<Scale>,
    /// Busy and all ticks of the processors, and the smoothed share.
    cpu: ([u64; 2], f64),
    last: Levels,
}

enum Scale {
    Action(ActionStats),
    Point(ShedStats),
}

/// How much a new sample of the processors counts.
const CPU_WEIGHT: f64 = 0.05;

impl Watch {
    /// Begins to watch.
    pub(crate) fn new(plan: Plan, thread: &ThreadStats) -> Self {
        let resources =
            plan.monitors.iter().map(|(name, _)| ResourceStats::new(thread, &format!("overload.{name}.")));
        let actions = plan.reactions.iter().map(|(reaction, _)| {
            let prefix = format!("overload.{}.", reaction.name());
            if reaction.is_shed_point() {
                Scale::Point(ShedStats::new(thread, &prefix))
            } else {
                Scale::Action(ActionStats::new(thread, &prefix))
            }
        });
        let (resources, actions) = (resources.collect(), actions.collect());
        Self {
            resources,
            actions,
            cpu: (cpu_ticks().unwrap_or_default(), 0.0),
            last: Levels::default(),
            plan,
        }
    }

    /// Samples all resources; what the workers are to be told, if that has changed.
    pub(crate) fn sample(&mut self) -> Option<Levels> {
        let mut pressures = Vec::with_capacity(self.plan.monitors.len());
        for ((_, kind), stats) in self.plan.monitors.iter().zip(&self.resources) {
            let pressure = match kind {
                Kind::Heap(limit) => Some(Memory::sample().allocated as f64 / (*limit).max(1) as f64),
                Kind::Cgroup(limit) => cgroup_share(Path::new("/sys/fs/cgroup"), *limit),
                Kind::Cpu => cpu_share(&mut self.cpu),
                Kind::Injected(path) => {
                    let text = std::fs::read_to_string(path).ok();
                    text.and_then(|text| text.trim().parse::<f64>().ok())
                        .filter(|share| (0.0..=1.0).contains(share))
                }
            };
            match pressure {
                Some(pressure) => stats.pressure().set((pressure * 100.0) as u64),
                None => stats.failed_updates().inc(),
            }
            pressures.push(pressure);
        }
        // What cannot be read is as it was.
        let known: Vec<f64> = pressures
            .iter()
            .zip(&self.resources)
            .map(|(pressure, stats)| pressure.unwrap_or_else(|| stats.pressure().value() as f64 / 100.0))
            .collect();
        let levels = self.plan.levels(&known);
        for ((reaction, _), stats) in self.plan.reactions.iter().zip(&self.actions) {
            let percent = (levels.of(*reaction) * 100.0) as u64;
            match stats {
                Scale::Action(stats) => {
                    stats.scale_percent().set(percent);
                    stats.active().set(u64::from(percent == 100));
                }
                Scale::Point(stats) => stats.scale_percent().set(percent),
            }
        }
        let changed = levels != self.last;
        self.last = levels;
        changed.then_some(levels)
    }
}

/// How much of its memory a control group uses (version 2, else 1); of its own limit or `limit`,
/// whichever is smaller. `None`: there is none, or no limit.
fn cgroup_share(root: &Path, limit: Option<u64>) -> Option<f64> {
    let number = |name: &str| std::fs::read_to_string(root.join(name)).ok()?.trim().parse::<u64>().ok();
    let used = number("memory.current").or_else(|| number("memory/memory.usage_in_bytes"))?;
    let own = number("memory.max").or_else(|| number("memory/memory.limit_in_bytes"));
    let limit = own.into_iter().chain(limit).min()?;
    Some(used as f64 / limit.max(1) as f64)
}

/// Busy and all ticks of all processors since the start.
fn cpu_ticks() -> Option<[u64; 2]> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let mut fields =
        stat.lines().next()?.split_ascii_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok());
    let [user, nice, system, idle] = [fields.next()?, fields.next()?, fields.next()?, fields.next()?];
    let others: u64 = fields.sum();
    Some([user + nice + system, user + nice + system + idle + others])
}

fn cpu_share((ticks, smoothed): &mut ([u64; 2], f64)) -> Option<f64> {
    let now = cpu_ticks()?;
    let [busy, all] = [now[0].saturating_sub(ticks[0]), now[1].saturating_sub(ticks[1])];
    if all > 0 {
        *ticks = now;
        *smoothed = busy as f64 / all as f64 * CPU_WEIGHT + *smoothed * (1.0 - CPU_WEIGHT);
    }
    Some(*smoothed)
}

#[cfg(test)]
mod tests {
    use super::{Watch, cgroup_share, cpu_ticks};
    use crate::config::lower::Lower;
    use crate::overload::{Plan, Reaction};
    use crate::telemetry::stats::StatsStore;

    #[test]
    fn control_groups_of_both_versions() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("written");
        };
        assert_eq!(cgroup_share(folder.path(), Some(100)), None);
        write("memory/memory.usage_in_bytes", "30\n");
        assert_eq!(cgroup_share(folder.path(), None), None);
        write("memory/memory.limit_in_bytes", "60\n");
        assert_eq!(cgroup_share(folder.path(), None), Some(0.5));
        write("memory.current", "50\n");
        write("memory.max", "max\n");
        assert_eq!(cgroup_share(folder.path(), Some(100)), Some(50.0 / 60.0));
        write("memory.max", "200\n");
        assert_eq!(
            (cgroup_share(folder.path(), None), cgroup_share(folder.path(), Some(100))),
            (Some(0.25), Some(0.5))
        );
    }

    #[test]
    fn processors_tick() {
        let [busy, all] = cpu_ticks().expect("the system says");
        assert!(0 < busy && busy <= all);
    }

    #[test]
    fn an_injected_resource_is_read_again_and_again() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text = format!(
            "resource_monitors: [{{name: a, typed_config: {{'@type': type.googleapis.com/envoy.extensions.resource_monitors.\
             injected_resource.v3.InjectedResourceConfig, filename: {}}}}}]\nactions: [{{name: \
             envoy.overload_actions.stop_accepting_connections, triggers: [{{name: a, threshold: {{value: 0.9}}}}]}}]",
            file.path().display()
        );
        let proto = leno_api::decode_text(&text, "overload").unwrap_or_else(|errors| panic!("{errors}"));
        let plan = Lower::resource(|at| Plan::lower(proto, at)).unwrap_or_else(|why| panic!("{why}"));
        let mut watch = Watch::new(plan, &StatsStore::default().thread());
        let mut at = |text: &str| {
            std::fs::write(file.path(), text).expect("written");
            watch.sample().map(|levels| levels.of(Reaction::StopAcceptingConnections))
        };
        assert_eq!((at("0.5"), at("0.95"), at("nonsense"), at("0.1")), (None, Some(1.0), None, Some(0.0)));
    }
}
