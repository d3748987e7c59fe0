//! `tread bench --serve`: many requests at a server, in a closed loop or arriving at random.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

use super::client::{Client, Sample};
use super::report::{Level, Report};
use super::server::Server;
use crate::cli::{BenchArgs, LoadArgs, Span};

/// When requests are sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arrivals {
    /// So many at a time: the next one when one is answered.
    Concurrency(u32),
    /// So many a second on average, at random, however long answers take.
    Rate(f64),
}

pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let load = &args.load;
    let server = if load.url.is_none() { Some(Server::start(args)?) } else { None };
    let mut client = match (&server, &load.url) {
        (Some(server), _) => Client::new(&server.url, None, None)?,
        (None, url) => {
            let url = url.as_deref().unwrap_or_default();
            Client::new(url, load.api_key.as_deref(), args.model.as_deref())?
        }
    };
    (client.endpoint, client.strict) = (load.endpoint, load.strict);
    // Drivers finish compiling and caches fill at the first use; and what cannot work at all is told at once.
    client.send(args.prompt_tokens.least, args.new_tokens.least, &mut rng(load.seed, u64::MAX, 0))?;

    let arrivals = match load.rate {
        Some(rate) => vec![Arrivals::Rate(rate)],
        None => load.concurrency.iter().map(|&c| Arrivals::Concurrency(c)).collect(),
    };
    let mut report = Report::new(&client.model, load.seed);
    for (i, &arrivals) in arrivals.iter().enumerate() {
        let traffic = Traffic {
            client: &client,
            prompt: args.prompt_tokens,
            new: args.new_tokens,
            requests: requests(load, arrivals),
            duration: load.duration.map(Duration::from_secs_f64),
            seed: load.seed,
            level: i as u64,
        };
        let memory = || server.as_ref().and_then(Server::memory);
        let (before, start) = (memory(), Instant::now());
        let outcomes = traffic.run(arrivals);
        report.levels.push(Level::new(arrivals, start.elapsed(), &outcomes, [before, memory()]));
        if !args.json {
            report.print_last();
        }
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        report.print_errors();
    }
    Ok(())
}

/// Most requests of a level.
fn requests(load: &LoadArgs, arrivals: Arrivals) -> u64 {
    let default = match arrivals {
        _ if load.duration.is_some() => u64::MAX,
        Arrivals::Concurrency(concurrency) => (4 * u64::from(concurrency)).max(8),
        Arrivals::Rate(_) => 64,
    };
    load.requests.unwrap_or(default)
}

/// A generator for one request: neither the other requests nor their order change what it draws.
fn rng(seed: u64, level: u64, request: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, number) in key.as_chunks_mut::<8>().0.iter_mut().zip([seed, level, request]) {
        *bytes = number.to_le_bytes();
    }
    ChaCha8Rng::from_seed(key)
}

/// What is sent in one level.
struct Traffic<'a> {
    client: &'a Client,
    prompt: Span,
    new: Span,
    requests: u64,
    duration: Option<Duration>,
    seed: u64,
    /// Levels must not find each other's prompts in the server's prefix cache.
    level: u64,
}

impl Traffic<'_> {
    /// Sends all and waits for every answer.
    fn run(&self, arrivals: Arrivals) -> Vec<Result<Sample>> {
        let (sender, outcomes) = mpsc::channel();
        let (next, start) = (AtomicU64::new(0), Instant::now());
        thread::scope(|scope| match arrivals {
            Arrivals::Concurrency(concurrency) => {
                for _ in 0..u64::from(concurrency).min(self.requests) {
                    let (sender, next) = (sender.clone(), &next);
                    scope.spawn(move || {
                        while let Some(request) = self.admit(next.fetch_add(1, Ordering::Relaxed), start) {
                            let _ = sender.send(self.send(request));
                        }
                    });
                }
            }
            Arrivals::Rate(rate) => {
                let mut clock = rng(self.seed, self.level, u64::MAX);
                let mut due = Duration::ZERO;
                for request in 0.. {
                    thread::sleep(due.saturating_sub(start.elapsed()));
                    let Some(request) = self.admit(request, start) else { break };
                    let sender = sender.clone();
                    scope.spawn(move || sender.send(self.send(request)));
                    // The gaps of a Poisson process are distributed exponentially; `inf` makes them zero.
                    due += Duration::from_secs_f64(-(1.0 - clock.random::<f64>()).ln() / rate);
                }
            }
        });
        drop(sender);
        outcomes.into_iter().collect()
    }

    fn admit(&self, request: u64, start: Instant) -> Option<u64> {
        let in_time = self.duration.is_none_or(|duration| start.elapsed() < duration);
        (request < self.requests && in_time).then_some(request)
    }

    fn send(&self, request: u64) -> Result<Sample> {
        let mut rng = rng(self.seed, self.level, request);
        let prompt = rng.random_range(self.prompt.least..=self.prompt.most);
        let new = rng.random_range(self.new.least..=self.new.most);
        self.client.send(prompt, new, &mut rng)
    }
}
