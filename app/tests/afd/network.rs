//! Workers beyond a network that fails: each in a namespace of its own, joined to this one by a pair of interfaces.

use std::fs;
use std::io::Write as _;
use std::process::{Command, id};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use tread::afd::AfdOptions;
use tread::afd::transport::GrpcOptions;
use tread_core::afd::Sharding;
use tread_core::graph::EdgeDType;
use tread_tests::server::Server;

use crate::models::{model, tls};
use crate::refusals::TREAD;
use crate::streams::{engine, executable, expected, run};

/// A namespace; its address is 10.83.`number`.2, ours there 10.83.`number`.1.
struct Network {
    name: String,
    number: u8,
}

impl Network {
    /// Two of them. None where this is not permitted, which is said aloud.
    fn pair() -> Option<[Self; 2]> {
        Some([Self::new()?, Self::new()?])
    }

    fn new() -> Option<Self> {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        assert!(number < 16, "the certificate names 16 addresses");
        let name = format!("tread-{}-{number}", id());
        if let Err(why) = ip(&["netns", "add", &name]) {
            skip(&format!("network namespaces cannot be made here: {why}"));
            return None;
        }
        let network = Self { name, number };
        let ours = network.interface();
        let address = |host| format!("10.83.{number}.{host}/30");
        let made =
            ip(&["link", "add", &ours, "type", "veth", "peer", "name", "eth0", "netns", &network.name])
                .and_then(|()| ip(&["address", "add", &address(1), "dev", &ours]))
                .and_then(|()| ip(&["link", "set", &ours, "up"]))
                .and_then(|()| ip(&["-n", &network.name, "address", "add", &address(2), "dev", "eth0"]))
                .and_then(|()| ip(&["-n", &network.name, "link", "set", "eth0", "up"]));
        if let Err(why) = made {
            skip(&format!("namespaces cannot be joined here: {why}"));
            return None;
        }
        Some(network)
    }

    /// The name of our end; at most 15 characters.
    fn interface(&self) -> String {
        format!("td{}-{}", id(), self.number)
    }

    /// A worker of nano in it, with certificate and token.
    fn worker(&self) -> Server {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, TREAD, "worker", "ffn", "nano", "--backend", "cpu"]);
        command.args(["--listen", &format!("10.83.{}.2:4000", self.number)]);
        command.arg("--tls-cert").arg(tls("cert.pem")).arg("--tls-key").arg(tls("key.pem"));
        command.arg("--token-file").arg(tls("token"));
        Server::spawn(command)
    }

    /// Silence, in both directions.
    fn down(&self) {
        ip(&["link", "set", &self.interface(), "down"]).unwrap();
    }

    fn up(&self) {
        ip(&["link", "set", &self.interface(), "up"]).unwrap();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Both ends of the pair go with it.
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    succeed(Command::new("ip").args(args))
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {error}")) }
}

/// Tests that pass are silent, and this must not be.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED, nothing is tested: {why}");
}

fn options(workers: &[&Server]) -> AfdOptions {
    let file = |name| fs::read_to_string(tls(name)).unwrap().trim().to_owned();
    let addresses: Vec<_> = workers.iter().map(|worker| worker.address().to_string()).collect();
    AfdOptions {
        grpc: GrpcOptions {
            ca: Some(file("cert.pem")),
            token: Some(file("token")),
            ..GrpcOptions::default()
        },
        ..AfdOptions::new(addresses.join(",").parse().unwrap())
    }
}

/// Whatever `interfere` does before steps, sixteen streams say over two workers of one shard what one device says.
#[track_caller]
fn check(networks: &[Network; 2], interfere: impl FnMut(usize)) {
    let model = model("nano");
    let workers = networks.each_ref().map(Network::worker);
    let expected = expected(&model, Sharding::Layers, EdgeDType::F32);
    let afd = options(&[&workers[0], &workers[1]]);
    let mut engine = engine(&model, executable(&model, &afd).unwrap());
    assert_eq!(run(&model, &mut engine, interfere).unwrap(), expected);
}

/// No connection is closed: that nobody answers is all there is to notice.
#[test]
fn a_link_that_is_down_is_gone_round() {
    let Some(networks) = Network::pair() else { return };
    let [first, second] = &networks;
    check(&networks, |step| match step {
        4 => first.down(),
        10 => first.up(),
        12 => second.down(),
        // Now each has been away.
        20 => second.up(),
        22 => first.down(),
        _ => {}
    });
}

#[test]
fn a_partition_of_both_pools_is_waited_for() {
    let Some(networks) = Network::pair() else { return };
    let second = &networks[1];
    thread::scope(|scope| {
        check(&networks, |step| {
            if step == 6 {
                networks.iter().for_each(Network::down);
                scope.spawn(|| {
                    // Longer than it takes to give connections up.
                    thread::sleep(Duration::from_secs(6));
                    second.up();
                });
            }
        });
    });
}

/// What is sent meanwhile is lost, and sent again by TCP, or by the pool to the other worker.
#[test]
fn links_that_come_and_go_lose_nothing() {
    let Some(networks) = Network::pair() else { return };
    check(&networks, |step| {
        let network = &networks[step % 2];
        network.down();
        thread::sleep(Duration::from_millis(7 * (step as u64 % 5)));
        network.up();
    });
}

#[test]
fn delay_and_loss_lose_nothing() {
    let Some(networks) = Network::pair() else { return };
    for network in &networks {
        let interface = network.interface();
        let how = ["netem", "delay", "8ms", "6ms", "loss", "3%"];
        let added = succeed(Command::new("tc").args(["qdisc", "add", "dev", &interface, "root"]).args(how));
        if let Err(why) = added {
            return skip(&format!("this kernel delays and loses no packets on purpose: {why}"));
        }
    }
    check(&networks, |_| ());
}
