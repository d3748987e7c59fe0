//! Progress bars, on standard error, and only when it is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts bytes. Hidden where standard error is not a terminal.
pub(crate) fn bytes(label: &str, total: u64) -> ProgressBar {
    bar(label, total, "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}")
}

/// A bar that counts things, likewise.
pub(crate) fn count(label: &str, total: u64) -> ProgressBar {
    bar(label, total, "{msg} {wide_bar} {pos}/{len} {eta}")
}

fn bar(label: &str, total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(label.to_owned());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
