//! What a monitor tells of an engine adds up.

use super::fake::ROOMY;
use super::*;
use crate::monitor::{Monitor, StepEvent, TokenTime};

/// Steps until nothing is left, each checked against the events it was told of.
fn watch(
    engine: &mut Engine,
    monitor: &mut Monitor,
    mut after: impl FnMut(&mut Engine, &mut Monitor),
) -> Vec<StepEvent> {
    let mut steps = vec![];
    while engine.has_work() {
        let events = pollster::block_on(engine.step()).unwrap();
        let times: Vec<_> = events.iter().filter_map(|(id, event)| monitor.observe(*id, event)).collect();
        let step = monitor.step(engine);
        let firsts = times.iter().filter(|t| matches!(t, TokenTime::First(_))).count();
        assert_eq!((step.first_tokens_s.len(), step.token_gaps_s.len()), (firsts, times.len() - firsts));
        let decoded: usize = step.rows.iter().filter(|r| r.decodes).map(|r| r.rows).sum();
        let all: usize = step.rows.iter().map(|r| r.rows).sum();
        assert_eq!(
            (all - decoded, decoded),
            (engine.last_step().prefill_rows, engine.last_step().decode_rows)
        );
        steps.push(step);
        after(engine, monitor);
    }
    steps
}

fn submit(engine: &mut Engine, monitor: &mut Monitor, id: u64, request: Request) {
    monitor.arrived(RequestId(id));
    engine.submit(RequestId(id), request).unwrap();
}

#[test]
fn every_row_and_token_is_told_once() {
    let (mut engine, mut monitor) = (ROOMY.engine(&Rc::default()), Monitor::default());
    // A prompt of two chunks, one with three continuations, and one that is only embedded.
    submit(&mut engine, &mut monitor, 0, request(prompt(1, 100), greedy(5)));
    submit(&mut engine, &mut monitor, 1, request(prompt(2, 10), Generate { n: 3, ..greedy(4) }));
    submit(&mut engine, &mut monitor, 2, Request { prompt: prompt(3, 7), task: Task::Embed });
    let steps = watch(&mut engine, &mut monitor, |_, _| {});
    assert!(steps.iter().map(|s| s.step).eq(1..=steps.len() as u64));
    assert!(steps.is_sorted_by_key(|s| s.at_ms) && steps[0].at_ms > 0);
    let rows = |id: u64, decodes: bool| -> usize {
        let rows = steps.iter().flat_map(|s| &s.rows).filter(|r| r.request == id && r.decodes == decodes);
        rows.map(|r| r.rows).sum()
    };
    // The last token of a continuation is never computed, nor, of the prompt's tokens, anything twice.
    assert_eq!((rows(0, false), rows(0, true)), (100, 4));
    assert_eq!((rows(1, false), rows(1, true)), (10, 9));
    assert_eq!((rows(2, false), rows(2, true)), (7, 0));
    let standing = monitor.standing(&engine);
    assert_eq!((standing.prompt_tokens, standing.generation_tokens), (117, 5 + 3 * 4));
    assert_eq!((standing.running, standing.waiting, standing.blocks_used), (0, 0, 0));
    assert_eq!(standing.blocks, ROOMY.blocks);
    assert_eq!((standing.prefix_queries, standing.prefix_hits), (117, 0));
    let count = |times: fn(&StepEvent) -> &Vec<f64>| steps.iter().map(|s| times(s).len()).sum::<usize>();
    assert_eq!(count(|s| &s.first_tokens_s), 2, "one a request, not one a continuation");
    assert_eq!(count(|s| &s.token_gaps_s), 4 + 3 * 3);
    assert!(steps.iter().all(|s| s.ops.is_empty()), "this device has no clock");
}

#[test]
fn whoever_is_given_up_is_forgotten() {
    let (mut engine, mut monitor) = (ROOMY.engine(&Rc::default()), Monitor::default());
    submit(&mut engine, &mut monitor, 7, request(prompt(1, 10), greedy(50)));
    let steps = watch(&mut engine, &mut monitor, |engine, monitor| {
        engine.abort(RequestId(7));
        monitor.forget(RequestId(7));
    });
    assert_eq!(steps.len(), 1);
    // The same name again is another request.
    submit(&mut engine, &mut monitor, 7, request(prompt(1, 10), greedy(2)));
    let steps = watch(&mut engine, &mut monitor, |_, _| {});
    assert_eq!(steps[0].step, 2);
    assert_eq!(steps[0].first_tokens_s.len(), 1);
    assert_eq!(monitor.standing(&engine).generation_tokens, 3);
}
