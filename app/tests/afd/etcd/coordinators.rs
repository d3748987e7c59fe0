//! Of two coordinators the old one is refused.

use std::time::Duration;

use serde_json::json;
use tread::afd::etcd::{Leader, Lease, Table};
use tread::afd::hello::{PROTOCOL, Terms};
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_tests::server::Server;

use super::cluster::{Cluster, PREFIX, addresses, client, wait};
use crate::refusals::TREAD;

fn table(epoch: u64) -> Table {
    let (dtype, sharding) = (EdgeDType::F32, Sharding::Layers);
    let terms = Terms { protocol: PROTOCOL, model: "0123".to_owned(), hidden: 1, dtype, sharding, shards: 1 };
    Table { epoch, terms, shards: vec![vec![]], out: Default::default() }
}

/// The revision in which the table was last written.
async fn written(cluster: &Cluster) -> i64 {
    let mut client = client(&cluster.etcd()).await.unwrap();
    let found = client.get(cluster.etcd().table_key(), None).await.unwrap();
    found.kvs().first().map_or(0, |kv| kv.mod_revision())
}

#[test]
fn the_tables_of_a_former_coordinator_are_refused() {
    let cluster = Cluster::start();
    let etcd = cluster.etcd();
    cluster.runtime.block_on(async {
        let lease = Lease::grant(&etcd).await.unwrap();
        let mut old = Leader::elected(&etcd, &lease).await.unwrap();
        old.write(&table(1), 0).await.unwrap();
        // Nobody renews its lease, so in time another one is elected.
        let lease = Lease::grant(&etcd).await.unwrap();
        let elected = Leader::elected(&etcd, &lease);
        let renewed = async {
            while lease.renew().await.unwrap() {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        let mut new = tokio::select! {
            leader = elected => leader.unwrap(),
            () = renewed => panic!("the lease is lost"),
        };
        // With nothing written since, only the election tells the two apart.
        let error = old.write(&table(2), written(&cluster).await).await.unwrap_err();
        assert!(error.to_string().contains("another process has become the coordinator"), "{error}");
        assert_eq!(cluster_epoch(&cluster).await, 1);
        new.write(&table(2), written(&cluster).await).await.unwrap();
        // A leader that missed a table is refused as well.
        new.write(&table(3), 1).await.unwrap_err();
        assert_eq!(cluster_epoch(&cluster).await, 2);
    });
}

async fn cluster_epoch(cluster: &Cluster) -> u64 {
    let mut client = client(&cluster.etcd()).await.unwrap();
    let found = client.get(cluster.etcd().table_key(), None).await.unwrap();
    serde_json::from_slice::<Table>(found.kvs()[0].value()).unwrap().epoch
}

fn answer(server: &Server) -> serde_json::Value {
    let body = json!({"prompt": "Who goes there?", "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let mut response = ureq::post(server.url("/v1/completions")).send_json(body).unwrap();
    response.body_mut().read_json::<serde_json::Value>().unwrap()["choices"][0]["text"].clone()
}

/// The process that is the coordinator stops, another takes its place, and the first goes on: it gives way.
#[test]
fn a_stopped_coordinator_is_replaced_and_gives_way() {
    let cluster = Cluster::start();
    let first = cluster.worker("nano", "0/1", &[]);
    let flags = cluster.flags();
    let mut args = vec!["nano", "--backend", "cpu", "--etcd-ttl", "2"];
    args.extend(flags.iter().map(String::as_str));
    let run = || Server::start(TREAD, &args);
    let coordinates = |server: &Server| server.log().matches("is the coordinator").count();
    let old = run();
    wait("the first is elected", || coordinates(&old) == 1);
    let new = run();
    let expected = answer(&old);
    assert_eq!(answer(&new), expected);
    assert_eq!(coordinates(&new), 0);
    old.signal("STOP");
    wait("the second is elected", || coordinates(&new) == 1);
    let second = cluster.worker("nano", "0/1", &[]);
    let both = [[first.address().to_string(), second.address().to_string()]];
    let table = cluster.wait_for_table(|table| addresses(table) == both);
    old.signal("CONT");
    wait("the first gives way", || old.log().contains("does not stand for coordinator any more"));
    assert_eq!(answer(&old), expected);
    // It knows the new table, and has not written another.
    let third = cluster.worker("nano", "0/1", &[]);
    let after = cluster.wait_for_table(|table| addresses(table)[0].contains(&third.address().to_string()));
    assert_eq!(after.epoch, table.epoch + 1);
    assert_eq!((coordinates(&old), coordinates(&new)), (1, 1));
    wait("both stand for election", || cluster.get(&format!("{PREFIX}/coordinator/")).len() == 2);
    assert_eq!((answer(&old), answer(&new)), (expected.clone(), expected));
}
