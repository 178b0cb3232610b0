//! What a run took: processor time and peak memory, from the system's own accounting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Processor seconds of this process so far, all threads.
pub(crate) fn cpu_seconds() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

/// Watches anonymous memory, of which the system keeps no peak.
pub(crate) struct PeakMemory {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    watcher: Option<JoinHandle<()>>,
}

impl PeakMemory {
    /// Looks every ten milliseconds.
    pub(crate) fn start() -> Self {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (s, p) = (stop.clone(), peak.clone());
        let watch = move || {
            while !s.load(Ordering::Relaxed) {
                p.fetch_max(status("RssAnon:"), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        Self { stop, peak, watcher: std::thread::Builder::new().name("memory".to_owned()).spawn(watch).ok() }
    }

    /// Peak resident and peak anonymous memory, in bytes; 0 where the system does not tell.
    pub(crate) fn finish(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        (peak_rss_bytes(), self.peak.load(Ordering::Relaxed).max(status("RssAnon:")))
    }
}

/// Peak resident memory so far; 0 where the system does not tell.
pub(crate) fn peak_rss_bytes() -> u64 {
    status("VmHWM:")
}

/// Whether most of what holds `weights` bytes lies in huge pages: memory of our own where there is that much of it, else
/// mapped files.
pub(crate) fn has_huge_pages(weights: usize) -> bool {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let [resident, own, own_huge, mapped_huge] =
        ["Rss:", "Anonymous:", "AnonHugePages:", "FilePmdMapped:"].map(|key| figure(&text, key));
    let (all, huge) =
        if 2 * own >= weights as u64 { (own, own_huge) } else { (resident.saturating_sub(own), mapped_huge) };
    2 * huge > all
}

/// A figure of `/proc/self/status`, in bytes.
fn status(key: &str) -> u64 {
    figure(&std::fs::read_to_string("/proc/self/status").unwrap_or_default(), key)
}

/// A figure of a file of the system, in bytes.
fn figure(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let kib: Option<u64> = line.and_then(|l| l.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_key() {
        let text = "Rss:  12 kB\nAnonHugePages:   2048 kB\nAnonymous: 7 kB\n";
        assert_eq!(figure(text, "AnonHugePages:"), 2048 << 10);
        assert_eq!(figure(text, "Anonymous:"), 7 << 10);
        assert_eq!(figure(text, "FilePmdMapped:"), 0);
    }
}
