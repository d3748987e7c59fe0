//! The view `bench`: how fast the model is, in this browser or on the server.

mod server;

use leptos::prelude::*;
use leptos::task::spawn_local;

use crate::monitor::format;
use crate::monitor::window::quantile;
use crate::page::clipboard::CopyButton;
use crate::page::{App, Place};
use crate::protocol::{Measurement, ToEngine};

/// What is measured: `(id, label, default)`.
const FIELDS: [(&str, &str, usize); 3] =
    [("bench-prompt", "Prompt tokens", 128), ("bench-new", "New tokens", 64), ("bench-turns", "Turns", 3)];

/// What is under way.
#[derive(Clone, Copy, Debug)]
struct Run {
    app: App,
    /// Prompt tokens, new tokens, turns.
    sizes: RwSignal<[usize; 3]>,
    /// Turns that are still to come; none while nothing runs.
    left: RwSignal<Option<usize>>,
    turns: RwSignal<Vec<Measurement>>,
    error: RwSignal<Option<String>>,
}

/// The view.
#[component]
pub fn Bench() -> impl IntoView {
    let app = expect_context::<App>();
    let run = Run {
        app,
        sizes: RwSignal::new(FIELDS.map(|(_, _, value)| value)),
        left: RwSignal::new(None),
        turns: RwSignal::new(Vec::new()),
        error: RwSignal::new(None),
    };
    // What an earlier visit measured is not of this run.
    app.tab.measured.set(None);
    Effect::new(move |_| {
        if let Some(result) = app.tab.measured.get() {
            run.measured(result);
        }
    });
    let subject = move || match app.place.get() {
        Place::Server => app.server.model.get().map(|model| format!("{model} on the server")),
        Place::Tab => app.tab.loaded.get().map(|model| format!("{} in this browser", model.name)),
    };
    let lead = move || match subject() {
        Some(subject) => format!("Measures {subject}."),
        None => "There is no model to measure.".to_owned(),
    };
    let idle = move || run.left.get().is_none();
    let choose = move || subject().is_none().then(|| view! { " " <a href="#/models">"Choose one"</a> });
    view! {
        <div class="view bench">
            <header class="view-head">
                <div>
                    <h1>"Bench"</h1>
                    <p class="lead">{lead}{choose}</p>
                </div>
            </header>
            <section class="card">
                <form class="row fields" on:submit=move |event| { event.prevent_default(); run.start(); }>
                    {FIELDS.into_iter().enumerate().map(|(at, (id, label, value))| view! {
                        <label for=id>{label}
                            <input id=id type="number" min="1" max="100000" value=value data-testid=id
                                on:input=move |event| {
                                    if let Ok(value) = event_target_value(&event).parse() {
                                        run.sizes.update(|sizes| sizes[at] = value);
                                    }
                                }/>
                        </label>
                    }).collect_view()}
                    <button type="submit" class="primary" data-testid="bench-run"
                        disabled=move || !idle() || subject().is_none()>"Measure"</button>
                </form>
                <p class="note" role="status">{move || run.left.get().map(|left| format!("Measuring; {left} turns to go"))}</p>
                {move || run.error.get().map(|error| view! { <p class="trouble" role="alert">{error}</p> })}
            </section>
            {move || (idle() && !run.turns.with(Vec::is_empty)).then(|| view! { <Results turns=run.turns.get()/> })}
        </div>
    }
}

impl Run {
    fn start(self) {
        let [_, _, turns] = self.sizes.get_untracked();
        self.turns.set(Vec::new());
        self.error.set(None);
        self.left.set(Some(turns.max(1)));
        self.next();
    }

    /// Asks for one turn.
    fn next(self) {
        let [prompt_tokens, new_tokens, _] = self.sizes.get_untracked();
        match self.app.place.get_untracked() {
            Place::Tab => self.app.tab.send(&ToEngine::Bench { prompt_tokens, new_tokens }),
            Place::Server => {
                let server = self.app.server;
                spawn_local(async move {
                    let result = server::measure(server, prompt_tokens, new_tokens).await;
                    // The view may be gone.
                    if self.left.try_get_untracked().is_some() {
                        self.measured(result);
                    }
                });
            }
        }
    }

    fn measured(self, result: Result<Measurement, String>) {
        let Some(left) = self.left.get_untracked() else { return };
        match result {
            Ok(turn) => {
                self.turns.update(|turns| turns.push(turn));
                if left > 1 {
                    self.left.set(Some(left - 1));
                    return self.next();
                }
            }
            Err(error) => self.error.set(Some(error)),
        }
        self.left.set(None);
    }
}

/// Of each number the median of all turns; the rest is the same in each.
fn median(turns: &[Measurement]) -> Measurement {
    let of = |field: fn(&Measurement) -> f64| {
        let mut values: Vec<f64> = turns.iter().map(field).collect();
        quantile(&mut values, 0.5).unwrap_or_default()
    };
    Measurement {
        time_to_first_token_s: of(|turn| turn.time_to_first_token_s),
        prefill_tokens_per_s: of(|turn| turn.prefill_tokens_per_s),
        decode_tokens_per_s: of(|turn| turn.decode_tokens_per_s),
        ..turns.first().cloned().unwrap_or_default()
    }
}

#[component]
fn Results(turns: Vec<Measurement>) -> impl IntoView {
    let median = median(&turns);
    let json = serde_json::to_string_pretty(&serde_json::json!({ "median": median, "turns": turns }))
        .unwrap_or_default();
    let row = |name: String, turn: &Measurement| {
        view! {
            <tr>
                <th scope="row">{name}</th>
                <td>{format::seconds(turn.time_to_first_token_s)}</td>
                <td>{format::number(turn.prefill_tokens_per_s)}</td>
                <td>{format::number(turn.decode_tokens_per_s)}</td>
            </tr>
        }
    };
    let rows = turns.iter().enumerate().map(|(at, turn)| row(format!("Turn {}", at + 1), turn));
    let about = format!(
        "{} on {}: {} prompt tokens, {} new ones",
        median.model,
        median.device,
        format::count(median.prompt_tokens as u64),
        format::count(median.new_tokens as u64)
    );
    view! {
        <section class="card">
            <h2>"Results"</h2>
            <p class="note">{about}</p>
            <div class="scroll" tabindex="0" role="region" aria-label="Results">
                <table class="figures">
                    <thead><tr>
                        <th scope="col">""</th><th scope="col">"First token"</th>
                        <th scope="col">"Prefill tokens/s"</th><th scope="col">"Decode tokens/s"</th>
                    </tr></thead>
                    <tbody>{rows.collect_view()}</tbody>
                    <tfoot>{row("Median".to_owned(), &median)}</tfoot>
                </table>
            </div>
            <div class="row"><CopyButton label="Copy the JSON" text=json.clone() testid="bench-copy"/></div>
            <pre tabindex="0" data-testid="bench-result">{json}</pre>
        </section>
    }
}

#[cfg(test)]
mod tests {
    use super::{Measurement, median};

    #[test]
    fn each_number_has_its_own_median() {
        let turn = |first, decode| Measurement {
            model: "m".into(),
            time_to_first_token_s: first,
            decode_tokens_per_s: decode,
            ..Measurement::default()
        };
        let median = median(&[turn(3.0, 10.0), turn(1.0, 30.0), turn(2.0, 20.0)]);
        assert_eq!(
            (median.model.as_str(), median.time_to_first_token_s, median.decode_tokens_per_s),
            ("m", 2.0, 20.0)
        );
    }
}
