//! Every death at every moment, without a clock.

use proptest::prelude::*;
use tread_core::afd::frame::Kind;

use super::*;

const MS: Duration = Duration::from_millis(1);
const HOLD: Duration = Duration::from_secs(30);

fn pool(shards: usize) -> Recovery {
    Recovery::new(shards, Patience::holding(HOLD))
}

fn key(step: u64, layer: u32, micro_batch: u32) -> CallKey {
    CallKey { step, layer, micro_batch }
}

/// What a worker answers to an action.
fn reply(action: &Action) -> (LinkId, Header) {
    let Action::Send { link, slot, key, epoch, incarnation } = action else {
        panic!("{action:?} is no call")
    };
    let header = Header {
        epoch: *epoch,
        step: key.step,
        layer: key.layer,
        micro_batch: key.micro_batch,
        slot: *slot as u32,
        ..Header::bare(Kind::Answer, *incarnation)
    };
    (*link, header)
}

/// The one thing to do, which is a call to this worker.
#[track_caller]
fn asked(pool: &mut Recovery, link: u64) -> Action {
    let mut actions = pool.actions();
    assert!(
        matches!(actions[..], [Action::Send { link: LinkId(found), .. }] if found == link),
        "{actions:?}"
    );
    actions.remove(0)
}

#[track_caller]
fn answer(pool: &mut Recovery, now: Duration, action: &Action) -> Verdict {
    let (link, header) = reply(action);
    pool.answered(now, link, &header)
}

const LAST: Verdict = Verdict::Taken { shard: 0, last: true };

#[test]
fn a_call_is_answered_when_all_its_shards_have_answered() {
    let mut pool = pool(2);
    assert_eq!(pool.missing(), [0, 1]);
    pool.connected(MS, LinkId(1), 0, 10, 2);
    pool.connected(MS, LinkId(2), 1, 20, 2);
    assert_eq!(pool.missing(), [0; 0]);
    pool.post(MS, key(1, 0, 0), &[0, 1]);
    let actions = pool.actions();
    assert_eq!(actions.len(), 2);
    assert_eq!(answer(&mut pool, MS, &actions[1]), Verdict::Taken { shard: 1, last: false });
    assert_eq!(answer(&mut pool, MS, &actions[0]), LAST);
    // Nothing is taken twice.
    assert_eq!(answer(&mut pool, MS, &actions[0]), Verdict::Dropped);
    assert_eq!(pool.stats(), PoolStats { workers: 2, calls: 2, resent: 0, dropped: 1 });
    assert_eq!(pool.next_tick(), None);
}

#[test]
fn a_worker_that_dies_before_the_post_is_not_asked() {
    let mut pool = pool(1);
    pool.connected(MS, LinkId(1), 0, 10, 2);
    pool.connected(MS, LinkId(2), 0, 20, 2);
    pool.closed(MS, LinkId(1));
    pool.post(MS, key(1, 0, 0), &[0]);
    let action = asked(&mut pool, 2);
    assert_eq!(answer(&mut pool, MS, &action), LAST);
}

#[test]
fn what_a_dead_worker_was_asked_is_asked_of_the_next() {
    let mut pool = pool(1);
    pool.connected(MS, LinkId(1), 0, 10, 2);
    pool.connected(MS, LinkId(2), 0, 20, 2);
    pool.post(MS, key(1, 0, 0), &[0]);
    let first = asked(&mut pool, 1);
    // In flight, computing, replying: the same seen from here.
    pool.closed(MS, LinkId(1));
    let second = asked(&mut pool, 2);
    assert_ne!(reply(&first).1.epoch, reply(&second).1.epoch);
    assert_eq!(answer(&mut pool, MS, &first), Verdict::Dropped);
    assert_eq!(answer(&mut pool, MS, &second), LAST);
    assert_eq!(pool.stats(), PoolStats { workers: 1, calls: 2, resent: 1, dropped: 1 });
}

#[test]
fn without_a_worker_a_call_waits_for_one_and_then_is_given_up() {
    let mut pool = pool(3);
    pool.post(MS, key(1, 0, 0), &[1]);
    assert_eq!(pool.actions(), []);
    assert_eq!(pool.next_tick(), Some(MS + HOLD));
    pool.connected(2 * MS, LinkId(1), 1, 10, 1);
    let action = asked(&mut pool, 1);
    pool.closed(3 * MS, LinkId(1));
    pool.tick(HOLD);
    assert_eq!(pool.actions(), []);
    pool.tick(HOLD + MS);
    let actions = pool.actions();
    assert!(
        matches!(&actions[..], [Action::Fail { why, .. }] if why.contains("shard 1 of 3") && why.contains("30 seconds")),
        "{actions:?}"
    );
    // What was given up is not asked of who comes too late.
    pool.connected(HOLD + 2 * MS, LinkId(2), 1, 11, 1);
    assert_eq!(pool.actions(), []);
    assert_eq!(answer(&mut pool, HOLD + 2 * MS, &action), Verdict::Dropped);
    pool.post(HOLD + 3 * MS, key(2, 0, 0), &[1]);
    asked(&mut pool, 2);
}

/// Stopped, then going on: its late answer is dropped, and its slot is free only then.
#[test]
fn a_late_answer_corrupts_nothing() {
    let mut pool = pool(1);
    pool.connected(MS, LinkId(1), 0, 10, 1);
    pool.connected(MS, LinkId(2), 0, 20, 1);
    // One that has answered is known: the deadline is short.
    pool.post(MS, key(1, 0, 0), &[0]);
    let action = asked(&mut pool, 1);
    answer(&mut pool, 2 * MS, &action);
    pool.post(2 * MS, key(1, 1, 0), &[0]);
    let late = asked(&mut pool, 1);
    assert_eq!(pool.next_tick(), Some(52 * MS));
    pool.tick(51 * MS);
    assert_eq!(pool.actions(), []);
    pool.tick(52 * MS);
    let again = asked(&mut pool, 2);
    assert_eq!(answer(&mut pool, 53 * MS, &again), LAST);
    // The suspect's only slot may still be written into.
    pool.post(54 * MS, key(1, 2, 0), &[0]);
    let action = asked(&mut pool, 2);
    pool.post(54 * MS, key(1, 2, 1), &[0]);
    assert_eq!(pool.actions(), []);
    assert_eq!(answer(&mut pool, 60 * MS, &late), Verdict::Dropped);
    // Now it is one of the pool again.
    let other = asked(&mut pool, 1);
    assert_eq!(answer(&mut pool, 61 * MS, &other), LAST);
    assert_eq!(answer(&mut pool, 61 * MS, &action), LAST);
}

/// Two slow workers must not drop each other's answers for ever.
#[test]
fn of_two_late_answers_the_first_is_taken() {
    let mut pool = pool(1);
    pool.connected(MS, LinkId(1), 0, 10, 1);
    pool.connected(MS, LinkId(2), 0, 20, 1);
    pool.post(MS, key(1, 0, 0), &[0]);
    let first = asked(&mut pool, 1);
    pool.tick(5001 * MS);
    let second = asked(&mut pool, 2);
    pool.tick(10_001 * MS);
    assert_eq!(pool.actions(), []);
    assert_eq!(answer(&mut pool, 10_002 * MS, &first), LAST);
    assert_eq!(answer(&mut pool, 10_003 * MS, &second), Verdict::Dropped);
    assert_eq!(pool.stats(), PoolStats { workers: 2, calls: 2, resent: 1, dropped: 1 });
}

#[test]
fn one_slow_worker_without_another_is_waited_for() {
    let mut pool = pool(1);
    pool.connected(MS, LinkId(1), 0, 10, 2);
    pool.post(MS, key(1, 0, 0), &[0]);
    let action = asked(&mut pool, 1);
    pool.tick(6000 * MS);
    assert_eq!(pool.actions(), []);
    // It is even asked for more.
    pool.post(6001 * MS, key(1, 0, 1), &[0]);
    let more = asked(&mut pool, 1);
    assert_eq!(answer(&mut pool, 7000 * MS, &action), LAST);
    assert_eq!(answer(&mut pool, 7001 * MS, &more), LAST);
}

#[test]
fn a_worker_that_drains_finishes_its_own_and_is_let_go() {
    let mut pool = pool(1);
    pool.connected(MS, LinkId(1), 0, 10, 2);
    pool.connected(MS, LinkId(2), 0, 20, 2);
    pool.post(MS, key(1, 0, 0), &[0]);
    let own = asked(&mut pool, 1);
    pool.draining(MS, LinkId(1));
    pool.post(MS, key(1, 0, 1), &[0]);
    let other = asked(&mut pool, 2);
    assert_eq!(answer(&mut pool, MS, &own), LAST);
    assert_eq!(pool.actions(), [Action::Disconnect(LinkId(1))]);
    assert_eq!(answer(&mut pool, MS, &other), LAST);
    // One that has nothing to do is let go at once.
    pool.draining(MS, LinkId(2));
    assert_eq!(pool.actions(), [Action::Disconnect(LinkId(2))]);
    assert_eq!(pool.missing(), [0]);
}

#[test]
fn a_worker_that_joins_shares_the_work() {
    let mut pool = pool(1);
    pool.connected(MS, LinkId(1), 0, 10, 4);
    pool.post(MS, key(1, 0, 0), &[0]);
    asked(&mut pool, 1);
    pool.connected(MS, LinkId(2), 0, 20, 4);
    pool.post(MS, key(1, 0, 1), &[0]);
    asked(&mut pool, 2);
    pool.post(MS, key(1, 0, 2), &[0]);
    asked(&mut pool, 1);
}

#[test]
fn what_one_refuses_another_is_asked_and_the_last_one_is_believed() {
    let mut pool = pool(1);
    pool.connected(MS, LinkId(1), 0, 10, 1);
    pool.connected(MS, LinkId(2), 0, 20, 1);
    pool.post(MS, key(1, 0, 0), &[0]);
    let (link, header) = reply(&asked(&mut pool, 1));
    pool.refused(MS, link, &header, "too many rows");
    let (link, header) = reply(&asked(&mut pool, 2));
    pool.refused(MS, link, &header, "too many rows");
    let actions = pool.actions();
    assert!(
        matches!(&actions[..], [Action::Fail { why, .. }] if why.contains("shard 0 of 1 refuses a call: too many rows")),
        "{actions:?}"
    );
}

#[test]
fn what_was_not_asked_in_a_slot_is_no_answer() {
    let mut pool = pool(1);
    pool.connected(MS, LinkId(1), 0, 10, 2);
    pool.post(MS, key(7, 3, 1), &[0]);
    let (link, right) = reply(&asked(&mut pool, 1));
    let wrong = [
        Header { epoch: right.epoch - 1, ..right },
        Header { incarnation: 11, ..right },
        Header { step: 6, ..right },
        Header { layer: 4, ..right },
        Header { micro_batch: 0, ..right },
        Header { slot: 1, ..right },
        Header { slot: 99, ..right },
    ];
    for header in wrong {
        assert_eq!(pool.answered(MS, link, &header), Verdict::Dropped, "{header:?}");
    }
    assert_eq!(pool.answered(MS, LinkId(5), &right), Verdict::Dropped);
    assert_eq!(pool.answered(MS, link, &right), LAST);
}

#[test]
fn answers_of_a_step_that_was_given_up_are_dropped() {
    let mut pool = pool(1);
    pool.connected(MS, LinkId(1), 0, 10, 2);
    pool.post(MS, key(1, 0, 0), &[0]);
    let old = asked(&mut pool, 1);
    pool.post(MS, key(2, 0, 0), &[0]);
    let new = asked(&mut pool, 1);
    assert_eq!(answer(&mut pool, MS, &old), Verdict::Dropped);
    assert_eq!(answer(&mut pool, MS, &new), LAST);
}

#[derive(Clone, Debug)]
enum Event {
    Connect(usize),
    Close(usize),
    Drain(usize),
    Post(usize),
    /// Some call that is under way is answered, be it by one that is long dead.
    Answer(usize),
    Refuse(usize),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        2 => (0usize..2).prop_map(Event::Connect),
        1 => (0usize..6).prop_map(Event::Close),
        1 => (0usize..6).prop_map(Event::Drain),
        4 => (1usize..4).prop_map(Event::Post),
        6 => (0usize..20).prop_map(Event::Answer),
        1 => (0usize..20).prop_map(Event::Refuse),
        3 => prop_oneof![0u64..100, 0u64..8000].prop_map(Event::Wait),
    ];
    prop::collection::vec(event, 1..120)
}

proptest! {
    /// Whatever happens, in whatever order: each part of a call is taken at most once, no slot has two calls, nobody is
    /// asked who is gone, and with new workers that answer everything is answered in the end, or was said to be lost.
    #[test]
    fn no_call_is_lost_or_doubled(events in events()) {
        let mut pool = pool(2);
        let (mut now, mut next, mut layer) = (MS, 0, 0);
        let mut links: BTreeMap<LinkId, usize> = BTreeMap::new();
        let mut draining: Vec<LinkId> = vec![];
        let mut sent: Vec<Action> = vec![];
        // For each call the shards that have yet to answer.
        let mut open: BTreeMap<CallKey, Vec<usize>> = BTreeMap::new();
        let mut busy: BTreeMap<(LinkId, usize), CallKey> = BTreeMap::new();
        let recover = [Event::Connect(0), Event::Connect(1)].into_iter().chain((0..400).map(|_| Event::Answer(0)));
        for event in events.into_iter().chain(recover) {
            now += MS;
            match event {
                Event::Connect(shard) => {
                    next += 1;
                    links.insert(LinkId(next), shard);
                    pool.connected(now, LinkId(next), shard, 100 + next, 2);
                }
                Event::Close(at) => {
                    if let Some((&link, _)) = links.iter().nth(at) {
                        links.remove(&link);
                        busy.retain(|(of, _), _| *of != link);
                        pool.closed(now, link);
                    }
                }
                Event::Drain(at) => {
                    if let Some((&link, _)) = links.iter().nth(at) {
                        draining.push(link);
                        pool.draining(now, link);
                    }
                }
                Event::Post(micro_batches) => {
                    layer += 1;
                    for micro_batch in 0..micro_batches as u32 {
                        open.insert(key(1, layer, micro_batch), vec![0, 1]);
                        pool.post(now, key(1, layer, micro_batch), &[0, 1]);
                    }
                }
                Event::Answer(at) if at < sent.len() => {
                    let (link, header) = reply(&sent.remove(at));
                    let alive = busy.remove(&(link, header.slot as usize)).is_some();
                    match pool.answered(now, link, &header) {
                        Verdict::Taken { shard, last } => {
                            prop_assert!(alive);
                            let left = open.get_mut(&CallKey::of(&header));
                            prop_assert!(left.is_some(), "{header:?} was answered before, or given up");
                            let left = left.unwrap();
                            prop_assert!(left.contains(&shard));
                            left.retain(|s| *s != shard);
                            prop_assert_eq!(last, left.is_empty());
                            if last {
                                open.remove(&CallKey::of(&header));
                            }
                        }
                        Verdict::Dropped => {}
                    }
                }
                Event::Refuse(at) if at < sent.len() => {
                    let (link, header) = reply(&sent.remove(at));
                    busy.remove(&(link, header.slot as usize));
                    pool.refused(now, link, &header, "no");
                }
                Event::Answer(_) | Event::Refuse(_) => {}
                Event::Wait(ms) => {
                    now += Duration::from_millis(ms);
                    pool.tick(now);
                }
            }
            for action in pool.actions() {
                match action {
                    Action::Send { link, slot, key, .. } => {
                        prop_assert!(links.contains_key(&link) && !draining.contains(&link));
                        prop_assert!(open.contains_key(&key));
                        prop_assert_eq!(busy.insert((link, slot), key), None);
                        sent.push(action);
                    }
                    Action::Disconnect(link) => {
                        prop_assert!(draining.contains(&link) && busy.keys().all(|(of, _)| *of != link));
                        links.remove(&link);
                    }
                    // The step is over.
                    Action::Fail { .. } => open.clear(),
                }
            }
        }
        prop_assert!(open.is_empty(), "{open:?} are lost");
    }
}
