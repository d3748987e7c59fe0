//! The picture of two pools: the micro-batches of a measured step on their ways between attention and FFN.

use std::time::Duration;

use leptos::prelude::*;
use tread_core::graph::Side;
use tread_core::monitor::STAGES;

use super::pipeline::{micros, reduced_motion};
use super::source::{Source, now_ms};
use crate::monitor::format;
use crate::monitor::replay::{Replay, Spot};

/// Left edge and width of the pools, in which a stage has the room that its rows of markers need.
const POOLS: [(f64, f64); 2] = [(0.0, 470.0), (650.0, 310.0)];
/// Left edge and width of what the attention pool does around a step, of attention, and of the FFN.
const BOXES: [(f64, f64); 3] = [(12.0, 130.0), (160.0, 298.0), (662.0, 286.0)];
/// Where markers stand in attention and in the FFN.
const STANDS: [f64; 2] = [309.0, 805.0];
/// Between the pools.
const WAY: f64 = 560.0;
/// The first row of markers, and from one to the next.
const ROWS: (f64, f64) = (104.0, 30.0);

/// A step that is being shown, and since when.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    replay: Replay,
    began_ms: u64,
}

impl Shown {
    /// How much of it was shown.
    fn part(&self, now_ms: u64) -> f64 {
        now_ms.saturating_sub(self.began_ms) as f64 / self.replay.shown_ms()
    }
}

/// The picture.
#[component]
pub(super) fn Pools(
    /// From where.
    source: Source,
) -> impl IntoView {
    let moving = !reduced_motion();
    let clock = RwSignal::new(now_ms());
    let shown = replays(source, clock, moving);
    let rows = Memo::new(move |_| shown.with(|s| s.as_ref().map_or(1, |s| s.replay.trips.len())));
    let told = move || shown.with(|shown| describe(shown.as_ref().map(|shown| &shown.replay), moving));
    let step = move || shown.with(|s| s.as_ref().map(|s| s.replay.step));
    let engine = move || shown.with(|s| s.as_ref().map(|s| s.replay.engine));
    view! {
        <p class="note" data-testid="monitor-replay" data-step=step data-engine=engine>{told}</p>
        <div class="scroll" tabindex="0" role="region" aria-label="Picture of the pipeline">
            <svg class="pipeline" viewBox=move || format!("0 0 960 {}", bottom(rows.get()) + 64.0) role="img" aria-label=told>
                {move || ground(source, rows.get(), shown)}
                {move || (0..rows.get()).map(|row| marker(row, shown, clock, moving)).collect_view()}
            </svg>
        </div>
    }
}

/// Below the last row of markers.
fn bottom(rows: usize) -> f64 {
    ROWS.0 + rows as f64 * ROWS.1
}

/// The steps to show, one after the other: the newest that was measured once the one before it has been shown.
fn replays(source: Source, clock: RwSignal<u64>, moving: bool) -> RwSignal<Option<Shown>> {
    let newest = Memo::new(move |_| source.board.with(|b| b.profiled.as_ref().and_then(Replay::of)));
    let shown = RwSignal::new(None::<Shown>);
    let next = move || {
        let now = now_ms();
        let busy = moving && shown.with_untracked(|s| s.as_ref().is_some_and(|s| s.part(now) < 1.0));
        let Some(replay) = newest.get_untracked().filter(|_| !busy) else { return };
        if shown.with_untracked(|s| s.as_ref().is_none_or(|s| s.replay != replay)) {
            shown.set(Some(Shown { replay, began_ms: now }));
        }
    };
    Effect::new(move |_| {
        newest.track();
        next();
    });
    if moving {
        // As often as is smooth; nothing is drawn again while nothing moves.
        let frames = set_interval_with_handle(
            move || {
                let now = now_ms();
                if shown.with_untracked(|s| s.as_ref().is_some_and(|s| s.part(now) < 1.1)) {
                    clock.set(now);
                } else {
                    next();
                }
            },
            Duration::from_millis(33),
        );
        on_cleanup(move || frames.iter().for_each(leptos::leptos_dom::helpers::IntervalHandle::clear));
    }
    shown
}

fn describe(replay: Option<&Replay>, moving: bool) -> String {
    let Some(replay) = replay else {
        return "About once a second a step is measured while requests run; it is shown here.".to_owned();
    };
    let Replay { engine, step, layers, trips, .. } = replay;
    let batches = format::counted(trips.len() as u64, "micro-batch");
    let [attention, a2f, ffn, f2a] = replay.mean_us().map(micros);
    let how = if moving {
        format!(
            "played {} times slower, and short stages slower still",
            format::number(replay.slower().round())
        )
    } else {
        "at a moment in its middle: nothing moves, as your system asks".to_owned()
    };
    format!(
        "Step {step} of engine {engine}, as it was measured, {how}. {batches} through {layers} layers in {}. A layer takes \
         {attention} of attention, {a2f} on the way to the FFN, {ffn} there, {f2a} on the way back (means).",
        micros(replay.span_us())
    )
}

/// All that stands still.
fn ground(source: Source, rows: usize, shown: RwSignal<Option<Shown>>) -> impl IntoView {
    let end = bottom(rows) + 40.0;
    let pools = source.hello.get().pools;
    let outlines = POOLS.into_iter().zip([Side::Attention, Side::Ffn]).map(|((x, width), side)| {
        let pool = pools.iter().find(|pool| pool.sides == [side]).cloned();
        let (name, device) = pool.map(|pool| (pool.name, pool.device)).unzip();
        let middle = x + width / 2.0;
        view! {
            <g data-testid="monitor-pool">
                <rect class="pool" x=x y="24" width=width height=end - 24.0 rx="10"/>
                <text class="pool-name" x=middle y="15" text-anchor="middle">{format!("Pool {}", name.unwrap_or_default())}</text>
                <text class="pool-name" x=middle y=end + 18.0 text-anchor="middle">{device}</text>
            </g>
        }
    });
    let mean = move |stage: usize| move || shown.with(|s| s.as_ref().map(|s| s.replay.mean_us()[stage]));
    let phases = move || {
        source.board.with(|b| b.steps.back().map(|s| [s.schedule_us, s.sample_us].map(|us| us as f64)))
    };
    let half = (end - 32.0 - 8.0) / 2.0;
    let [around, attention, ffn] = BOXES;
    view! {
        {outlines.collect_view()}
        {stage_box("stage", "Schedule", around, (32.0, half - 4.0), None, move || phases().map(|times| times[0]))}
        {stage_box("stage", "Sample", around, (32.0 + half + 4.0, half - 4.0), None, move || phases().map(|times| times[1]))}
        {stage_box("stage stage-attention", "Attention", attention, (32.0, end - 40.0), Some(STAGES[0]), mean(0))}
        {stage_box("stage stage-ffn", "FFN", ffn, (32.0, end - 40.0), Some(STAGES[2]), mean(2))}
        {way("to the FFN", STAGES[1], "M478 82H642m-7 -5l7 5l-7 5".to_owned(), 50.0, mean(1))}
        {way("back", STAGES[3], format!("M642 {}H478m7 -5l-7 5l7 5", end - 48.0), end - 22.0, mean(3))}
    }
}

fn stage_box(
    class: &'static str,
    title: &'static str,
    (x, width): (f64, f64),
    (y, height): (f64, f64),
    stage: Option<&'static str>,
    us: impl Fn() -> Option<f64> + Copy + Send + Sync + 'static,
) -> impl IntoView {
    let middle = x + width / 2.0;
    view! {
        <rect class=class x=x y=y width=width height=height rx="6"/>
        <text class="stage-title" x=middle y=y + 22.0 text-anchor="middle">{title}</text>
        <text class="stage-time" x=middle y=y + 40.0 text-anchor="middle" data-testid=stage.map(|stage| format!("stage-{stage}"))
            data-value=move || us().map(|us| us.to_string())>{move || format::or_unknown(us(), micros)}</text>
    }
}

fn way(
    title: &'static str,
    stage: &'static str,
    arrow: String,
    y: f64,
    us: impl Fn() -> Option<f64> + Copy + Send + Sync + 'static,
) -> impl IntoView {
    view! {
        <path class="pipe" d=arrow/>
        <text class="stage-title" x=WAY y=y text-anchor="middle">{title}</text>
        <text class="stage-time" x=WAY y=y + 18.0 text-anchor="middle" data-testid=format!("stage-{stage}")
            data-value=move || us().map(|us| us.to_string())>{move || format::or_unknown(us(), micros)}</text>
    }
}

/// A micro-batch where it is now.
fn marker(
    micro_batch: usize,
    shown: RwSignal<Option<Shown>>,
    clock: RwSignal<u64>,
    moving: bool,
) -> impl IntoView {
    let part = move || shown.with(|s| s.as_ref().map_or(1.0, |s| s.part(clock.get())));
    let spot = move || {
        let part = if moving { part() } else { 0.5 };
        shown.with(|s| s.as_ref().and_then(|s| s.replay.at(micro_batch, part)))
    };
    let stage = move || spot().map(|spot| STAGES[spot.visit.stage]);
    let transform = move || {
        let x = spot().map_or(STANDS[0], place);
        format!("translate({x:.1} {})", ROWS.0 + micro_batch as f64 * ROWS.1)
    };
    let gone = move || moving && part() >= 1.0;
    view! {
        <g class="micro part-decode" class:micro-gone=gone class:micro-waits=move || spot().is_some_and(|spot| spot.waits)
            transform=transform data-testid="micro-batch" data-stage=stage>
            <rect x="-24" y="-12" width="48" height="24" rx="12"/>
            <text y="4.5" text-anchor="middle">{micro_batch + 1}</text>
        </g>
    }
}

/// By the number of the stage in [`STAGES`].
fn place(spot: Spot) -> f64 {
    let [attention, ffn] = STANDS;
    match spot.visit.stage {
        1 => attention + (ffn - attention) * spot.through,
        2 => ffn,
        3 => ffn + (attention - ffn) * spot.through,
        _ => attention,
    }
}
