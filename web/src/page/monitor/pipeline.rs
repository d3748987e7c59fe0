//! The picture of the pipeline: one pool with its sides, and the batches that move through it; or two pools.

use std::time::Duration;

use leptos::prelude::*;
use tread_core::graph::Side;
use tread_core::monitor::StepEvent;

use super::pools::Pools;
use super::source::{Source, now_ms};
use crate::monitor::format;
use crate::monitor::steps::Rows;
use crate::monitor::travel::{STAGES, Stage, place, stage_us};

/// Milliseconds that a batch takes through the picture: real steps are too fast to be seen.
const SHOWN_MS: f64 = 2_400.0;
/// Least time between two batches in the picture.
const APART_MS: u64 = 800;
/// Where each stage begins, and how wide it is.
const BOXES: [(f64, f64); 4] = [(0.0, 170.0), (220.0, 260.0), (480.0, 260.0), (790.0, 170.0)];

/// A batch on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Micro {
    step: u64,
    began_ms: u64,
    stage_us: [f64; 4],
    rows: Rows,
}

/// The picture.
#[component]
pub(super) fn Pipeline(
    /// From where.
    source: Source,
) -> impl IntoView {
    let apart = Memo::new(move |_| source.hello.with(|hello| hello.pools.len() > 1));
    view! {
        <section class="card" data-testid="monitor-pipeline">
            <h2>"Pipeline"</h2>
            {move || if apart.get() {
                view! { <Pools source/> }.into_any()
            } else {
                view! { <OnePool source/> }.into_any()
            }}
        </section>
    }
}

#[component]
fn OnePool(source: Source) -> impl IntoView {
    let times = Memo::new(move |_| {
        source.board.with(|board| board.steps.back().map(|step| stage_us(step, board.profiled.as_ref())))
    });
    let told = move || {
        let times = times.get().unwrap_or_default();
        let stages: Vec<String> =
            STAGES.iter().zip(times).map(|(stage, us)| format!("{} {}", stage.title(), micros(us))).collect();
        format!("A step passes through: {}", stages.join(", "))
    };
    let moving = !reduced_motion();
    let note = if moving {
        "Each marker is the batch of a real step, slowed down so that it can be seen; steps in between are left out."
    } else {
        "The marker is the batch of the last step, where it stayed longest. It stands still, as your system asks for less motion."
    };
    view! {
        <p class="note">{note}</p>
        <div class="scroll" tabindex="0" role="region" aria-label="Picture of the pipeline">
            <svg class="pipeline" viewBox="0 0 960 170" role="img" aria-label=told>
                <Outline source/>
                {STAGES.into_iter().enumerate().map(|(at, stage)| stage_box(at, stage, times)).collect_view()}
                <Batches source moving/>
            </svg>
        </div>
    }
}

/// The outline of the pool around both sides.
#[component]
fn Outline(source: Source) -> impl IntoView {
    let (x, end) = (BOXES[1].0, BOXES[2].0 + BOXES[2].1);
    let middle = (x + end) / 2.0;
    let device = move || source.hello.with(|hello| hello.pools.first().map(|pool| pool.device.clone()));
    view! {
        <rect class="pool" x=x y="24" width=end - x height="112" rx="10"/>
        <text class="pool-name" x=middle y="15" text-anchor="middle">"One pool for both sides"</text>
        <text class="pool-name" x=middle y="154" text-anchor="middle">{device}</text>
    }
}

fn stage_box(at: usize, stage: Stage, times: Memo<Option<[f64; 4]>>) -> impl IntoView {
    let (x, width) = BOXES[at];
    let middle = x + width / 2.0;
    let time = move || format::or_unknown(times.get().map(|times| times[at]), micros);
    let arrow = (at > 0 && BOXES[at - 1].0 + BOXES[at - 1].1 < x).then(|| {
        let (from, to) = (BOXES[at - 1].0 + BOXES[at - 1].1 + 6.0, x - 6.0);
        view! { <path class="pipe" d=format!("M{from} 96H{to}m-7 -5l7 5l-7 5")/> }
    });
    let class = match stage {
        Stage::Side(Side::Attention) => "stage stage-attention",
        Stage::Side(Side::Ffn) => "stage stage-ffn",
        Stage::Schedule | Stage::Sample => "stage",
    };
    view! {
        {arrow}
        <rect class=class x=x + 8.0 y="32" width=width - 16.0 height="96" rx="6"/>
        <text class="stage-title" x=middle y="54" text-anchor="middle">{stage.title()}</text>
        <text class="stage-time" x=middle y="72" text-anchor="middle">{time}</text>
    }
}

#[component]
fn Batches(source: Source, moving: bool) -> impl IntoView {
    let batches = RwSignal::new(Vec::<Micro>::new());
    let clock = RwSignal::new(now_ms());
    Effect::new(move |_| {
        let Some(next) =
            source.board.with(|board| board.steps.back().map(|step| micro(step, board.profiled.as_ref())))
        else {
            return batches.set(Vec::new());
        };
        batches.update(|batches| {
            if !moving {
                *batches = vec![next];
            } else if batches.last().is_none_or(|last| {
                last.step != next.step && next.began_ms.saturating_sub(last.began_ms) >= APART_MS
            }) {
                batches.retain(|batch| part(batch, next.began_ms) < 1.0);
                batches.push(next);
            }
        });
    });
    if moving {
        // As often as is smooth; nothing is drawn again while nothing moves.
        let frames = set_interval_with_handle(
            move || {
                let now = now_ms();
                if batches.with_untracked(|batches| batches.iter().any(|batch| part(batch, now) <= 1.2)) {
                    clock.set(now);
                }
            },
            Duration::from_millis(33),
        );
        on_cleanup(move || frames.iter().for_each(leptos::leptos_dom::helpers::IntervalHandle::clear));
    }
    view! {
        <For each=move || batches.get() key=|batch| batch.step let(batch)>
            {marker(batch, clock, moving)}
        </For>
    }
}

fn micro(step: &StepEvent, profiled: Option<&StepEvent>) -> Micro {
    Micro { step: step.step, began_ms: now_ms(), stage_us: stage_us(step, profiled), rows: Rows::of(step) }
}

/// How much of its way a batch has made.
fn part(batch: &Micro, now_ms: u64) -> f64 {
    now_ms.saturating_sub(batch.began_ms) as f64 / SHOWN_MS
}

fn marker(batch: Micro, clock: RwSignal<u64>, moving: bool) -> impl IntoView {
    let rows = batch.rows.prefill_rows + batch.rows.decode_rows;
    let class = if batch.rows.prefill_rows > 0 { "micro part-prefill" } else { "micro part-decode" };
    let times = batch.stage_us.iter().enumerate();
    let longest = times.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(at, _)| at);
    let at = move || {
        if moving { place(batch.stage_us, part(&batch, clock.get())) } else { (longest, 0.5) }
    };
    let gone = move || moving && part(&batch, clock.get()) >= 1.0;
    let transform = move || {
        let (stage, through) = at();
        let (x, width) = BOXES[stage];
        // Through the box, and over to where the next one takes it up.
        let to = BOXES.get(stage + 1).map_or(x + width - 40.0, |next| next.0 + 40.0);
        format!("translate({:.1} 102)", x + 40.0 + (to - x - 40.0) * through)
    };
    view! {
        <g class=class class:micro-gone=gone transform=transform>
            <rect x="-24" y="-12" width="48" height="24" rx="12"/>
            <text y="4.5" text-anchor="middle">{rows}</text>
        </g>
    }
}

/// Whether the system asks for less motion.
pub(super) fn reduced_motion() -> bool {
    let query = window().match_media("(prefers-reduced-motion: reduce)");
    query.ok().flatten().is_some_and(|query| query.matches())
}

pub(super) fn micros(us: f64) -> String {
    format::seconds(us / 1e6)
}
