//! `tread serve` over two pools on one machine: clients hear what one device says, whatever happens to workers.

use std::thread;
use std::time::Duration;

use tread_tests::server::{Server, signal};

use crate::clients::{Streams, ask};
use crate::refusals::TREAD;

/// The processes of the workers of a kind that were started so far.
fn workers(server: &Server, kind: &str) -> Vec<u32> {
    let (log, kind) = (server.log(), format!("kind=\"{kind}\""));
    let lines = log.lines().filter(|line| line.contains(&kind));
    let pids = lines.filter_map(|line| line.split_once("pid=")?.1.split_whitespace().next());
    pids.map(|pid| pid.parse().unwrap()).collect()
}

fn running(process: u32) -> bool {
    std::path::Path::new(&format!("/proc/{process}")).exists()
}

#[test]
fn both_pools_on_one_machine_say_what_one_device_says() {
    let expected = ask(&Server::start(TREAD, &["nano", "--backend", "cpu"]));
    for args in [&["--afd", "1A1F"][..], &["--afd", "2A2F"], &["--afd", "3A2F", "--sharding", "experts"]] {
        let server = Server::start(TREAD, &[&["nano", "--backend", "cpu"], args].concat());
        assert_eq!(ask(&server), expected, "{args:?}");
        let pids = ["attention", "ffn"].map(|kind| workers(&server, kind)).concat();
        assert!(pids.len() >= 2 && pids.iter().all(|pid| running(*pid)), "{pids:?}");
        server.terminate();
        let mut server = server;
        assert!(server.wait().success());
        assert!(!pids.iter().any(|pid| running(*pid)), "workers end with their server: {pids:?}");
    }
}

#[test]
fn killed_workers_are_started_again_and_nobody_notices() {
    let expected = Streams::of(&Server::start(TREAD, &["nano", "--backend", "cpu"])).undisturbed();
    let server = Server::start(TREAD, &["nano", "--backend", "cpu", "--afd", "2A2F"]);
    let [attention, ffn] = ["attention", "ffn"].map(|kind| workers(&server, kind));
    assert_eq!((attention.len(), ffn.len()), (2, 2));
    let streams = Streams::of(&server);
    let found = streams.disturbed(|streams| {
        streams.wait_for(100);
        ffn.iter().for_each(|pid| signal(*pid, "KILL"));
        streams.wait_for(200);
        signal(attention[0], "KILL");
        streams.wait_for(400);
        signal(attention[1], "KILL");
    });
    assert_eq!(found, expected);
    assert!(server.log().contains("a request goes on at another engine"), "{}", server.log());
    // What it logged may be on its way.
    while workers(&server, "ffn").len() < 4 || workers(&server, "attention").len() < 4 {
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn workers_do_not_outlive_a_server_that_is_killed() {
    let mut server = Server::start(TREAD, &["nano", "--backend", "cpu", "--afd", "1A2F"]);
    let pids = ["attention", "ffn"].map(|kind| workers(&server, kind)).concat();
    assert!(pids.len() == 3 && pids.iter().all(|pid| running(*pid)));
    server.signal("KILL");
    server.wait();
    for _ in 0..200 {
        if !pids.iter().any(|pid| running(*pid)) {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("{pids:?} still run");
}

/// Whoever mixes back ends within a shard is told that tokens may depend on it.
#[test]
fn different_back_ends_of_a_shard_are_told_of() {
    for (ffn, shards, told) in [("cpu,wgpu", "1", true), ("cpu,cpu", "1", false), ("cpu,wgpu", "2", false)] {
        let server = Server::start(TREAD, &["nano", "--backend", "cpu", "--ffn", ffn, "--shards", shards]);
        // It serves when every shard has a worker; the other of a shard may come later.
        let joined = || server.log().matches("an FFN worker joins").count();
        while joined() < 2 {
            thread::sleep(Duration::from_millis(10));
        }
        let warned = || server.log().contains("workers of one shard are on different back ends");
        while told && !warned() {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(warned(), told, "{ffn}: {}", server.log());
    }
}
