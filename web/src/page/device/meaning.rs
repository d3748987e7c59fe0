//! What limits and features mean for a model.

use std::fmt::Write as _;

use super::bytes;
use crate::monitor::format;
use crate::protocol::Capabilities;

/// A limit's value, for people.
pub(super) fn value(name: &str, value: u64) -> String {
    if name.contains("bytes") { bytes(value) } else { format::count(value) }
}

/// What a limit means.
pub(super) fn limit(name: &str) -> &'static str {
    match name {
        "max buffer bytes" => {
            "The largest piece of GPU memory. A tensor that is larger is cut where it can be."
        }
        "max binding bytes" => {
            "The most that one kernel sees of a buffer. It bounds the largest weight of a model."
        }
        "storage buffers a kernel" => {
            "Tread's kernels need up to 8; every browser with WebGPU gives as many."
        }
        "threads a workgroup" => {
            "How many threads work together on a tile. 256 is enough for every kernel here."
        }
        "workgroups a dimension" => "Bounds how much one launch computes. Longer work is cut into several.",
        "shared bytes a workgroup" => "Memory that threads of a tile share. More of it allows larger tiles.",
        "smallest subgroup" | "largest subgroup" => {
            "Threads that run in lockstep and can add up without shared memory."
        }
        _ => "",
    }
}

/// What it means that a feature is there or not.
pub(super) fn feature(name: &str, there: bool) -> &'static str {
    match (name, there) {
        ("subgroups", true) => "Sums are made without shared memory: decoding is faster.",
        ("subgroups", false) => "Sums go through shared memory: decoding is somewhat slower.",
        ("shader f16", true) => "Kernels can read half-precision weights directly.",
        ("shader f16", false) => {
            "Half-precision weights are unpacked by integer arithmetic; results are the same."
        }
        ("timestamp queries", true) => "The monitor can measure every op on the GPU.",
        ("timestamp queries", false) => "The monitor cannot measure single ops.",
        _ => "",
    }
}

/// All as text.
pub(super) fn report(capabilities: &Capabilities, browser: &str, secure: bool) -> String {
    let mut text = format!("Tread in {browser}\nsecure context: {}\n", word(secure));
    _ = writeln!(text, "models can be kept: {}", word(capabilities.storage));
    match &capabilities.adapter {
        Some(adapter) => {
            _ = writeln!(text, "adapter: {}\nsoftware: {}", adapter.name, word(adapter.software));
            for (name, value) in &adapter.limits {
                _ = writeln!(text, "{name}: {value}");
            }
            for (name, there) in &adapter.features {
                _ = writeln!(text, "{name}: {}", word(*there));
            }
        }
        None => {
            _ = writeln!(
                text,
                "adapter: none, {}",
                capabilities.reason.as_deref().unwrap_or("no reason given")
            )
        }
    }
    match &capabilities.self_test {
        Some(test) => {
            _ = writeln!(
                text,
                "self-test: {}, relative error {:e}",
                if test.passed { "passed" } else { "failed" },
                test.error
            );
            if let Some(message) = &test.message {
                _ = writeln!(text, "self-test says: {message}");
            }
        }
        None => _ = writeln!(text, "self-test: not made"),
    }
    text
}

fn word(there: bool) -> &'static str {
    if there { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Adapter, SelfTest};

    #[test]
    fn the_report_says_everything() {
        let adapter = Adapter {
            name: "Some GPU".into(),
            software: true,
            limits: vec![("max buffer bytes".into(), 1024)],
            features: vec![("subgroups".into(), false)],
        };
        let self_test = Some(SelfTest { passed: false, error: 0.5, message: Some("wrong".into()) });
        let text = report(
            &Capabilities { adapter: Some(adapter), reason: None, self_test, storage: true },
            "B/1",
            true,
        );
        for line in [
            "Tread in B/1",
            "adapter: Some GPU",
            "software: yes",
            "max buffer bytes: 1024",
            "subgroups: no",
            "self-test: failed, relative error 5e-1",
            "self-test says: wrong",
            "models can be kept: yes",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in {text}");
        }
        let none = Capabilities { reason: Some("blocked".into()), ..Capabilities::default() };
        assert!(report(&none, "", false).contains("adapter: none, blocked"));
    }

    #[test]
    fn bytes_are_shown_as_bytes() {
        assert_eq!(value("max buffer bytes", 2_000_000), "2.0 MB");
        assert_eq!(value("threads a workgroup", 1024), "1,024");
    }
}
