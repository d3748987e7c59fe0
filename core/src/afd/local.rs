//! FFN workers in this process, on this thread: for browsers, and for tests of everything else.

use std::collections::VecDeque;
use std::slice;
use std::sync::Arc;

use super::{Answer, Call, Ffn, Layout, Worker};
use crate::backend::LocalFuture;
use crate::{Error, Result};

/// Workers that compute when they are asked for their answer.
#[derive(Debug)]
pub struct LocalFfn {
    layout: Arc<Layout>,
    workers: Vec<Worker>,
    calls: VecDeque<Call>,
}

impl LocalFfn {
    /// One worker for each shard, in their order.
    pub fn new(layout: Arc<Layout>, workers: Vec<Worker>) -> Self {
        Self { layout, workers, calls: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<Answer> {
        let Some(call) = self.calls.pop_front() else {
            return Err(Error::Device("an answer was awaited that nobody was asked for".to_owned()));
        };
        let mut answer = self.layout.begin(&call);
        for shard in self.layout.wanted(&call) {
            let (outputs, us) = self.workers[shard].compute(slice::from_ref(&call)).await?;
            self.layout.add(&mut answer, &call, shard, &outputs[0], us);
        }
        Ok(answer)
    }
}

impl Ffn for LocalFfn {
    fn post(&mut self, call: Call) -> Result<()> {
        self.calls.push_back(call);
        Ok(())
    }

    fn answer(&mut self) -> LocalFuture<'_, Result<Answer>> {
        Box::pin(self.next())
    }

    fn describe(&self) -> (String, u64) {
        let bytes = self.workers.iter().map(|w| w.executable().stats().weight_bytes).sum();
        (format!("{} workers in this process", self.workers.len()), bytes)
    }
}
