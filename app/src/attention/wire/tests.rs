use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use tread_core::Error;
use tread_core::engine::{Begun, Delta, Event, Finish, Generate, PromptLogprobs};
use tread_core::grammar::{GrammarCompiler, GrammarSpec};
use tread_core::graph::Side;
use tread_core::monitor::{OpTime, SequenceRows, Standing, StepEvent, TokenTime};
use tread_core::sampling::{Dry, SamplingParams, TokenLogprob};

use super::*;

/// Every bit pattern: also infinities, both zeros and all that is not a number.
fn float() -> impl Strategy<Value = f32> {
    prop_oneof![any::<u32>().prop_map(f32::from_bits), Just(f32::NEG_INFINITY), Just(f32::NAN)]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![".{0,8}", Just("\u{0}\n\u{10FFFF}".to_owned())]
}

prop_compose! {
    fn logprob()(token: u32, logprob in float(), rank: usize, top in prop::collection::vec((any::<u32>(), float()), 0..4)) -> TokenLogprob {
        TokenLogprob { token, logprob, rank, top }
    }
}

prop_compose! {
    fn sampling()(
        floats in prop::collection::vec(float(), 9),
        sizes: [usize; 4],
        logit_bias in prop::collection::vec((any::<u32>(), float()), 0..4),
        breakers: Vec<u32>,
        seed: Option<u64>,
    ) -> SamplingParams {
        SamplingParams {
            temperature: floats[0],
            top_k: sizes[0],
            typical_p: floats[1],
            top_p: floats[2],
            min_p: floats[3],
            repetition_penalty: floats[4],
            repetition_window: sizes[1],
            frequency_penalty: floats[5],
            presence_penalty: floats[6],
            logit_bias,
            dry: Dry { multiplier: floats[7], base: floats[8], allowed_length: sizes[2], window: sizes[3], breakers },
            seed,
        }
    }
}

prop_compose! {
    fn generate()(
        sampling in sampling(),
        (n, max_tokens, min_tokens) in any::<(usize, usize, usize)>(),
        (ignore_eos, include_stop, skip_special) in any::<(bool, bool, bool)>(),
        stop_ids: Vec<u32>,
        stop in prop::collection::vec(text(), 0..3),
        logprobs: Option<usize>,
        scored: Option<(usize, usize)>,
        begun in prop::option::of(prop::collection::vec((any::<usize>(), any::<Vec<u32>>()), 0..3)),
    ) -> Generate {
        Generate {
            sampling,
            n,
            max_tokens,
            min_tokens,
            ignore_eos,
            stop_ids,
            stop,
            include_stop,
            skip_special,
            logprobs,
            prompt_logprobs: scored.map(|(from, top)| PromptLogprobs { from, top }),
            grammar: None,
            resume: begun.map(|all| all.into_iter().map(|(choice, tokens)| Begun { choice, tokens }).collect()),
        }
    }
}

fn error() -> impl Strategy<Value = Error> {
    (0..9, text(), text()).prop_map(|(kind, a, b)| match kind {
        0 => Error::io(a, std::io::Error::other(b)),
        1 => Error::format(a, b),
        2 => Error::tensor(a, b),
        3 => Error::Config(a),
        4 => Error::Unsupported(a),
        5 => Error::Capacity(a),
        6 => Error::Device(a),
        7 => Error::Unavailable(a),
        _ => Error::Text(a),
    })
}

fn finish() -> impl Strategy<Value = Finish> {
    prop_oneof![
        any::<u32>().prop_map(Finish::StopToken),
        text().prop_map(Finish::StopString),
        Just(Finish::GrammarEnd),
        Just(Finish::Length),
        Just(Finish::ContextFull),
    ]
}

prop_compose! {
    fn delta()(choice: usize, token: Option<u32>, logprob in prop::option::of(logprob()), text in text(), finish in prop::option::of(finish())) -> Delta {
        Delta { choice, token, logprob, text, finish }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let scores = prop::collection::vec(prop::option::of(logprob()), 0..4);
    prop_oneof![
        (any::<usize>(), any::<usize>(), any::<Duration>(), scores).prop_map(
            |(tokens, cached, waited, logprobs)| Event::Prompt { tokens, cached, waited, logprobs }
        ),
        prop::collection::vec(float(), 0..9).prop_map(Event::Features),
        delta().prop_map(Event::Delta),
        Just(()).prop_map(|()| Event::Done),
        error().prop_map(Event::Failed),
    ]
}

prop_compose! {
    fn step()(
        (step, at_ms, schedule_us) in any::<(u64, u64, u64)>(),
        rows in prop::collection::vec((any::<u64>(), any::<usize>(), any::<bool>()), 0..3),
        first_tokens_s in prop::collection::vec(-1e9..1e9f64, 0..3),
        ops in prop::collection::vec((text(), any::<Option<usize>>(), any::<bool>(), 0.0..1e9f64), 0..3),
    ) -> StepEvent {
        StepEvent {
            step,
            at_ms,
            schedule_us,
            rows: rows.into_iter().map(|(request, rows, decodes)| SequenceRows { request, rows, decodes }).collect(),
            first_tokens_s,
            ops: ops
                .into_iter()
                .map(|(name, layer, ffn, us)| OpTime {
                    name,
                    layer,
                    side: if ffn { Side::Ffn } else { Side::Attention },
                    micro_batch: 1,
                    start_us: us / 3.0,
                    us,
                })
                .collect(),
            ..StepEvent::default()
        }
    }
}

/// What is not to be compared (errors, floats that are not numbers) is compared by its text.
fn same(a: &impl std::fmt::Debug, b: &impl std::fmt::Debug) -> Result<(), TestCaseError> {
    prop_assert_eq!(format!("{a:?}"), format!("{b:?}"));
    Ok(())
}

proptest! {
    #[test]
    fn requests_arrive_as_they_were(id: u64, prompt: Vec<u32>, generate in prop::option::of(generate())) {
        let task = generate.map_or(Task::Embed, |generate| Task::Generate(Box::new(generate)));
        let request = Request { prompt, task };
        let data = order(Order::Submit(RequestId(id), Box::new(request.clone()))).unwrap();
        let Sent::Submit { id: found, request: read, grammar: None } = read_order(&data).unwrap() else {
            panic!("another order");
        };
        prop_assert_eq!(found, RequestId(id));
        same(&read, &request)?;
    }

    #[test]
    fn events_arrive_as_they_were(id: u64, event in event(), time: Option<(bool, Duration)>) {
        let time = time.map(|(first, time)| if first { TokenTime::First(time) } else { TokenTime::Next(time) });
        let sent = Report::Event { id: RequestId(id), event, time };
        let read = read_report(&report(&sent)).unwrap();
        same(&read, &sent)?;
        // Texts do not tell one thing that is not a number from another.
        if let (Report::Event { event: Event::Features(a), .. }, Report::Event { event: Event::Features(b), .. }) = (&sent, &read) {
            prop_assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    #[test]
    fn steps_arrive_as_they_were(step in step(), running: usize, tokens: u64) {
        let standing = Standing { running, generation_tokens: tokens, ..Standing::default() };
        let sent = Report::Step(step, standing);
        same(&read_report(&report(&sent)).unwrap(), &sent)?;
    }

    #[test]
    fn nonsense_is_refused_or_read_but_never_a_panic(data: Vec<u8>) {
        let _ = (read_order(&data), read_report(&data));
    }
}

#[test]
fn grammars_are_sent_as_what_they_are_made_of() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano");
    let checkpoint = tread_core::checkpoint::Checkpoint::open(&folder).unwrap();
    let compiler = GrammarCompiler::new(&tread_core::model::Model::new("nano", checkpoint).unwrap()).unwrap();
    for spec in [
        GrammarSpec::JsonObject,
        GrammarSpec::JsonSchema(
            json!({"type": "object", "properties": {"z": {"maximum": 0.1}, "a": {"const": 1e300}}}),
        ),
        GrammarSpec::Regex("a+".into()),
        GrammarSpec::Choice(vec!["x".into(), "y".into()]),
        GrammarSpec::Lark("start: \"a\"".into()),
    ] {
        let grammar = compiler.compile(&spec).unwrap();
        for grammar in [grammar.clone(), grammar.after("</think>")] {
            let generate = Generate { grammar: Some(grammar.clone()), ..Generate::default() };
            let request = Request { prompt: vec![1], task: Task::Generate(Box::new(generate)) };
            let data = order(Order::Submit(RequestId(1), Box::new(request))).unwrap();
            let Ok(Sent::Submit { grammar: Some(source), .. }) = read_order(&data) else {
                panic!("no grammar")
            };
            assert_eq!(&source, grammar.source());
            let mut again = compiler.compile_source(&source).unwrap();
            assert_eq!(again.source(), grammar.source());
            let (mut grammar, size) = (grammar, 64);
            let (one, other) = (grammar.mask().unwrap(), again.mask().unwrap());
            assert!((0..size).all(|token| one.allows(token) == other.allows(token)));
        }
    }
}

#[test]
fn other_orders_and_statuses() {
    let read = |sent: Order| read_order(&order(sent).unwrap()).unwrap();
    assert!(matches!(read(Order::Abort(RequestId(7))), Sent::Abort(RequestId(7))));
    assert!(matches!(read(Order::Measure(true)), Sent::Measure(true)));
    assert!(order(Order::Stop).is_none());
    let running =
        super::super::Running { device: "cpu".into(), pools: vec![tread_core::monitor::Pool::whole("cpu")] };
    for status in [super::super::Status::Ready(running), super::super::Status::Failed("why".into())] {
        let Ok(Report::Status(read)) = read_report(&report(&Report::Status(status.clone()))) else {
            panic!("no status");
        };
        assert_eq!(read, status);
    }
}
