//! The engine against a model that remembers its tokens only through block tables: whatever is wrong with the books of
//! the cache, with the batch or with the order of things changes what it says.

mod fake;
mod monitor;

use std::collections::HashMap;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::sampling::SamplingParams;
use fake::{Control, Heard, ROOMY, Room, logits, run, step};

fn alone(request: &Request) -> Heard {
    run(&mut ROOMY.engine(&Rc::default()), [request.clone()]).remove(0)
}

fn prompt(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (i * i + 7 * i / 3 + seed) % 200 + 20).collect()
}

fn greedy(max_tokens: usize) -> Generate {
    Generate { sampling: SamplingParams::greedy(), max_tokens, ignore_eos: true, ..Generate::default() }
}

fn seeded(seed: u64, n: usize, max_tokens: usize) -> Generate {
    let sampling = SamplingParams {
        temperature: 1.5,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: Some(seed),
        ..Default::default()
    };
    Generate { sampling, n, max_tokens, ..Generate::default() }
}

fn request(prompt: Vec<u32>, generate: Generate) -> Request {
    Request { prompt, task: Task::Generate(Box::new(generate)) }
}

/// The greedy continuation, by the model's own definition.
fn expected(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let logits = logits(&tokens);
        tokens.push(logits.iter().position(|&l| l == 9.0).unwrap() as u32);
    }
    tokens.split_off(prompt.len())
}

#[test]
fn many_at_once_each_get_their_own() {
    for room in [ROOMY, Room { blocks: 14, ..ROOMY }, Room { rows: 3, outputs: 2, sequences: 2, ..ROOMY }] {
        let control = Rc::default();
        let mut engine = room.engine(&control);
        let prompts: Vec<_> = (0..9).map(|i| prompt(i, 1 + 17 * i as usize)).collect();
        let heard = run(&mut engine, prompts.iter().map(|p| request(p.clone(), greedy(30))));
        for (heard, prompt) in heard.iter().zip(&prompts) {
            assert_eq!(heard.tokens[&0], expected(prompt, 30));
            assert_eq!((heard.done, &heard.finish[&0]), (true, &Finish::Length));
        }
        assert_eq!(engine.stats().preemptions > 0, room.blocks == 14, "only a small cache runs out");
    }
}

#[test]
fn choices_are_requests_with_the_next_seeds() {
    for length in [1, 15, 16, 33] {
        let four = alone(&request(prompt(3, length), seeded(7, 4, 20)));
        for choice in 0..4 {
            let one = alone(&request(prompt(3, length), seeded(7 + choice as u64, 1, 20)));
            assert_eq!((&four.tokens[&choice], &four.texts[&choice]), (&one.tokens[&0], &one.texts[&0]));
        }
    }
    // They share the prompt's blocks: three forks copy one block each and none is computed again.
    let control = Rc::<Control>::default();
    run(
        &mut ROOMY.engine(&control),
        [request(prompt(3, 33), Generate { ignore_eos: true, ..seeded(7, 4, 20) })],
    );
    assert_eq!(control.rows.get(), 33 + 4 * 19);
}

/// However far its choices came on an engine that is gone, another one goes on as if nothing had happened.
#[test]
fn what_was_begun_elsewhere_goes_on_the_same() {
    let generate = Generate {
        ignore_eos: true,
        stop: vec!["zz".into()],
        sampling: SamplingParams {
            repetition_penalty: 1.2,
            frequency_penalty: 0.3,
            ..seeded(7, 3, 9).sampling
        },
        ..seeded(7, 3, 9)
    };
    let whole = alone(&request(prompt(3, 20), generate.clone())).said();
    for steps in 1..10 {
        let mut engine = ROOMY.engine(&Rc::default());
        let mut heard = HashMap::new();
        engine.submit(RequestId(0), request(prompt(3, 20), generate.clone())).unwrap();
        (0..steps).for_each(|_| step(&mut engine, &mut heard).unwrap());
        let mut told = heard.remove(&RequestId(0)).unwrap();
        if told.done {
            break;
        }
        let left = told.tokens.iter().filter(|(choice, _)| !told.finish.contains_key(choice));
        let begun: Vec<_> = left.map(|(&choice, t)| Begun { choice, tokens: t.clone() }).collect();
        assert!(!begun.is_empty());
        let resume = Generate { resume: Some(begun), ..generate.clone() };
        let mut other = ROOMY.engine(&Rc::default());
        other.submit(RequestId(5), request(prompt(3, 20), resume)).unwrap();
        while other.has_work() {
            for (_, event) in pollster::block_on(other.step()).unwrap() {
                told.hear(event);
            }
        }
        assert_eq!(told.said(), whole, "after {steps} steps");
    }
    let mut engine = ROOMY.engine(&Rc::default());
    for begun in
        [vec![], vec![Begun { choice: 3, tokens: vec![] }], vec![Begun { choice: 0, tokens: vec![1; 190] }]]
    {
        let resume = Generate { resume: Some(begun), ..generate.clone() };
        assert!(matches!(engine.submit(RequestId(9), request(prompt(3, 20), resume)), Err(Error::Config(_))));
    }
}

#[test]
fn a_common_beginning_is_computed_once() {
    let control = Rc::<Control>::default();
    let mut engine = ROOMY.engine(&control);
    let first = prompt(1, 50);
    run(&mut engine, [request(first.clone(), greedy(20))]);
    control.rows.set(0);
    // The next turn of a chat: prompt, answer and something new. 69 tokens were computed, four whole blocks.
    let mut next = first.clone();
    next.extend(expected(&first, 20));
    next.extend([5, 6, 7]);
    let heard = run(&mut engine, [request(next.clone(), greedy(1))]).remove(0);
    assert_eq!(heard.tokens[&0], expected(&next, 1));
    assert_eq!((heard.prompt, control.rows.get()), (Some((73, 64)), 73 - 64));
    assert_eq!((engine.stats().prefix_queries, engine.stats().prefix_hits), (123, 64));
    // The last token's logits are wanted, so its block is computed even where the cache has it.
    let heard = run(&mut engine, [request(first[..48].to_vec(), greedy(1))]).remove(0);
    assert_eq!(heard.prompt, Some((48, 32)));
}

#[test]
fn an_aborted_request_leaves_nothing_but_its_prefix() {
    let mut engine = ROOMY.engine(&Rc::default());
    let mut heard = HashMap::new();
    engine.submit(RequestId(1), request(prompt(1, 40), seeded(1, 3, 50))).unwrap();
    engine.submit(RequestId(2), request(prompt(2, 40), greedy(10))).unwrap();
    for _ in 0..4 {
        step(&mut engine, &mut heard).unwrap();
    }
    engine.abort(RequestId(1));
    heard.remove(&RequestId(1));
    while engine.has_work() {
        step(&mut engine, &mut heard).unwrap();
    }
    assert!(!heard.contains_key(&RequestId(1)));
    assert_eq!(heard[&RequestId(2)].tokens[&0], expected(&prompt(2, 40), 10));
    assert_eq!(engine.stats().blocks_used, 0);
    let again = run(&mut engine, [request(prompt(1, 40), greedy(1))]).remove(0);
    assert_eq!(again.prompt, Some((40, 32)));
}

#[test]
fn a_long_prompt_does_not_stop_those_who_decode() {
    let mut engine = Room { rows: 8, outputs: 8, sequences: 4, ..ROOMY }.engine(&Rc::default());
    let mut heard = HashMap::new();
    engine.submit(RequestId(0), request(prompt(0, 4), greedy(40))).unwrap();
    step(&mut engine, &mut heard).unwrap();
    engine.submit(RequestId(1), request(prompt(1, 150), greedy(2))).unwrap();
    for tokens in 2..=20 {
        step(&mut engine, &mut heard).unwrap();
        assert_eq!(heard[&RequestId(0)].tokens[&0].len(), tokens, "a token every step");
    }
    assert!(engine.last_step().prefill_rows == 7 && engine.last_step().decode_rows == 1);
}

#[test]
fn scores_are_those_of_the_model() {
    let text = prompt(4, 45);
    let score = |from, cached: &[Request]| {
        let mut engine = Room { outputs: 7, sequences: 4, ..ROOMY }.engine(&Rc::default());
        run(&mut engine, cached.iter().cloned());
        let generate = Generate { prompt_logprobs: Some(PromptLogprobs { from, top: 2 }), ..greedy(0) };
        run(&mut engine, [request(text.clone(), generate)]).remove(0)
    };
    let expected: Vec<_> =
        (1..45).map(|at| Some(crate::sampling::score(&logits(&text[..at]), text[at], 2))).collect();
    let all = score(0, &[]);
    assert_eq!((&all.scores[0], &all.scores[1..]), (&None, &expected[..]));
    assert_eq!((all.tokens[&0].len(), &all.finish[&0], all.done), (0, &Finish::Length, true));
    // A continuation after a context that is in the cache: the last token of the context predicts it.
    let warm = [request(text.clone(), greedy(1))];
    let tail = score(33, &warm);
    assert_eq!((tail.prompt, &tail.scores[..]), (Some((45, 32)), &expected[32..]));
    assert_eq!(score(32, &warm).prompt, Some((45, 16)));
    assert_eq!(score(45, &warm).scores, []);
}

#[test]
fn a_continuation_ends_as_it_was_told() {
    let start = prompt(6, 20);
    let tokens = expected(&start, 30);
    let told = |generate| {
        let heard = alone(&request(start.clone(), generate));
        (heard.tokens[&0].len(), heard.finish[&0].clone(), heard.texts[&0].clone())
    };
    let stop = tokens[9];
    let at = tokens.iter().position(|&t| t == stop).unwrap() + 1;
    let (count, finish, _) = told(Generate { stop_ids: vec![stop], ..greedy(30) });
    assert_eq!((count, finish), (at, Finish::StopToken(stop)));
    let (count, finish, _) = told(Generate { stop_ids: vec![stop], min_tokens: 30, ..greedy(30) });
    assert_eq!((count, finish), (30, Finish::Length), "it was not even chosen");

    let (_, _, text) = told(greedy(30));
    let cut: Vec<char> = text.chars().collect();
    let stop: String = cut[cut.len() / 2..cut.len() / 2 + 5].iter().collect();
    let (before, _) = text.split_once(&stop).unwrap();
    let generate = Generate { stop: vec![stop.clone()], ..greedy(30) };
    let (count, finish, found) = told(generate.clone());
    assert_eq!((finish, found.as_str()), (Finish::StopString(stop.clone()), before));
    assert!(count < 30);
    let (_, _, found) = told(Generate { include_stop: true, ..generate });
    assert_eq!(found, format!("{before}{stop}"));

    let (count, finish, _) = told(greedy(usize::MAX));
    assert_eq!((count, finish), (180, Finish::ContextFull));
}

#[test]
fn an_embedding_is_the_last_tokens() {
    let tokens = prompt(8, 70);
    let (last, sum) = (tokens.last().copied(), tokens.iter().sum::<u32>() as f32);
    let control = Rc::<Control>::default();
    let mut engine = ROOMY.engine(&control);
    let embed = Request { prompt: tokens, task: Task::Embed };
    let heard = run(&mut engine, [request(prompt(1, 9), greedy(5)), embed.clone(), embed.clone()]);
    for heard in &heard[1..] {
        assert_eq!((&heard.features, heard.done), (&vec![70.0, sum], true));
    }
    control.nan_after.set(last);
    assert!(run(&mut engine, [embed]).remove(0).failed.is_some());
}

#[test]
fn unusable_logits_fail_one_request_and_are_not_kept() {
    let control = Rc::<Control>::default();
    let mut engine = ROOMY.engine(&control);
    let good = request(prompt(1, 40), greedy(8));
    let mut bad = prompt(1, 40);
    bad.extend([3000; 20]);
    control.nan_after.set(Some(3000));
    let heard = run(&mut engine, [good.clone(), request(bad.clone(), seeded(1, 3, 5)), good.clone()]);
    assert!(heard[1].failed.as_ref().unwrap().contains("NaN"));
    assert_eq!((&heard[0].tokens, &heard[2].tokens), (&alone(&good).tokens, &alone(&good).tokens));
    control.nan_after.set(None);
    let heard = run(&mut engine, [request(bad, greedy(1))]).remove(0);
    assert_eq!(heard.prompt, Some((60, 32)), "only what others computed, too");
}

#[test]
fn nothing_more_comes_when_a_choice_has_failed() {
    let both = request(prompt(2, 20), Generate { ignore_eos: true, ..seeded(5, 2, 6) });
    let tokens = alone(&both).tokens;
    assert_ne!(tokens[&0][0], tokens[&1][0]);
    let control = Rc::<Control>::default();
    control.nan_after.set(Some(tokens[&0][0]));
    let heard = run(&mut ROOMY.engine(&control), [both]).remove(0);
    assert!(heard.failed.is_some());
    assert_eq!(heard.tokens[&1], tokens[&1][..1], "not even what the other has in the same step");
}

#[test]
fn a_prompt_that_is_computed_again_is_not_scored_again() {
    let room = Room { outputs: 2, sequences: 2, ..ROOMY };
    let control = Rc::default();
    let mut engine = room.engine(&control);
    let mut heard: HashMap<_, Heard> = HashMap::new();
    let scored = Generate { prompt_logprobs: Some(PromptLogprobs::default()), ..greedy(5) };
    engine.submit(RequestId(0), request(prompt(4, 45), scored)).unwrap();
    while !heard.contains_key(&RequestId(0)) {
        step(&mut engine, &mut heard).unwrap();
    }
    assert_eq!((heard[&RequestId(0)].scores.len(), heard[&RequestId(0)].tokens[&0].len()), (45, 1));
    engine.recover(room.executable(&control));
    // With its scores, two rows a step would be all that could be computed.
    step(&mut engine, &mut heard).unwrap();
    assert_eq!(heard[&RequestId(0)].tokens[&0], expected(&prompt(4, 45), 2));
}

#[test]
fn what_can_never_run_is_refused() {
    let mut engine = ROOMY.engine(&Rc::default());
    let refused =
        |engine: &mut Engine, request| engine.submit(RequestId(0), request).unwrap_err().to_string();
    for (bad, says) in [
        (request(vec![], greedy(1)), "no tokens"),
        (request(vec![1_000_000], greedy(1)), "outside the vocabulary"),
        (request(prompt(0, 200), greedy(1)), "200 tokens, but the context holds 200 with the answer"),
        (request(prompt(0, 201), greedy(0)), "201 tokens, but the context holds 200"),
        (request(prompt(0, 5), Generate { n: 0, ..greedy(1) }), "n is 0"),
        (request(prompt(0, 5), Generate { n: 17, ..greedy(1) }), "from 1 to 16"),
        (request(prompt(0, 5), Generate { stop: vec![String::new()], ..greedy(1) }), "stop string is empty"),
        (
            request(
                prompt(0, 5),
                Generate { sampling: SamplingParams { top_p: 2.0, ..Default::default() }, ..greedy(1) },
            ),
            "top_p",
        ),
    ] {
        let error = refused(&mut engine, bad);
        assert!(error.contains(says), "{error}");
    }
    assert!(!engine.has_work());
    let heard = run(&mut engine, [request(prompt(0, 200), greedy(0))]);
    assert!(heard[0].done);
}

/// A request with when it comes, and perhaps when its client leaves.
#[derive(Clone, Debug)]
struct Visit {
    arrives: usize,
    leaves: Option<usize>,
    request: Request,
}

fn visit() -> impl Strategy<Value = Visit> {
    let task = prop_oneof![
        3 => (1..40usize).prop_map(greedy),
        3 => (any::<u64>(), 1..4usize, 1..30usize).prop_map(|(seed, n, max)| seeded(seed, n, max)),
        1 => (0..60usize).prop_map(|from| Generate {
            prompt_logprobs: Some(PromptLogprobs { from, top: 1 }),
            logprobs: Some(2),
            ..greedy(3)
        }),
    ];
    let request =
        (0..3u32, 1..90usize, task).prop_map(|(seed, length, task)| request(prompt(seed, length), task));
    (0..40usize, prop::option::weighted(0.2, 1..20usize), request)
        .prop_map(|(arrives, stays, request)| Visit { arrives, leaves: stays.map(|s| arrives + s), request })
}

fn room() -> impl Strategy<Value = Room> {
    // 13 blocks hold one whole context.
    (13..40usize, 4..40usize, 4..9usize, 3..6usize, any::<bool>()).prop_map(
        |(blocks, rows, outputs, sequences, prefix_cache)| Room {
            blocks,
            rows,
            outputs,
            sequences,
            prefix_cache,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever the cache holds, whoever comes and goes, even when the device is lost in between: everybody hears what
    /// they would hear alone, and every block comes back.
    #[test]
    fn whatever_happens_everybody_hears_what_they_would_alone(
        visits in prop::collection::vec(visit(), 1..9),
        room in room(),
        lost in prop::option::weighted(0.5, 0..30usize),
    ) {
        let control = Rc::<Control>::default();
        control.fail_in.set(lost);
        let mut engine = room.engine(&control);
        let mut heard = HashMap::new();
        for now in 0.. {
            for (id, visit) in (0..).map(RequestId).zip(&visits) {
                if visit.arrives == now {
                    engine.submit(id, visit.request.clone()).unwrap();
                }
                if visit.leaves == Some(now) {
                    engine.abort(id);
                    heard.remove(&id);
                }
            }
            if step(&mut engine, &mut heard).is_err() {
                engine.recover(room.executable(&control));
            }
            if now > 60 && !engine.has_work() {
                break;
            }
            prop_assert!(now < 5000, "it never ends");
        }
        let stats = engine.stats();
        prop_assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
        for (id, visit) in (0..).map(RequestId).zip(&visits) {
            if visit.leaves.is_none() {
                let heard = heard.remove(&id).unwrap_or_default();
                prop_assert_eq!(heard.said(), alone(&visit.request).said());
            }
        }
    }
}
