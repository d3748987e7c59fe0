//! Servers and workers as processes of their own.

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

/// `tread serve` or a worker on a free port, until it is dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts `binary` with `serve` and `args`; waits until it listens.
    ///
    /// # Panics
    /// When it ends before that.
    pub fn start(binary: &str, args: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.arg("serve").args(args).args(["--port", "0"]);
        Self::spawn(command)
    }

    /// Starts `binary` with `worker ffn` and `args`; waits until it listens.
    ///
    /// # Panics
    /// When it ends before that.
    pub fn ffn_worker(binary: &str, args: &[&str]) -> Self {
        Self::worker(binary, "ffn", args, &[])
    }

    /// The same with variables in its environment.
    ///
    /// # Panics
    /// As before.
    pub fn ffn_worker_with(binary: &str, args: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::worker(binary, "ffn", args, environment)
    }

    /// Starts `binary` with `worker attention` and `args`; waits until it listens.
    ///
    /// # Panics
    /// When it ends before that.
    pub fn attention_worker(binary: &str, args: &[&str]) -> Self {
        Self::worker(binary, "attention", args, &[])
    }

    fn worker(binary: &str, kind: &str, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary);
        command.args(["worker", kind]).args(args).envs(environment.iter().copied());
        Self::spawn(command)
    }

    /// Starts a server by a whole command; waits until it listens.
    ///
    /// # Panics
    /// When it ends before that.
    pub fn spawn(mut command: Command) -> Self {
        for name in ["HF_ENDPOINT", "HF_TOKEN", "TREAD_MODELS", "RUST_LOG"] {
            // What the test sets stays.
            if command.get_envs().all(|(set, _)| set != name) {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("tread starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, addresses) = mpsc::channel();
        keep(process.stdout.take(), &log, Some(sender));
        // What is logged may name others' addresses.
        keep(process.stderr.take(), &log, None);
        let Ok(address) = addresses.recv() else {
            panic!("{command:?} did not listen: {}", log.lock().unwrap());
        };
        Self { process, address, log }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What it printed so far.
    ///
    /// # Panics
    /// When a thread that reads it panicked.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// When the system has no `kill`.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal by its name.
    ///
    /// # Panics
    /// When the system has no `kill`.
    pub fn signal(&self, name: &str) {
        signal(self.process.id(), name);
    }

    /// The process, for signals from other threads.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// When the system does not tell.
    pub fn running(&mut self) -> bool {
        self.process.try_wait().expect("the process's state").is_none()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When the system does not tell.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait().expect("the process's state")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("The server's log:\n{}", self.log());
        }
    }
}

/// Sends a signal to a process.
///
/// # Panics
/// When the system has no `kill`, or the process is no more.
pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status();
    assert!(status.expect("kill starts").success());
}

/// Keeps the lines of a stream, and looks for the address in them if somebody wants it.
fn keep(
    stream: Option<impl Read + Send + 'static>,
    log: &Arc<Mutex<String>>,
    addresses: Option<mpsc::Sender<SocketAddr>>,
) {
    let (stream, log) = (stream.expect("a pipe"), Arc::clone(log));
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let url =
                line.split_once("http://").or_else(|| line.split_once("https://")).map(|(_, rest)| rest);
            let address = url.and_then(|rest| rest.split([' ', '/']).next()?.parse().ok());
            log.lock().unwrap().extend([&line, "\n"]);
            if let (Some(address), Some(addresses)) = (address, &addresses) {
                // Only the first is waited for.
                let _ = addresses.send(address);
            }
        }
    });
}
