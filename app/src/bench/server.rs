//! A server of our own, in a process of its own so that it measures as one.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use tread_shaders::Selector;

use crate::cli::BenchArgs;

/// `tread serve`, until it is dropped.
pub(super) struct Server {
    process: Child,
    pub(super) url: String,
}

impl Server {
    /// Starts it and waits until it listens, which it does when the model is loaded.
    pub(super) fn start(args: &BenchArgs) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").args(&args.model).args(["--port", "0"]);
        command.args(["--backend", &name(&args.backend), "--kv", &name(&args.kv)]);
        match &args.adapter {
            Some(Selector::Index(index)) => _ = command.arg("--adapter").arg(index.to_string()),
            Some(Selector::Name(name)) => _ = command.arg("--adapter").arg(name),
            Some(Selector::Best) | None => {}
        }
        command
            .args(&args.load.serve_args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn().context("cannot start `tread serve`")?;
        let (sender, lines) = mpsc::channel();
        forward(process.stdout.take(), &sender);
        forward(process.stderr.take(), &sender);
        // The loops above hold the only senders: when the process ends, so does the iteration below.
        drop(sender);
        let mut said = vec![];
        for line in lines {
            if let Some(url) = address(&line) {
                return Ok(Self { process, url });
            }
            said.push(line);
        }
        let status = process.wait()?;
        bail!("`tread serve` ended before it listened ({status}): {}", said.join("\n"));
    }

    /// Bytes of memory that it holds now.
    pub(super) fn memory(&self) -> Option<u64> {
        crate::memory::resident(self.process.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which the requests' errors have told.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a choice is called on the command line.
fn name(choice: &impl ValueEnum) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Reads a stream to its end, so that its writer never waits, and passes its lines on while they are wanted.
fn forward(stream: Option<impl Read + Send + 'static>, lines: &mpsc::Sender<String>) {
    let (Some(stream), lines) = (stream, lines.clone()) else { return };
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
}

/// The URL in the line that says where the server listens.
fn address(line: &str) -> Option<String> {
    let start = line.find("http://")?;
    line[start..].split_whitespace().next().map(str::to_owned)
}
