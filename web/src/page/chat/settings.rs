//! How a conversation is answered.

use leptos::prelude::*;

use super::state::Chats;
use crate::chat::Sampling;
use crate::chat::settings::{PRESETS, Settings, number};

/// The settings of the shown conversation. They count from the next answer on.
#[component]
pub(super) fn SettingsForm(
    /// All conversations.
    chats: Chats,
) -> impl IntoView {
    let settings = Memo::new(move |_| chats.current.get().with(|talk| talk.settings.clone()));
    let system = move || settings.with(|settings| settings.system.clone());
    let reset = move |_| chats.change_settings(|settings| *settings = Settings::default());
    view! {
        <form class="settings" on:submit=|event| event.prevent_default()>
            <label>
                <span>"System prompt"</span>
                <textarea rows="3" dir="auto" data-testid="system" prop:value=system
                    on:input=move |event| chats.change_settings(|s| s.system = event_target_value(&event))></textarea>
                <small>"What the model is told before all else: who it is, how it answers."</small>
            </label>
            <Presets chats settings/>
            <div class="numbers">{FIELDS.iter().map(|field| view! { <Number chats settings field/> }).collect::<Vec<_>>()}</div>
            <Lists chats settings/>
            <button type="button" data-testid="reset" on:click=reset>"Reset all"</button>
        </form>
    }
}

#[component]
fn Presets(chats: Chats, settings: Memo<Settings>) -> impl IntoView {
    let preset = |index: usize| {
        let preset = &PRESETS[index];
        let on = move || settings.with(|settings| preset.is(&settings.sampling));
        let choose = move |_| chats.change_settings(|s| s.sampling = preset.apply(&s.sampling));
        view! {
            <label class="preset">
                <input type="radio" name="preset" prop:checked=on on:change=choose/>
                <span><strong>{preset.name}</strong><small>{preset.about}</small></span>
            </label>
        }
    };
    view! {
        <fieldset class="presets" data-testid="presets">
            <legend>"Style"</legend>{(0..PRESETS.len()).map(preset).collect::<Vec<_>>()}
        </fieldset>
    }
}

/// A setting that is a number.
struct Field {
    label: &'static str,
    help: &'static str,
    read: fn(&Sampling) -> Option<String>,
    write: fn(&mut Sampling, &str) -> Result<(), String>,
}

const FIELDS: [Field; 7] = [
    Field {
        label: "Temperature",
        help: "0 always takes the likeliest word; above 1 surprises.",
        read: |s| s.temperature.map(|value| value.to_string()),
        write: |s, text| number(text, 0.0, 2.0).map(|value| s.temperature = value),
    },
    Field {
        label: "Top P",
        help: "Only the likeliest words that together have this probability.",
        read: |s| s.top_p.map(|value| value.to_string()),
        write: |s, text| number(text, 0.01, 1.0).map(|value| s.top_p = value),
    },
    Field {
        label: "Top K",
        help: "Only this many of the likeliest; 0: all.",
        read: |s| s.top_k.map(|value| value.to_string()),
        write: |s, text| number(text, 0, 100_000).map(|value| s.top_k = value),
    },
    Field {
        label: "Min P",
        help: "Only words at least this likely beside the likeliest.",
        read: |s| s.min_p.map(|value| value.to_string()),
        write: |s, text| number(text, 0.0, 1.0).map(|value| s.min_p = value),
    },
    Field {
        label: "Repetition penalty",
        help: "Above 1 makes the model repeat itself less.",
        read: |s| s.repetition_penalty.map(|value| value.to_string()),
        write: |s, text| number(text, 0.5, 2.0).map(|value| s.repetition_penalty = value),
    },
    Field {
        label: "Most tokens",
        help: "Longer answers are cut; they can be continued.",
        read: |s| s.max_tokens.map(|value| value.to_string()),
        write: |s, text| number(text, 1, 1_000_000).map(|value| s.max_tokens = value),
    },
    Field {
        label: "Seed",
        help: "The same seed gives the same answer.",
        read: |s| s.seed.map(|value| value.to_string()),
        // As far as JavaScript and JSON carry whole numbers.
        write: |s, text| number(text, 0, (1 << 53) - 1).map(|value| s.seed = value),
    },
];

#[component]
fn Number(chats: Chats, settings: Memo<Settings>, field: &'static Field) -> impl IntoView {
    let wrong = RwSignal::new(None);
    let value = move || settings.with(|settings| (field.read)(&settings.sampling)).unwrap_or_default();
    let change = move |event| {
        let text = event_target_value(&event);
        let mut sampling = settings.with_untracked(|settings| settings.sampling.clone());
        match (field.write)(&mut sampling, &text) {
            Ok(()) => {
                wrong.set(None);
                chats.change_settings(|settings| settings.sampling = sampling);
            }
            Err(why) => wrong.set(Some(why)),
        }
    };
    view! {
        <label>
            <span>{field.label}</span>
            <input type="text" inputmode="decimal" placeholder="model\u{2019}s own" prop:value=value
                aria-invalid=move || wrong.with(Option::is_some).then_some("true") on:change=change/>
            <small class:wrong=move || wrong.with(Option::is_some)>
                {move || wrong.get().map_or_else(|| field.help.to_owned(), |why| format!("Must be {why}."))}
            </small>
        </label>
    }
}

#[component]
fn Lists(chats: Chats, settings: Memo<Settings>) -> impl IntoView {
    let stop = move || settings.with(|settings| settings.sampling.stop.join("\n"));
    let set_stop = move |event| {
        let lines: String = event_target_value(&event);
        let lines = lines.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
        chats.change_settings(|settings| settings.sampling.stop = lines);
    };
    let tools = move || settings.with(|settings| settings.tools.clone());
    let wrong = move || settings.with(|settings| settings.tools().err());
    view! {
        <label>
            <span>"Stop strings"</span>
            <textarea rows="2" dir="auto" prop:value=stop on:change=set_stop></textarea>
            <small>"One a line. The answer ends before the first of them."</small>
        </label>
        <label>
            <span>"Tools"</span>
            <textarea rows="4" dir="ltr" class="mono" spellcheck="false" data-testid="tools" prop:value=tools
                on:change=move |event| chats.change_settings(|s| s.tools = event_target_value(&event))></textarea>
            <small class:wrong=move || wrong().is_some()>
                {move || wrong().unwrap_or_else(|| "Functions the model may call: a JSON list in OpenAI\u{2019}s form. You give their results.".to_owned())}
            </small>
        </label>
    }
}
