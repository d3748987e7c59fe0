//! Valid files, damaged at random.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tread_tests::fuzz::{self, Target};

/// One change to the bytes of a file.
#[derive(Clone, Debug)]
enum Damage {
    Flip { at: usize, bit: u8 },
    Set { at: usize, value: u64, bytes: usize },
    Cut { at: usize, bytes: usize },
    Repeat { at: usize, bytes: usize },
    Truncate { at: usize },
}

fn damage() -> impl Strategy<Value = Damage> {
    // Heads are where the lies are.
    let at = || prop_oneof![3 => 0..2048usize, 1 => any::<usize>()];
    const EDGES: &[u64] =
        &[0, 1, 31, 32, 33, 0xffff_ffff, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX - 31, u64::MAX];
    let value = prop_oneof![prop::sample::select(EDGES).boxed(), (0..64u64).boxed(), any::<u64>().boxed()];
    prop_oneof![
        (at(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        (at(), value, prop::sample::select(&[1, 4, 8][..])).prop_map(|(at, value, bytes)| Damage::Set {
            at,
            value,
            bytes
        }),
        (at(), 1..64usize).prop_map(|(at, bytes)| Damage::Cut { at, bytes }),
        (at(), 1..256usize).prop_map(|(at, bytes)| Damage::Repeat { at, bytes }),
        at().prop_map(|at| Damage::Truncate { at }),
    ]
}

impl Damage {
    fn apply(&self, data: &mut Vec<u8>) {
        let (end, length) = (data.len(), data.len().max(1));
        let range = |at: usize, bytes: usize| at % length..(at % length + bytes).min(end);
        match *self {
            Self::Flip { at, bit } => data[range(at, 1)].iter_mut().for_each(|b| *b ^= 1 << bit),
            Self::Set { at, value, bytes } => {
                let range = range(at, bytes);
                data[range.clone()].copy_from_slice(&value.to_le_bytes()[..range.len()]);
            }
            Self::Cut { at, bytes } => drop(data.drain(range(at, bytes))),
            Self::Repeat { at, bytes } => {
                let range = range(at, bytes);
                let copy = data[range.clone()].to_vec();
                data.splice(range.start..range.start, copy);
            }
            Self::Truncate { at } => data.truncate(at % length),
        }
    }
}

/// Damages a valid file again and again: whether the result is read or not, the answer comes, within [`ALLOCATOR`]'s
/// limit.
fn survives(name: &str) {
    let Target { read, seed, .. } = fuzz::TARGETS.into_iter().find(|t| t.name == name).expect(name);
    let valid = seed();
    assert!(read(&valid), "the undamaged file is read");
    let config = ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() };
    let strategy = prop::collection::vec(damage(), 1..4);
    let result = TestRunner::new(config).run(&strategy, |damages| {
        let mut data = valid.clone();
        damages.iter().for_each(|damage| damage.apply(&mut data));
        read(&data);
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn damaged_safetensors() {
    survives("safetensors");
}

#[test]
fn damaged_fp8_safetensors() {
    survives("safetensors_fp8");
}

#[test]
fn damaged_gguf() {
    survives("gguf");
}

#[test]
fn damaged_configurations() {
    survives("config");
}
