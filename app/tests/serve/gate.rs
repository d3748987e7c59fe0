//! A device that computes only when a test lets it, and that can be lost.

use std::sync::{Arc, Condvar, Mutex};

use tread::serve::OpenDevice;
use tread_core::backend::{Backend, CompileOptions, Executable, LocalFuture, Output, Stats, Work};
use tread_core::cpu::Cpu;
use tread_core::graph::Graph;
use tread_core::tensor::Tensor;
use tread_core::{Error, Result};

/// What the test holds.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug)]
struct State {
    /// Steps that may be made.
    steps: usize,
    /// Steps that were begun.
    begun: usize,
    /// The device fails until it is opened anew.
    lost: bool,
    /// Something that the next step needs is not there.
    lacking: bool,
    /// Every device fails.
    broken: bool,
    /// Attempts to open it that fail.
    refusals: usize,
}

impl Gate {
    /// A device that makes no step yet.
    pub(super) fn closed() -> Self {
        let state = State { steps: 0, begun: 0, lost: false, lacking: false, broken: false, refusals: 0 };
        Self(Arc::new((Mutex::new(state), Condvar::new())))
    }

    pub(super) fn device(&self) -> OpenDevice {
        let gate = self.clone();
        Box::new(move || {
            let mut state = gate.0.0.lock().unwrap();
            if state.refusals > 0 {
                state.refusals -= 1;
                anyhow::bail!("the device does not answer");
            }
            state.lost = false;
            Ok(Box::new(Gated { cpu: Cpu::new(), gate: gate.clone() }) as Box<dyn Backend>)
        })
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    /// Lets so many more steps be made.
    pub(super) fn let_steps(&self, steps: usize) {
        self.change(|state| state.steps = state.steps.saturating_add(steps));
    }

    /// Lets everything be computed.
    pub(super) fn open(&self) {
        self.let_steps(usize::MAX);
    }

    /// Loses the device; so many attempts to open it again fail.
    pub(super) fn lose(&self, refusals: usize) {
        self.change(|state| {
            state.lost = true;
            state.refusals = refusals;
        });
    }

    /// Lets the step that waits fail, as when no worker of a pool answers.
    pub(super) fn lack(&self) {
        self.change(|state| state.lacking = true);
    }

    /// Loses the device, and every one that is opened instead.
    pub(super) fn break_for_good(&self) {
        self.change(|state| state.broken = true);
    }

    /// Steps that were begun.
    pub(super) fn begun(&self) -> usize {
        self.0.0.lock().unwrap().begun
    }

    /// Waits until so many steps were begun.
    pub(super) fn wait_for_steps(&self, steps: usize) {
        let state = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(state, |state| state.begun < steps).unwrap());
    }

    /// Waits to be let through.
    fn pass(&self) -> Result<()> {
        let mut state = self.0.0.lock().unwrap();
        state.begun += 1;
        self.0.1.notify_all();
        let waits = |state: &mut State| state.steps == 0 && !state.lost && !state.lacking && !state.broken;
        state = self.0.1.wait_while(state, waits).unwrap();
        if std::mem::take(&mut state.lacking) {
            return Err(Error::Unavailable("no FFN worker answered".into()));
        }
        if state.lost || state.broken {
            return Err(Error::Device("pulled out".into()));
        }
        state.steps -= usize::from(state.steps < usize::MAX);
        Ok(())
    }
}

#[derive(Debug)]
struct Gated<T> {
    cpu: T,
    gate: Gate,
}

impl Backend for Gated<Cpu> {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn device(&self) -> String {
        self.cpu.device()
    }

    fn compile<'a>(
        &'a self,
        graph: &'a Graph,
        weights: &'a [Tensor],
        options: CompileOptions,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> LocalFuture<'a, Result<Box<dyn Executable>>> {
        Box::pin(async move {
            let cpu = self.cpu.compile(graph, weights, options, progress).await?;
            Ok(Box::new(Gated { cpu, gate: self.gate.clone() }) as Box<dyn Executable>)
        })
    }
}

impl Executable for Gated<Box<dyn Executable>> {
    fn run<'a>(&'a mut self, work: Work<'_>) -> Result<LocalFuture<'a, Result<Output<'a>>>> {
        self.gate.pass()?;
        self.cpu.run(work)
    }

    fn stats(&self) -> Stats {
        self.cpu.stats()
    }

    fn options(&self) -> &CompileOptions {
        self.cpu.options()
    }
}
