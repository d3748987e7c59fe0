//! Membership in etcd: real etcd, real workers. Only where etcd can be installed.

mod attention;
mod cluster;
mod coordinators;
mod refusals;
mod registered;
mod slurm;

use std::cell::RefCell;

use tread::afd::AfdOptions;
use tread::afd::etcd::Table;
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_tests::server::Server;

use crate::models::model;
use crate::streams::{engine, executable, expected, run};
use cluster::{Cluster, addresses, wait};

fn address(worker: &Server) -> String {
    worker.address().to_string()
}

#[test]
fn workers_are_found_join_and_leave_while_streams_go_on() {
    let cluster = Cluster::start();
    let model = model("nano");
    let first = cluster.worker("nano", "0/2", &[]);
    let drained = cluster.worker("nano", "1/2", &["--etcd-ttl", "600"]);
    let record = cluster.record(&drained).unwrap();
    assert_eq!((record.worker.shard, record.worker.terms.shards, record.worker.slots), (1, 2, 16));
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    let mut engine = engine(&model, executable(&model, &cluster.afd()).unwrap());
    let before = cluster.table().unwrap();
    assert_eq!(addresses(&before), [vec![address(&first)], vec![address(&drained)]]);
    let drained = RefCell::new(drained);
    let mut joined = None;
    let found = run(&model, &mut engine, |step| match step {
        4 => {
            let worker = cluster.worker("nano", "1/2", &[]);
            cluster.wait_for_table(|table| addresses(table)[1].len() == 2);
            joined = Some(worker);
        }
        // From here on only the one that joined holds the second shard.
        6 => {
            drained.borrow().terminate();
            assert!(drained.borrow_mut().wait().success(), "{}", drained.borrow().log());
            // Long before its lease would have run out.
            assert_eq!(cluster.record(&drained.borrow()), None);
        }
        _ => {}
    });
    assert_eq!(found.unwrap(), expected);
    let after = cluster.wait_for_table(|table| addresses(table)[1] == [address(joined.as_ref().unwrap())]);
    assert_eq!(after.epoch, before.epoch + 2, "one table for each change");
}

#[test]
fn a_killed_worker_is_off_the_list_when_its_lease_has_run_out() {
    let cluster = Cluster::start();
    let model = model("nano");
    let [killed, other] = [0, 1].map(|_| cluster.worker("nano", "0/1", &[]));
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    let mut engine = engine(&model, executable(&model, &cluster.afd()).unwrap());
    let found = run(&model, &mut engine, |step| {
        if step == 3 {
            killed.signal("KILL");
        }
    });
    assert_eq!(found.unwrap(), expected);
    wait("its key is gone", || cluster.record(&killed).is_none());
    cluster.wait_for_table(|table| addresses(table) == [[address(&other)]]);
    assert_eq!(run(&model, &mut engine, |_| ()).unwrap(), expected);
}

/// With its data and without, etcd comes back to the same workers.
#[test]
fn streams_go_on_without_etcd_and_when_it_is_back() {
    let mut cluster = Cluster::start();
    let model = model("nano");
    let workers = ["0/2", "1/2", "1/2"].map(|shard| cluster.worker("nano", shard, &[]));
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    let mut engine = engine(&model, executable(&model, &cluster.afd()).unwrap());
    let before = cluster.wait_for_table(|table| addresses(table)[1].len() == 2);
    let whole = |table: &Table| addresses(table).iter().flatten().count() == 3;
    let noticed = |times: usize| {
        let all = |worker: &Server| worker.log().matches("does not answer").count() >= times;
        wait("the workers miss etcd", || workers.iter().all(all));
    };
    let mut after = None;
    let found = run(&model, &mut engine, |step| match step {
        3 => {
            cluster.kill();
            noticed(1);
        }
        // Some steps later.
        8 => {
            cluster.restart();
            cluster.wait_for_table(whole);
        }
        12 => {
            wait("the workers have found it again", || {
                workers.iter().all(|worker| worker.log().contains("answers again"))
            });
            cluster.kill();
            noticed(2);
            cluster.forget();
        }
        16 => {
            cluster.restart();
            after = Some(cluster.wait_for_table(whole));
        }
        _ => {}
    });
    assert_eq!(found.unwrap(), expected);
    let after = after.unwrap();
    assert!(after.epoch > before.epoch);
    let lives =
        |table: &Table| -> Vec<u64> { table.shards.iter().flatten().map(|e| e.incarnation).collect() };
    assert!(lives(&after).iter().all(|life| !lives(&before).contains(life)), "nothing was known of them");
    // Whoever comes new finds the same.
    let mut fresh = crate::streams::engine(&model, executable(&model, &cluster.afd()).unwrap());
    assert_eq!(run(&model, &mut fresh, |_| ()).unwrap(), expected);
    assert_eq!(run(&model, &mut engine, |_| ()).unwrap(), expected);
}

#[test]
fn a_worker_whose_lease_has_run_out_comes_back_as_another() {
    let cluster = Cluster::start();
    let model = model("nano");
    let [stopped, other] = [0, 1].map(|_| cluster.worker("nano", "0/1", &[]));
    let former = cluster.record(&stopped).unwrap().worker.incarnation;
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    let mut engine = engine(&model, executable(&model, &cluster.afd()).unwrap());
    let found = run(&model, &mut engine, |step| match step {
        3 => stopped.signal("STOP"),
        6 => {
            wait("its key is gone", || cluster.record(&stopped).is_none());
            stopped.signal("CONT");
        }
        10 => {
            wait("it is registered anew", || cluster.record(&stopped).is_some());
            let record = cluster.record(&stopped).unwrap();
            assert_ne!(record.worker.incarnation, former);
            cluster.wait_for_table(|table| {
                table.shards[0].iter().any(|entry| entry.incarnation == record.worker.incarnation)
            });
            // Now it is all there is.
            other.signal("KILL");
        }
        _ => {}
    });
    assert_eq!(found.unwrap(), expected);
    assert!(stopped.log().contains("begins another life"), "{}", stopped.log());
}

/// A lease that is taken away while its worker is well: connections end, and calls under way are asked again.
#[test]
fn a_worker_notices_that_its_record_is_gone() {
    let cluster = Cluster::start();
    let model = model("nano");
    let worker = cluster.worker("nano", "0/1", &[]);
    let former = cluster.record(&worker).unwrap().worker.incarnation;
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    let mut engine = engine(&model, executable(&model, &cluster.afd()).unwrap());
    let found = run(&model, &mut engine, |step| {
        if step == 4 {
            cluster.runtime.block_on(async {
                let mut client = cluster::client(&cluster.etcd()).await.unwrap();
                client.delete(format!("{}/ffn/{former}", cluster::PREFIX), None).await.unwrap();
            });
        }
        if step == 8 {
            wait("it is registered anew", || {
                cluster.record(&worker).is_some_and(|record| record.worker.incarnation != former)
            });
        }
    });
    assert_eq!(found.unwrap(), expected);
}

#[test]
fn experts_are_spread_over_registered_workers() {
    let cluster = Cluster::start();
    let model = model("step3-tiny-fp8");
    let flags = ["--sharding", "experts", "--afd-dtype", "fp8"];
    let _workers = ["1/2", "0/2"].map(|shard| cluster.worker("step3-tiny-fp8", shard, &flags));
    let (sharding, dtype) = (Sharding::Experts, EdgeDType::F8);
    let afd = AfdOptions { sharding, dtype, ..cluster.afd() };
    let mut engine = engine(&model, executable(&model, &afd).unwrap());
    assert_eq!(run(&model, &mut engine, |_| ()).unwrap(), expected(&model, sharding, dtype));
}
