//! Host memory, where the system tells it.

/// Bytes that programs may still take without swapping.
pub(crate) fn available() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemAvailable:")
}

/// Begins a new measurement of [`peak`].
pub(crate) fn reset_peak() {
    // Linux' documented way (proc_pid_clear_refs(5)); without it, the peak is that since the start.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Most bytes this process has held at a time.
pub(crate) fn peak() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

/// Bytes of physical memory that a process holds now.
pub(crate) fn resident(process: u32) -> Option<u64> {
    kilobytes(&format!("/proc/{process}/status"), "VmRSS:")
}

fn kilobytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let number: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(number * 1024)
}

/// `1.50 GiB`.
pub(crate) fn text(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}
