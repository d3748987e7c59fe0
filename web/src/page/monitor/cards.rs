//! Numbers with their course.

use leptos::prelude::*;

use super::figures::{Part, Parts, Sparkline};
use super::source::Source;
use crate::monitor::board::{Board, Latency};
use crate::monitor::format;
use crate::monitor::history::Quantity;
use crate::monitor::snapshot::Snapshot;

/// A number with a title, its raw value for programs, and what explains it.
#[component]
fn Card(
    title: &'static str,
    testid: &'static str,
    /// As shown.
    text: impl Fn() -> String + Send + Sync + 'static,
    /// As it is.
    raw: impl Fn() -> Option<f64> + Send + Sync + 'static,
    /// One more line.
    note: impl Fn() -> String + Send + Sync + 'static,
    /// A picture below.
    #[prop(optional)]
    children: Option<Children>,
) -> impl IntoView {
    let raw = move || raw().map(|value| value.to_string());
    view! {
        <section class="card metric">
            <h2 class="metric-title">{title}</h2>
            <p class="metric-value" data-testid=testid data-value=raw>{text}</p>
            <p class="metric-note">{note}</p>
            {children.map(|children| children())}
        </section>
    }
}

/// All cards.
#[component]
pub(super) fn Cards(
    /// From where.
    source: Source,
    /// Milliseconds that are shown.
    window: Signal<u64>,
) -> impl IntoView {
    view! {
        <div class="cards">
            <Speeds source window/>
            <Latencies source window/>
            <Load source window/>
            <Cache source window/>
            <Memory source/>
            <Totals source/>
        </div>
    }
}

fn of(source: Source, field: fn(&Snapshot) -> Option<f64>) -> impl Fn() -> Option<f64> + Copy + Send + Sync {
    move || source.board.with(|board| board.snapshot.as_ref().and_then(field))
}

#[component]
fn Speeds(source: Source, window: Signal<u64>) -> impl IntoView {
    let board = source.board;
    let speed = move |quantity, title, testid| {
        let now = move || board.with(|board| board.history.latest(quantity));
        let mean = move || {
            board.with(|board| board.history.mean(quantity, board.now_ms.saturating_sub(window.get())))
        };
        let text = move || format::or_unknown(now(), format::number);
        let note = move || format!("tokens a second · mean {}", format::or_unknown(mean(), format::number));
        view! {
            <Card title testid text raw=now note>
                <Sparkline board quantity window label=format!("{title} over the last minutes")/>
            </Card>
        }
    };
    view! {
        {speed(Quantity::Generation, "Generation", "monitor-tokens-per-second")}
        {speed(Quantity::Prefill, "Prefill", "monitor-prefill-per-second")}
    }
}

#[component]
fn Latencies(source: Source, window: Signal<u64>) -> impl IntoView {
    let board = source.board;
    let latency = move |quantity, title, testid, measure: fn(&Board, u64) -> Latency| {
        let now = move || board.with(|board| measure(board, board.now_ms.saturating_sub(window.get())));
        let text = move || format::or_unknown(now().median, format::seconds);
        let note = move || {
            let latency = now();
            let span = if latency.lifetime { "since the start" } else { "in this window" };
            match latency.p95 {
                Some(p95) => format!("median {span} · p95 {}", format::seconds(p95)),
                None => "no request yet".to_owned(),
            }
        };
        view! {
            <Card title testid text raw=move || now().median note>
                <Sparkline board quantity window label=format!("{title} over the last minutes")/>
            </Card>
        }
    };
    view! {
        {latency(Quantity::FirstToken, "Time to first token", "monitor-ttft", Board::first_token)}
        {latency(Quantity::PerToken, "Time per token", "monitor-tpot", Board::per_token)}
    }
}

#[component]
fn Load(source: Source, window: Signal<u64>) -> impl IntoView {
    let board = source.board;
    let running = of(source, |s| s.running);
    let waiting = of(source, |s| s.waiting);
    let preempted = of(source, |s| s.preemptions);
    view! {
        <Card title="Running" testid="monitor-running" raw=running
            text=move || format::or_unknown(running(), format::number)
            note=|| "sequences being computed".to_owned()>
            <Sparkline board quantity=Quantity::Running window label="Running over the last minutes"/>
        </Card>
        <Card title="Waiting" testid="monitor-waiting" raw=waiting
            text=move || format::or_unknown(waiting(), format::number)
            note=move || format!("{} preempted so far", format::or_unknown(preempted(), format::number))>
            <Sparkline board quantity=Quantity::Waiting window label="Waiting over the last minutes"/>
        </Card>
    }
}

#[component]
fn Cache(source: Source, window: Signal<u64>) -> impl IntoView {
    let board = source.board;
    let usage = of(source, |s| s.cache_usage);
    let prefix = of(source, Snapshot::prefix_rate);
    let [hits, queries] = [of(source, |s| s.prefix_hits), of(source, |s| s.prefix_queries)];
    let blocks = move || match board.with(|board| board.standing) {
        Some(standing) => {
            let (used, all) = (standing.blocks_used as u64, standing.blocks as u64);
            format!("{} of {} blocks", format::count(used), format::count(all))
        }
        None => "of its blocks".to_owned(),
    };
    let held = move || {
        let [hits, queries] = [hits(), queries()].map(|count| format::or_unknown(count, format::number));
        format!("{hits} of {queries} prompt tokens")
    };
    view! {
        <Card title="KV cache in use" testid="monitor-kv" raw=usage note=blocks
            text=move || format::or_unknown(usage(), format::percent)>
            <Sparkline board quantity=Quantity::Cache window label="KV cache in use over the last minutes"/>
        </Card>
        <Card title="Prefix cache hits" testid="monitor-prefix" raw=prefix note=held
            text=move || format::or_unknown(prefix(), format::percent)>
            <Sparkline board quantity=Quantity::Prefix window label="Prefix cache hits over the last minutes"/>
        </Card>
    }
}

#[component]
fn Memory(source: Source) -> impl IntoView {
    let total = of(source, Snapshot::device_bytes);
    let kinds: [(&'static str, &str, fn(&Snapshot) -> Option<f64>); 3] = [
        ("weights", "weights", |s| s.weight_bytes),
        ("kv", "cache", |s| s.kv_bytes),
        ("scratch", "scratch", |s| s.scratch_bytes),
    ];
    let parts = Signal::derive(move || {
        let part = |(kind, name, field): (_, &str, fn(&Snapshot) -> Option<f64>)| {
            let amount = of(source, field)()?;
            Some(Part { kind, title: format!("{name} {}", format::bytes(amount)), amount })
        };
        kinds.into_iter().filter_map(part).collect::<Vec<_>>()
    });
    let legend = move || {
        parts
            .get()
            .into_iter()
            .map(|part| {
                view! { <li><span class=format!("swatch part-{}", part.kind)></span>{part.title}</li> }
            })
            .collect_view()
    };
    view! {
        <Card title="Device memory" testid="monitor-memory" raw=total
            text=move || format::or_unknown(total(), format::bytes) note=move || source.hello.get().device>
            <Parts parts label="Device memory"/>
            <ul class="legend">{legend}</ul>
        </Card>
    }
}

#[component]
fn Totals(source: Source) -> impl IntoView {
    let rows: [(&str, &str, fn(&Snapshot) -> Option<f64>); 3] = [
        ("Prompt tokens", "monitor-prompt-tokens", |s| s.prompt_tokens),
        ("Generated tokens", "monitor-generation-tokens", |s| s.generation_tokens),
        ("Requests finished", "monitor-finished", |s| s.finished),
    ];
    let rows = rows.map(|(title, testid, field)| {
        let value = of(source, field);
        let raw = move || value().map(|value| value.to_string());
        view! {
            <div>
                <dt>{title}</dt>
                <dd data-testid=testid data-value=raw>{move || format::or_unknown(value(), format::number)}</dd>
            </div>
        }
    });
    view! {
        <section class="card metric">
            <h2 class="metric-title">"Since the start"</h2>
            <dl class="totals">{rows.collect_view()}</dl>
        </section>
    }
}
