//! The series that every Prometheus client library has of its process, read from `/proc`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::encode::encode_single;

/// Reads `/proc` at each scrape.
#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(stats) = ProcessStats::read() else { return Ok(()) };
        let encoder = &mut encoder;
        let cpu = ConstCounter::new(stats.cpu_seconds);
        encode_single(encoder, "process_cpu_seconds", "CPU time spent, user and system", &cpu)?;
        let memory = ConstGauge::new(stats.resident_bytes);
        encode_single(encoder, "process_resident_memory_bytes", "Resident memory", &memory)?;
        let fds = ConstGauge::new(stats.open_fds);
        encode_single(encoder, "process_open_fds", "Open file descriptors", &fds)?;
        let max_fds = ConstGauge::new(stats.max_fds);
        encode_single(encoder, "process_max_fds", "How many file descriptors may be open", &max_fds)?;
        let threads = ConstGauge::new(stats.threads);
        encode_single(encoder, "process_threads", "Threads", &threads)?;
        let start = ConstGauge::new(stats.start_seconds);
        encode_single(
            encoder,
            "process_start_time_seconds",
            "When the process began, since the Unix epoch",
            &start,
        )
    }
}

struct ProcessStats {
    cpu_seconds: f64,
    resident_bytes: u64,
    open_fds: u64,
    max_fds: u64,
    threads: u64,
    start_seconds: f64,
}

/// `USER_HZ`, 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

impl ProcessStats {
    /// proc(5); `None` where there is no `/proc`.
    fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the program's name in parentheses, and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
        let booted: f64 = line("/proc/stat", "btime ")?.parse().ok()?;
        let resident_kib: u64 = line("/proc/self/status", "VmRSS:")?.trim_end_matches(" kB").parse().ok()?;
        let max_fds = line("/proc/self/limits", "Max open files")?;
        Some(Self {
            cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
            resident_bytes: resident_kib * 1024,
            open_fds: std::fs::read_dir("/proc/self/fd").ok()?.count() as u64,
            max_fds: max_fds.split_whitespace().next()?.parse().unwrap_or(u64::MAX),
            threads: fields.get(17)?.parse().ok()?,
            start_seconds: booted + ticks(19)? / TICKS_PER_SECOND,
        })
    }
}

/// The rest of the line that begins with `label`.
fn line(file: &str, label: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix(label)).map(|rest| rest.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_process_are_plausible() {
        let stats = ProcessStats::read().unwrap();
        assert!(stats.resident_bytes > 100_000 && stats.open_fds >= 3 && stats.threads >= 1);
        assert!(stats.max_fds >= stats.open_fds);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(stats.start_seconds <= now.as_secs_f64() + 1.0);
        assert!(now.as_secs_f64() - stats.start_seconds < 24.0 * 3_600.0);
    }
}
