//! Who comes and goes leaves nothing behind.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tread::afd::hello::Hello;
use tread::afd::pool::{Pool, Static};
use tread::afd::transport::{Grpc, GrpcOptions};
use tread::afd::{Place, shape, terms};
use tread_core::afd::{Call, Ffn as _, Layout, Sharding};
use tread_core::graph::EdgeDType;

use crate::models::model;
use crate::processes::{CARRIERS, worker};

const ROWS: usize = 512;
const CYCLES: usize = 200;
/// What a process has that it should not have more of: threads, file descriptors, files in shared memory.
const COUNTS: [&str; 3] = ["threads", "file descriptors", "files in /dev/shm"];

fn counts(process: u32) -> [usize; 3] {
    let count = |path: &str| fs::read_dir(path).unwrap().count();
    let mapped = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let mapped = mapped.lines().filter(|line| line.contains("/dev/shm/")).count();
    [count(&format!("/proc/{process}/task")), count(&format!("/proc/{process}/fd")), mapped]
}

/// Bytes of a process that are in memory.
fn resident(process: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn two_hundred_attentions_leave_nothing_behind() {
    let model = model("nano");
    let (sharding, dtype) = (Sharding::Layers, EdgeDType::F32);
    let layout = Arc::new(Layout::new(&shape(&model.graph, sharding, dtype), sharding, 1).unwrap());
    let hello = Hello { terms: terms(&model, sharding, 1, dtype).unwrap(), max_rows: ROWS, slots: 2 };
    let frame = tread_core::afd::frame::most_bytes(&layout, 0, ROWS);
    for &carrier in CARRIERS {
        let worker = worker("nano", "0/1", &[]);
        let place = Place::Address(worker.address().to_string());
        let grpc = Arc::new(Grpc::new(GrpcOptions { carrier, ..GrpcOptions::default() }));
        let cycle = || {
            let members = Arc::new(Static(vec![place.clone()]));
            let grpc = Arc::clone(&grpc);
            let mut pool =
                Pool::start(Arc::clone(&layout), hello.clone(), members, grpc, Duration::from_secs(60))
                    .unwrap();
            let inputs =
                layout.edges(0).0.iter().map(|edge| vec![1.0; ROWS * layout.graph().value(edge.value).width]);
            pool.post(Call { step: 1, micro_batch: 0, layer: 0, rows: ROWS, inputs: inputs.collect() })
                .unwrap();
            pollster::block_on(pool.answer()).unwrap();
        };
        (0..20).for_each(|_| cycle());
        let (counted, bytes) = (counts(worker.id()), resident(worker.id()));
        (0..CYCLES).for_each(|_| cycle());
        // The last to go may still be on its way.
        let end = (0..100).map(|_| {
            thread::sleep(Duration::from_millis(100));
            counts(worker.id())
        });
        let mut end = end.skip_while(|now| (0..COUNTS.len()).any(|at| now[at] > counted[at]));
        let now = end.next().unwrap_or_else(|| counts(worker.id()));
        for (at, name) in COUNTS.iter().enumerate() {
            assert!(now[at] <= counted[at], "{carrier:?}: {} {name}, and then {}", counted[at], now[at]);
        }
        // A call and its answer, left behind each time, would be many times as much.
        let more = resident(worker.id()).saturating_sub(bytes);
        assert!(more < 2 * frame * CYCLES / 8, "{carrier:?}: {more} bytes more, frames have {frame}");
    }
}
