//! Whatever the order of requests, forks, appends, aborts and evictions: no block is lost, none is held by two that
//! differ, and what is found again is what was computed.

use proptest::prelude::*;

use super::{BlockManager, BlockTable, Full};
use crate::backend::BLOCK_SIZE;

/// A sequence as the engine keeps one.
#[derive(Debug)]
struct Holder {
    tokens: Vec<u32>,
    table: BlockTable,
}

/// Sequences on a cache that remembers what was written to it.
struct World {
    manager: BlockManager,
    slots: Vec<u32>,
    holders: Vec<Holder>,
}

#[derive(Clone, Debug)]
enum Action {
    /// A prompt of this many tokens from a small family of prompts, so that beginnings repeat.
    Admit {
        family: u32,
        length: usize,
    },
    Fork(usize),
    Append {
        who: usize,
        tokens: Vec<u32>,
    },
    Release(usize),
    Discard(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (0..3u32, 1..90usize).prop_map(|(family, length)| Action::Admit { family, length }),
        2 => any::<usize>().prop_map(Action::Fork),
        4 => (any::<usize>(), prop::collection::vec(0..4u32, 1..40))
            .prop_map(|(who, tokens)| Action::Append { who, tokens }),
        2 => any::<usize>().prop_map(Action::Release),
        1 => any::<usize>().prop_map(Action::Discard),
    ]
}

impl World {
    fn new(blocks: usize, prefix_cache: bool) -> Self {
        let slots = vec![u32::MAX; blocks * BLOCK_SIZE];
        Self { manager: BlockManager::new(blocks, prefix_cache), slots, holders: vec![] }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Admit { family, length } => {
                let tokens: Vec<u32> = (0..length as u32).map(|i| (i / 7 + family) % 5).collect();
                let usable = &tokens[..length - 1];
                let (cached, _) = self.manager.cached(usable);
                let table = self.manager.share(usable);
                assert_eq!(table.blocks().len() * BLOCK_SIZE, cached);
                let found: Vec<u32> = (0..cached).map(|at| self.slots[slot(&table, at)]).collect();
                assert_eq!(found, tokens[..cached], "what is shared is what was asked for");
                let mut holder = Holder { tokens: tokens[..cached].to_vec(), table };
                self.write(&mut holder, &tokens[cached..]);
                self.holders.push(holder);
            }
            Action::Fork(who) => {
                if let Some(who) = pick(who, self.holders.len()) {
                    let table = self.manager.fork(&self.holders[who].table);
                    self.holders.push(Holder { tokens: self.holders[who].tokens.clone(), table });
                }
            }
            Action::Append { who, tokens } => {
                if let Some(who) = pick(who, self.holders.len()) {
                    let mut holder = self.holders.swap_remove(who);
                    self.write(&mut holder, &tokens);
                    self.holders.push(holder);
                }
            }
            Action::Release(who) => {
                if let Some(who) = pick(who, self.holders.len()) {
                    self.manager.release(self.holders.swap_remove(who).table);
                }
            }
            Action::Discard(who) => {
                if let Some(who) = pick(who, self.holders.len()) {
                    self.manager.discard(self.holders.swap_remove(who).table);
                }
            }
        }
    }

    /// Writes tokens behind the holder's if there is room for all of them.
    fn write(&mut self, holder: &mut Holder, tokens: &[u32]) {
        let start = holder.tokens.len();
        let before = (holder.table.blocks().to_vec(), self.manager.available());
        match self.manager.make_writable(&mut holder.table, start) {
            Ok(None) => {}
            Ok(Some((from, to))) => {
                let from = from as usize * BLOCK_SIZE;
                self.slots.copy_within(from..from + BLOCK_SIZE, to as usize * BLOCK_SIZE);
            }
            Err(Full) => {
                assert_eq!(before, (holder.table.blocks().to_vec(), self.manager.available()));
                return;
            }
        }
        let before = (holder.table.blocks().to_vec(), self.manager.available());
        if !self.manager.grow(&mut holder.table, start + tokens.len()) {
            assert_eq!(before, (holder.table.blocks().to_vec(), self.manager.available()));
            return;
        }
        for (at, &token) in (start..).zip(tokens) {
            self.slots[slot(&holder.table, at)] = token;
        }
        holder.tokens.extend_from_slice(tokens);
        self.manager.enter(&mut holder.table, &holder.tokens);
    }

    fn check(&self) {
        for holder in &self.holders {
            let found: Vec<u32> =
                (0..holder.tokens.len()).map(|at| self.slots[slot(&holder.table, at)]).collect();
            assert_eq!(found, holder.tokens, "nobody wrote into another's blocks");
        }
        let mut held: Vec<u32> = self.holders.iter().flat_map(|h| h.table.blocks()).copied().collect();
        held.sort_unstable();
        held.dedup();
        assert_eq!(held.len() + self.manager.available(), self.manager.total(), "every block is somewhere");
    }
}

fn slot(table: &BlockTable, at: usize) -> usize {
    table.blocks()[at / BLOCK_SIZE] as usize * BLOCK_SIZE + at % BLOCK_SIZE
}

fn pick(who: usize, count: usize) -> Option<usize> {
    who.checked_rem(count)
}

proptest! {
    #[test]
    fn any_order_of_events_keeps_the_books(
        actions in prop::collection::vec(action(), 1..60),
        blocks in 1..24usize,
        prefix_cache: bool,
    ) {
        let mut world = World::new(blocks, prefix_cache);
        for action in actions {
            world.act(action);
            world.check();
        }
        for holder in world.holders.drain(..) {
            world.manager.release(holder.table);
        }
        prop_assert_eq!(world.manager.available(), blocks);
        // All of it can be handed out again.
        let mut table = BlockTable::default();
        prop_assert!(world.manager.grow(&mut table, blocks * BLOCK_SIZE));
        let mut all = table.blocks().to_vec();
        all.sort_unstable();
        prop_assert_eq!(all, (0..blocks as u32).collect::<Vec<_>>());
        prop_assert!(!world.manager.grow(&mut table, blocks * BLOCK_SIZE + 1));
    }
}

/// Fills a table with `tokens` and releases it.
fn compute(manager: &mut BlockManager, tokens: &[u32]) {
    let mut table = manager.share(&tokens[..tokens.len() - 1]);
    assert!(manager.grow(&mut table, tokens.len()));
    manager.enter(&mut table, tokens);
    manager.release(table);
}

#[test]
fn a_prefix_is_found_until_its_space_is_needed() {
    let mut manager = BlockManager::new(8, true);
    let (a, b): (Vec<u32>, Vec<u32>) = ((0..50).collect(), (100..150).collect());
    compute(&mut manager, &a);
    compute(&mut manager, &b);
    assert_eq!(manager.reusable.len(), 6, "whole blocks only");
    assert_eq!(manager.cached(&a), (48, 3));
    assert_eq!(manager.cached(&a[..47]).0, 32);
    let other: Vec<u32> = a[..16].iter().copied().chain(b[..34].iter().copied()).collect();
    assert_eq!(manager.cached(&other).0, 16, "the same block after another is not the same");
    // `a` was used last: `b` goes first, from its end.
    compute(&mut manager, &a);
    let mut table = BlockTable::default();
    assert!(manager.grow(&mut table, 4 * BLOCK_SIZE));
    assert_eq!((manager.cached(&a).0, manager.cached(&b).0, manager.reusable.len()), (48, 16, 4));
}

#[test]
fn without_a_prefix_cache_nothing_is_found() {
    let mut manager = BlockManager::new(8, false);
    compute(&mut manager, &[7; 64]);
    assert_eq!((manager.cached(&[7; 64]).0, manager.reusable.len()), (0, 0));
}

#[test]
fn what_is_discarded_is_not_found_again() {
    let mut manager = BlockManager::new(8, true);
    let tokens: Vec<u32> = (0..64).collect();
    let mut table = BlockTable::default();
    assert!(manager.grow(&mut table, 64));
    manager.enter(&mut table, &tokens);
    manager.discard(table);
    assert_eq!((manager.cached(&tokens).0, manager.available()), (0, 8));
}
