//! Where the time of a step went: op by op, and phase by phase over the last steps.

use leptos::ev::KeyboardEvent;
use leptos::prelude::*;
use tread_core::monitor::{OpTime, StepEvent};

use super::figures::{Part, Parts, StepBars};
use super::source::Source;
use crate::monitor::format;
use crate::monitor::steps::{Lane, OpTotal, Rows, by_op, lane_us, span_us};

/// Kinds of ops that have a colour of their own; the others share the last.
const COLOURS: usize = 7;

/// The composition of the last step, and the phases of the last ones.
#[component]
pub(super) fn Steps(
    /// From where.
    source: Source,
) -> impl IntoView {
    let last = move || source.board.with(|board| board.steps.back().cloned());
    let parts = Signal::derive(move || last().map(|step| sequences(&step)).unwrap_or_default());
    let rows = move || match last() {
        Some(step) => {
            let rows = Rows::of(&step);
            let sum = (rows.prefill_rows + rows.decode_rows) as u64;
            let dispatches = format::counted(step.dispatches as u64, "dispatch");
            format!("{} · {} · {dispatches}", rows.describe(), format::counted(sum, "row"))
        }
        None => "No step yet".to_owned(),
    };
    let phases = move || match last() {
        Some(step) => {
            let [schedule, compute, sample] = [step.schedule_us, step.compute_us, step.sample_us]
                .map(|us| format::seconds(us as f64 / 1e6));
            format!("Last step: schedule {schedule} · compute {compute} · sample {sample}")
        }
        None => "No step yet".to_owned(),
    };
    view! {
        <div class="duo">
            <section class="card">
                <h2>"Batch of the last step"</h2>
                <p class="note" data-testid="monitor-batch">{rows}</p>
                <Parts parts label="Token rows by sequence"/>
                <ul class="legend">
                    <li><span class="swatch part-prefill"></span>"prefill"</li>
                    <li><span class="swatch part-decode"></span>"decode"</li>
                </ul>
            </section>
            <section class="card">
                <h2>"Time of the last steps"</h2>
                <p class="note">{phases}</p>
                <StepBars board=source.board/>
                <ul class="legend">
                    <li><span class="swatch part-schedule"></span>"schedule"</li>
                    <li><span class="swatch part-compute"></span>"compute"</li>
                    <li><span class="swatch part-sample"></span>"sample"</li>
                </ul>
            </section>
        </div>
    }
}

/// One part for each sequence of a step.
fn sequences(step: &StepEvent) -> Vec<Part> {
    let part = |rows: &tread_core::monitor::SequenceRows| {
        let (kind, does) = if rows.decodes { ("decode", "decodes") } else { ("prefill", "prefill") };
        let title = format!("request {} {does}, {}", rows.request, format::counted(rows.rows as u64, "row"));
        Part { kind, title, amount: rows.rows as f64 }
    };
    step.rows.iter().map(part).collect()
}

/// The last measured step, op by op.
#[component]
pub(super) fn Timeline(
    /// From where.
    source: Source,
) -> impl IntoView {
    // The same step is not drawn again.
    let step = Memo::new(move |_| source.board.with(|board| board.profiled.clone()));
    view! {
        <section class="card" data-testid="monitor-timeline">
            <h2>"One step, op by op"</h2>
            {move || match step.get() {
                Some(step) => view! { <Measured step/> }.into_any(),
                None => view! { <p class="note">"About once a second a step is measured op by op while requests run."</p> }.into_any(),
            }}
        </section>
    }
}

#[component]
fn Measured(step: StepEvent) -> impl IntoView {
    let totals = by_op(&step.ops);
    let span = span_us(&step.ops);
    let lanes: Vec<String> = Lane::of_ops(&step.ops)
        .into_iter()
        .map(|lane| format!("{} {}", lane.title(), micros(lane_us(&step.ops, lane))))
        .collect();
    let lanes = lanes.join(" · ");
    let note = format!("Step {} · {} ops in {} · {lanes}", step.step, step.ops.len(), micros(span));
    view! {
        <p class="note">{note}</p>
        <Lanes ops=step.ops totals=totals.clone() span/>
        <OpTable totals/>
    }
}

#[component]
fn Lanes(ops: Vec<OpTime>, totals: Vec<OpTotal>, span: f64) -> impl IntoView {
    let chosen = RwSignal::new(None::<usize>);
    let last = ops.len().saturating_sub(1);
    let unit = if span > 0.0 { 1000.0 / span } else { 0.0 };
    let lanes = Lane::of_ops(&ops);
    let tall = lanes.len() * 30;
    // Micro-batches run at the same time, so each has a strip of the lane.
    let strips = ops.iter().map(|op| op.micro_batch + 1).max().unwrap_or(1);
    let strip = 26.0 / strips as f64;
    let bars = ops.iter().enumerate().map(|(at, op)| {
        let lane = lanes.iter().position(|lane| *lane == Lane::of(op)).unwrap_or(0);
        let y = (lane * 30 + 2) as f64 + strip * op.micro_batch as f64;
        let class = format!("op op-{}", colour(&totals, &op.name));
        view! {
            <rect class=class class:op-chosen=move || chosen.get() == Some(at) y=format!("{y:.2}") height=format!("{strip:.2}")
                x=format!("{:.2}", op.start_us * unit) width=format!("{:.2}", (op.us * unit).max(0.4))
                on:pointerenter=move |_| chosen.set(Some(at))/>
        }
    });
    let bars = bars.collect_view();
    let ops = StoredValue::new(ops);
    let told = move || match chosen.get() {
        Some(at) => ops.with_value(|ops| ops.get(at).map(|op| describe(op, strips))).unwrap_or_default(),
        None => "Point at an op, or move through them with the arrow keys".to_owned(),
    };
    let key = move |event: KeyboardEvent| {
        let now = chosen.get_untracked();
        let next = match event.key().as_str() {
            "ArrowRight" | "ArrowDown" => now.map_or(0, |at| (at + 1).min(last)),
            "ArrowLeft" | "ArrowUp" => now.map_or(0, |at| at.saturating_sub(1)),
            "Home" => 0,
            "End" => last,
            _ => return,
        };
        event.prevent_default();
        chosen.set(Some(next));
    };
    view! {
        <div class="lanes" tabindex="0" role="slider" aria-label="Ops of the step" aria-valuemin="1"
            aria-valuemax=last + 1 aria-valuenow=move || chosen.get().unwrap_or(0) + 1 aria-valuetext=told on:keydown=key>
            <div class="lane-names" aria-hidden="true">
                {lanes.iter().map(|lane| view! { <span>{lane.title()}</span> }).collect_view()}
            </div>
            <svg class="lane-chart" viewBox=format!("0 0 1000 {tall}") preserveAspectRatio="none" aria-hidden="true">
                {(0..lanes.len()).map(|lane| view! { <rect class="lane-ground" y=lane * 30 + 2 width="1000" height="26"/> }).collect_view()}
                {bars}
            </svg>
        </div>
        <p class="lane-told">{told}</p>
    }
}

fn describe(op: &OpTime, micro_batches: usize) -> String {
    let layer = op.layer.map_or_else(|| Lane::Ends.title().to_lowercase(), |layer| format!("layer {layer}"));
    let part =
        if micro_batches > 1 { format!(" · micro-batch {}", op.micro_batch + 1) } else { String::new() };
    format!(
        "{} · {layer} · {}{part} · {}, from {}",
        op.name,
        Lane::of(op).title(),
        micros(op.us),
        micros(op.start_us)
    )
}

/// The place of an op among all by time.
fn colour(totals: &[OpTotal], name: &str) -> usize {
    totals.iter().position(|total| total.name == name).unwrap_or(COLOURS).min(COLOURS)
}

#[component]
fn OpTable(totals: Vec<OpTotal>) -> impl IntoView {
    let rows = totals.iter().enumerate().map(|(at, total)| {
        view! {
            <tr>
                <th scope="row"><span class=format!("swatch op-{}", at.min(COLOURS))></span>{total.name.clone()}</th>
                <td>{total.count}</td>
                <td>{micros(total.us)}</td>
                <td>{format::percent(total.share)}</td>
                <td class="share-cell">
                    <svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
                        <rect class=format!("op-{}", at.min(COLOURS)) width=format!("{:.1}", total.share * 100.0) height="8"/>
                    </svg>
                </td>
            </tr>
        }
    });
    view! {
        <div class="scroll" tabindex="0" role="region" aria-label="Time by op">
            <table class="figures">
                <thead><tr>
                    <th scope="col">"Op"</th><th scope="col">"Runs"</th><th scope="col">"Time"</th>
                    <th scope="col">"Share"</th><td class="share-cell"></td>
                </tr></thead>
                <tbody>{rows.collect_view()}</tbody>
            </table>
        </div>
    }
}

fn micros(us: f64) -> String {
    format::seconds(us / 1e6)
}
