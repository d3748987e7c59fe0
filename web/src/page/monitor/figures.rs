//! Small pictures: a sparkline, parts of a whole, stacked bars. Each is an image with a text in its place.

use leptos::prelude::*;

use crate::monitor::board::{Board, STEPS};
use crate::monitor::history::Quantity;

const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 40.0;

/// The course of a number.
#[component]
pub(super) fn Sparkline(
    /// From where.
    board: RwSignal<Board>,
    /// Of what.
    quantity: Quantity,
    /// Milliseconds that are shown.
    window: Signal<u64>,
    /// What it shows, for who cannot see it.
    #[prop(into)]
    label: String,
) -> impl IntoView {
    let paths = Memo::new(move |_| {
        board.with(|board| {
            let since = board.now_ms.saturating_sub(window.get());
            paths(&board.history.lines(quantity, since), since, window.get())
        })
    });
    view! {
        <svg class="sparkline" viewBox="0 0 240 40" preserveAspectRatio="none" role="img" aria-label=label>
            <path class="sparkline-area" d=move || paths.with(|paths| paths.0.clone())/>
            <path class="sparkline-line" d=move || paths.with(|paths| paths.1.clone())/>
        </svg>
    }
}

/// The areas below the lines, and the lines.
fn paths(lines: &[Vec<(u64, f64)>], since_ms: u64, window_ms: u64) -> (String, String) {
    let top = lines.iter().flatten().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let x = |at: u64| (at - since_ms) as f64 / window_ms as f64 * WIDTH;
    let y = |value: f64| HEIGHT - 1.0 - value / top * (HEIGHT - 4.0);
    let (mut areas, mut strokes) = (String::new(), String::new());
    for line in lines {
        let (Some(first), Some(last)) = (line.first(), line.last()) else { continue };
        let points: Vec<String> =
            line.iter().map(|(at, value)| format!("{:.1} {:.1}", x(*at), y(*value))).collect();
        let points = points.join("L");
        // A single moment is a dot: round caps make one of a line without length.
        strokes.push_str(&format!("M{points}h0.1"));
        areas.push_str(&format!("M{:.1} {HEIGHT}L{points}L{:.1} {HEIGHT}Z", x(first.0), x(last.0)));
    }
    (areas, strokes)
}

/// One part of a whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    /// How it looks: the class `part-KIND`.
    pub(super) kind: &'static str,
    /// For people.
    pub(super) title: String,
    /// How much.
    pub(super) amount: f64,
}

/// Parts of a whole beside each other. `whole` is more than their sum where something is left free.
#[component]
pub(super) fn Parts(
    /// The parts.
    #[prop(into)]
    parts: Signal<Vec<Part>>,
    /// All, if not their sum.
    #[prop(into, optional)]
    whole: Signal<Option<f64>>,
    /// What is divided.
    #[prop(into)]
    label: String,
) -> impl IntoView {
    let bars = move || {
        let parts = parts.get();
        let all = whole.get().unwrap_or_else(|| parts.iter().map(|part| part.amount).sum());
        let mut at = 0.0;
        let unit = if all > 0.0 { 1000.0 / all } else { 0.0 };
        let bars = parts.into_iter().map(|part| {
            let (x, width) = (at, part.amount * unit);
            at += width;
            view! {
                <rect class=format!("part part-{}", part.kind) x=format!("{x:.2}") y="0" height="16"
                    width=format!("{width:.2}")><title>{part.title}</title></rect>
            }
        });
        bars.collect_view()
    };
    let text = move || {
        let parts: Vec<String> = parts.get().into_iter().map(|part| part.title).collect();
        format!("{label}: {}", if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") })
    };
    view! {
        <svg class="parts" viewBox="0 0 1000 16" preserveAspectRatio="none" role="img" aria-label=text>
            <rect class="parts-ground" width="1000" height="16"/>
            {bars}
        </svg>
    }
}

/// Phases of the last steps, one bar a step, stacked.
#[component]
pub(super) fn StepBars(
    /// From where.
    board: RwSignal<Board>,
) -> impl IntoView {
    let paths = move || {
        board.with(|board| {
            let phases = |step: &tread_core::monitor::StepEvent| {
                [step.compute_us as f64, step.schedule_us as f64, step.sample_us as f64]
            };
            let top = board.steps.iter().map(|step| phases(step).iter().sum()).fold(1.0, f64::max);
            let mut paths = [String::new(), String::new(), String::new()];
            let before = STEPS - board.steps.len();
            for (at, step) in board.steps.iter().enumerate() {
                let mut y = 100.0;
                for (path, us) in paths.iter_mut().zip(phases(step)) {
                    let height = us / top * 98.0;
                    y -= height;
                    path.push_str(&format!("M{} {y:.2}h8v{height:.2}h-8z", (before + at) * 10 + 1));
                }
            }
            paths
        })
    };
    let kinds = ["compute", "schedule", "sample"];
    let text = move || board.with(|board| format!("Time of the last {} steps, by phase", board.steps.len()));
    view! {
        <svg class="step-bars" viewBox="0 0 960 100" preserveAspectRatio="none" role="img" aria-label=text>
            {move || kinds.into_iter().zip(paths()).map(|(kind, path)| {
                view! { <path class=format!("part part-{kind}") d=path/> }
            }).collect_view()}
        </svg>
    }
}

#[cfg(test)]
mod tests {
    use super::paths;

    #[test]
    fn gaps_and_single_moments_are_drawn() {
        let (areas, lines) = paths(&[vec![(0, 0.0), (50, 2.0)], vec![(100, 1.0)]], 0, 100);
        assert_eq!(lines, "M0.0 39.0L120.0 3.0h0.1M240.0 21.0h0.1");
        assert_eq!(areas.matches('Z').count(), 2);
        assert_eq!(paths(&[], 0, 100), (String::new(), String::new()));
        // All zero: a line at the bottom, not a division by nothing.
        assert!(paths(&[vec![(0, 0.0)]], 0, 100).1.starts_with("M0.0 39.0"));
    }
}
