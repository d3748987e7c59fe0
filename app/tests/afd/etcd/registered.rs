//! Registration: by encrypted connections and with passwords, and of other kinds of workers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use etcd_client::{Permission, PermissionType, PutOptions};
use serde_json::{Value, json};
use tread::afd::etcd::{ATTENTION, Announced, Etcd, Registered, announce};
use tread::afd::pool::Membership as _;
use tread::afd::{AfdOptions, Members, Place};
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_tests::server::Server;

use super::cluster::{Cluster, PREFIX, client, tls, wait};
use crate::models::model;
use crate::refusals::TREAD;
use crate::streams::{engine, executable, expected, run};

/// Somebody who is announced.
#[derive(Default)]
struct Somebody {
    life: AtomicU64,
    until: Mutex<Option<Instant>>,
}

impl Announced for Somebody {
    fn record(&self) -> (u64, Value) {
        (self.life.load(Ordering::SeqCst), json!({"address": "somewhere:1"}))
    }

    fn may_answer(&self, until: Option<Instant>) {
        *self.until.lock().unwrap() = until;
    }

    fn begin_anew(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn attention_workers_are_announced_and_found() {
    let cluster = Cluster::start();
    let attention = Registered::attention(cluster.etcd());
    let places = attention.watch().unwrap();
    assert!(places.borrow().is_empty());
    let who = Arc::new(Somebody::default());
    let entered = cluster.runtime.enter();
    let announcement = announce(cluster.etcd(), ATTENTION, Arc::clone(&who) as _);
    drop(entered);
    let here = [Place::Address("somewhere:1".to_owned())];
    wait("it is found", || *places.borrow() == here);
    assert!(who.until.lock().unwrap().is_some(), "it may speak as long as its lease lasts");
    cluster.runtime.block_on(announcement.withdraw());
    wait("it is found no more", || places.borrow().is_empty());
    assert!(who.until.lock().unwrap().is_none());
}

/// Whoever finds its key taken, by whomever, does not take it over.
#[test]
fn records_are_only_made_where_there_is_none() {
    let cluster = Cluster::start();
    let key = format!("{PREFIX}/attention/0");
    cluster.runtime.block_on(async {
        let mut client = client(&cluster.etcd()).await.unwrap();
        client.put(key.as_str(), "somebody else", None::<PutOptions>).await.unwrap();
        let who = Arc::new(Somebody::default());
        let announcement = announce(cluster.etcd(), ATTENTION, Arc::clone(&who) as _);
        while client.get(format!("{PREFIX}/attention/1"), None).await.unwrap().kvs().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.get(key, None).await.unwrap().kvs()[0].value(), b"somebody else");
        announcement.withdraw().await;
    });
}

#[test]
fn etcd_may_ask_for_encryption_and_a_password() {
    let cluster = Cluster::encrypted();
    let user = Some(("tread".to_owned(), "open sesame".to_owned()));
    cluster.runtime.block_on(async {
        let mut client = client(&cluster.etcd()).await.unwrap();
        client.user_add("root", "root", None).await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        client.user_add("tread", "open sesame", None).await.unwrap();
        client.role_add("tread").await.unwrap();
        let all = Permission::new(PermissionType::Readwrite, PREFIX).with_prefix();
        client.role_grant_permission("tread", all).await.unwrap();
        client.user_grant_role("tread", "tread").await.unwrap();
        client.auth_enable().await.unwrap();
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("user");
    std::fs::write(&file, "tread:open sesame\n").unwrap();
    let ca = tls("cert.pem");
    let flags = cluster.flags();
    let mut args = vec!["nano", "--backend", "cpu", "--etcd-ca", ca.to_str().unwrap()];
    args.extend(["--etcd-user-file", file.to_str().unwrap()]);
    args.extend(flags.iter().map(String::as_str));
    let _worker = Server::ffn_worker(TREAD, &args);
    let model = model("nano");
    let found = |etcd: Etcd| executable(&model, &AfdOptions::new(Members::Etcd(etcd)));
    let mut engine = engine(&model, found(Etcd { user, ..cluster.etcd() }).unwrap());
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    assert_eq!(run(&model, &mut engine, |_| ()).unwrap(), expected);
}
