//! What a process uses, by the names that Prometheus gives it, read from
//! `/proc` at each scrape.

use std::{fmt, fs, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

/// Ticks per second of times in `/proc`: `USER_HZ`, the same on all machines
/// that we run on.
const USER_HZ: f64 = 100.0;

/// Labels of a process, which may change as it learns who it is.
pub type Labels = Vec<(&'static str, String)>;

/// Shows what this process uses; register it without a prefix.
#[derive(Clone)]
pub struct Usage {
    labels: Arc<dyn Fn() -> Labels + Send + Sync>,
}

impl fmt::Debug for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Usage").finish_non_exhaustive()
    }
}

impl Usage {
    /// With these labels.
    pub fn new(labels: impl Fn() -> Labels + Send + Sync + 'static) -> Self {
        Self { labels: Arc::new(labels) }
    }
}

impl Collector for Usage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let labels = (self.labels)();
        let Some(used) = Used::read() else { return Ok(()) };
        let mut cpu = encoder.encode_descriptor(
            "process_cpu_seconds",
            "User and system time",
            None,
            MetricType::Counter,
        )?;
        let mut cpu = cpu.encode_family(&labels)?;
        cpu.encode_counter::<NoLabelSet, _, f64>(&used.cpu_seconds, None)?;
        let gauges = [
            ("process_start_time_seconds", "Start, since the Unix epoch", used.start_seconds),
            ("process_resident_memory_bytes", "Resident memory", used.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory", used.virtual_bytes),
            ("process_open_fds", "Open file descriptors", used.open_fds),
            ("process_max_fds", "File descriptors that may be open", used.max_fds),
            ("process_threads", "Threads", used.threads),
        ];
        for (name, help, value) in gauges {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

/// What was read.
#[derive(Debug, PartialEq)]
struct Used {
    cpu_seconds: f64,
    start_seconds: f64,
    resident_bytes: f64,
    virtual_bytes: f64,
    open_fds: f64,
    max_fds: f64,
    threads: f64,
}

impl Used {
    /// `None` where there is no `/proc`.
    fn read() -> Option<Self> {
        let [stat, status, machine, limits] =
            ["/proc/self/stat", "/proc/self/status", "/proc/stat", "/proc/self/limits"]
                .map(|path| fs::read_to_string(path).ok());
        let open_fds = fs::read_dir("/proc/self/fd").ok()?.count();
        Self::parse(&stat?, &status?, &machine?, &limits?, open_fds)
    }

    fn parse(
        stat: &str,
        status: &str,
        machine: &str,
        limits: &str,
        open_fds: usize,
    ) -> Option<Self> {
        // The name before it may hold anything, parentheses too.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // Counted as in proc(5), whose third field is our first.
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        let boot = number(machine, "btime")?;
        Some(Self {
            cpu_seconds: (ticks(14)? + ticks(15)?) / USER_HZ,
            start_seconds: boot + ticks(22)? / USER_HZ,
            resident_bytes: number(status, "VmRSS:")? * 1024.0,
            virtual_bytes: number(status, "VmSize:")? * 1024.0,
            open_fds: open_fds as f64,
            max_fds: number(limits, "Max open files").unwrap_or(f64::INFINITY),
            threads: number(status, "Threads:")?,
        })
    }
}

/// The first number of the line that begins with `key`.
pub(crate) fn number(text: &str, key: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn figures_of_proc_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 0 9 0 0 0 150 50 0 0 20 0 3 0 1000 9 9 9";
        let status = "VmSize:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t3\n";
        let limits = "Max open files            1024                 4096                 files\n";
        let used = Used::parse(stat, status, "cpu 1\nbtime 1000\n", limits, 5).unwrap();
        let wanted = Used {
            cpu_seconds: 2.0,
            start_seconds: 1010.0,
            resident_bytes: 1024.0 * 1024.0,
            virtual_bytes: 2048.0 * 1024.0,
            open_fds: 5.0,
            max_fds: 1024.0,
            threads: 3.0,
        };
        assert_eq!(used, wanted);
        assert_eq!(Used::parse("7 (a", status, "", limits, 5), None);
    }

    #[test]
    fn this_process_shows_what_it_uses() {
        let mut registry = Registry::default();
        let labels = || vec![("namespace", "shop".to_owned())];
        registry.register_collector(Box::new(Usage::new(labels)));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let start = format!("{name}{{namespace=\"shop\"}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0);
        let age = crate::clock::now_unix().as_secs_f64() - value("process_start_time_seconds");
        assert!((-2.0..86_400.0).contains(&age), "{age}");
        assert!(text.contains("process_cpu_seconds_total{"), "{text}");
    }
}
