use proptest::collection::vec;
use proptest::prelude::*;
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;

use super::*;
use crate::afd::hello::PROTOCOL;

fn terms(shards: usize) -> Terms {
    Terms {
        protocol: PROTOCOL,
        model: "0123".to_owned(),
        hidden: 64,
        dtype: EdgeDType::F8,
        sharding: Sharding::Experts,
        shards,
    }
}

fn record(address: &str, incarnation: u64, shard: usize, shards: usize) -> Record {
    let device = "CPU".to_owned();
    let worker =
        Welcome { terms: terms(shards), shard, max_rows: 64, slots: 6, incarnation, device, weight_bytes: 1 };
    Record { address: address.to_owned(), worker }
}

fn item(created: i64, record: &Record) -> Item {
    let value = serde_json::to_vec(record).unwrap();
    Item { key: format!("/tread/ffn/{}", record.worker.incarnation), value, created, modified: created }
}

/// The addresses of each shard.
fn addresses(table: &Table) -> Vec<Vec<&str>> {
    table.shards.iter().map(|shard| shard.iter().map(|entry| entry.address.as_str()).collect()).collect()
}

#[test]
fn records_are_json_that_people_can_read() {
    let text = serde_json::to_string(&record("ffn-1:4000", u64::MAX, 1, 2)).unwrap();
    for part in [r#""address":"ffn-1:4000""#, r#""dtype":"fp8""#, r#""sharding":"experts""#, r#""shard":1"#] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record("ffn-1:4000", u64::MAX, 1, 2));
}

#[test]
fn workers_stand_in_the_order_in_which_they_came() {
    let items = [
        item(9, &record("c:1", 3, 0, 2)),
        item(4, &record("a:1", 1, 1, 2)),
        item(6, &record("b:1", 2, 0, 2)),
    ];
    let table = Table::of(&terms(2), None, &items);
    assert_eq!(addresses(&table), [vec!["b:1", "c:1"], vec!["a:1"]]);
    assert!(table.out.is_empty());
    let places: Vec<_> = table.places().iter().map(ToString::to_string).collect();
    assert_eq!(places, ["b:1", "c:1", "a:1"]);
}

#[test]
fn who_was_started_anew_is_not_there_twice() {
    let items = [item(4, &record("a:1", 1, 0, 1)), item(5, &record("a:1", 2, 0, 1))];
    let table = Table::of(&terms(1), None, &items);
    assert_eq!(table.shards, [[Entry { address: "a:1".to_owned(), incarnation: 2 }]]);
}

#[test]
fn who_does_not_fit_stays_out_and_the_table_says_why() {
    let mut other_model = record("b:1", 2, 0, 1);
    other_model.worker.terms.model = "4567".to_owned();
    let mut other_type = record("c:1", 3, 0, 1);
    other_type.worker.terms.dtype = EdgeDType::F32;
    let nonsense = Item { key: "/tread/ffn/4".to_owned(), value: b"{}".to_vec(), created: 4, modified: 4 };
    let beyond = record("e:1", 5, 7, 1);
    let items = [
        item(1, &record("a:1", 1, 0, 1)),
        item(2, &other_model),
        item(3, &other_type),
        nonsense,
        item(5, &beyond),
        item(6, &record("f:1", 6, 0, 3)),
    ];
    let table = Table::of(&terms(1), None, &items);
    assert_eq!(addresses(&table), [["a:1"]]);
    let out: Vec<_> = table.out.iter().map(|(key, why)| format!("{key}: {why}")).collect();
    for (found, parts) in out.iter().zip([
        ["/tread/ffn/2", "b:1", "models: attention has 0123, the FFN worker 4567"],
        ["/tread/ffn/3", "c:1", "--afd-dtype: attention has fp8, the FFN worker f32"],
        ["/tread/ffn/4", "cannot be read", "missing field"],
        ["/tread/ffn/5", "e:1", "shard 7 of 1"],
        ["/tread/ffn/6", "f:1", "shards: attention has 1, the FFN worker 3"],
    ]) {
        assert!(parts.iter().all(|part| found.contains(part)), "{found}");
    }
    assert_eq!(out.len(), 5);
}

#[test]
fn how_many_shards_there_are_is_said_once() {
    let items = [item(1, &record("a:1", 1, 0, 2)), item(2, &record("b:1", 2, 0, 3))];
    let first = Table::of(&terms(0), None, &items);
    assert_eq!(addresses(&first), [vec!["a:1"], vec![]]);
    // As long as anybody holds one of these shards, others are not heard.
    let more = [items[1].clone(), item(3, &record("c:1", 3, 1, 2))];
    let second = Table::of(&terms(0), Some(&first), &more);
    assert_eq!(addresses(&second), [vec![], vec!["c:1"]]);
    assert_eq!(Table::of(&terms(0), Some(&first), &items[1..]).terms.shards, 3);
    assert_eq!(Table::of(&terms(0), Some(&first), &[]).terms.shards, 0);
}

#[test]
fn epochs_go_on_when_etcd_forgets() {
    assert_eq!(Table::epoch_after(Some(5), 5, 1000), 6);
    assert_eq!(Table::epoch_after(Some(5), 9, 1000), 10);
    assert_eq!(Table::epoch_after(None, 0, 1000), 1000);
    assert_eq!(Table::epoch_after(None, 2000, 1000), 2001);
}

proptest! {
    /// Every record is in the table once or out of it with a reason, unless a later one has its address; and it does not
    /// matter in which order etcd names them.
    #[test]
    fn nobody_is_lost(
        workers in vec((0..6_u8, 0..3_usize, 1..3_usize, 0..2_u8), 0..12),
        wanted in 0..3_usize,
        turn in 0..12_usize,
    ) {
        let items: Vec<_> = workers.iter().enumerate().map(|(at, (address, shard, shards, model))| {
            let mut record = record(&format!("h{address}:1"), at as u64, *shard, *shards);
            record.worker.terms.model = format!("012{}", 3 + model);
            item(at as i64, &record)
        }).collect();
        let table = Table::of(&terms(wanted), None, &items);
        let mut turned = items.clone();
        turned.rotate_left(turn.min(items.len()));
        prop_assert_eq!(&Table::of(&terms(wanted), None, &turned), &table);
        let mut found: Vec<_> = table.shards.iter().flatten().map(|entry| entry.address.clone()).collect();
        found.extend(table.out.values().map(|why| why.split(' ').next().unwrap_or_default().to_owned()));
        found.sort();
        let mut expected: Vec<_> = workers.iter().map(|(address, ..)| format!("h{address}:1")).collect();
        expected.sort();
        expected.dedup();
        prop_assert_eq!(found, expected);
        for (shard, entries) in table.shards.iter().enumerate() {
            for entry in entries {
                let (_, holds, shards, model) = workers[entry.incarnation as usize];
                prop_assert_eq!((holds, shards, model), (shard, table.terms.shards, 0));
            }
        }
    }
}
