//! Progress bars, on standard error, and only when it is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts bytes. Hidden where standard error is not a terminal.
pub(crate) fn bytes(label: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(label.to_owned());
    let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}
