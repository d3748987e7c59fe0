//! Many requests on one executable: continuous batching over a paged KV cache with prefix reuse.

mod request;

use std::sync::Arc;

pub use request::{
    Delta, EngineStats, Event, Finish, Generate, PromptLogprobs, Request, RequestId, StepReport, Task,
};

use crate::Result;
use crate::backend::Executable;
use crate::model::Model;

/// Limits of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Most tokens of prompt and continuation together.
    pub context_length: usize,
    /// Most sequences in one step.
    pub max_sequences: usize,
    /// Keep the blocks of finished sequences for prompts that begin alike.
    pub prefix_cache: bool,
}

/// Requests in, events out, one step at a time. Owned by one thread or task.
#[derive(Debug)]
pub struct Engine {}

impl Engine {
    /// An engine for `model`, compiled as `executable`.
    pub fn new(model: Arc<Model>, executable: Box<dyn Executable>, options: EngineOptions) -> Self {
        let _ = (model, executable, options);
        todo!()
    }
    /// Takes a request in; its events come from [`Engine::step`].
    ///
    /// # Errors
    /// [`crate::Error::Capacity`] when it can never fit, [`crate::Error::Text`] when its tokens, [`crate::Error::Config`]
    /// when its parameters are not valid.
    pub fn submit(&mut self, id: RequestId, request: Request) -> Result<()> {
        let _ = (id, request);
        todo!()
    }
    /// Forgets a request; no more of its events come, and its blocks are free (but stay in the prefix cache).
    pub fn abort(&mut self, id: RequestId) {
        let _ = id;
        todo!()
    }
    /// Whether [`Engine::step`] has something to do.
    pub fn has_work(&self) -> bool {
        todo!()
    }
    /// Runs one step and returns what happened, in order. Without work it returns at once.
    ///
    /// # Errors
    /// [`crate::Error::Device`] when the device failed: nothing is lost; give the engine a new executable with
    /// [`Engine::recover`] and go on. Errors of a single request are events of that request.
    pub async fn step(&mut self) -> Result<Vec<(RequestId, Event)>> {
        todo!()
    }
    /// Goes on with a newly compiled executable of the same model after the device failed: every sequence is computed
    /// again from its tokens, and continues as if nothing had happened.
    pub fn recover(&mut self, executable: Box<dyn Executable>) {
        let _ = executable;
        todo!()
    }
    /// What the last step did.
    pub fn last_step(&self) -> StepReport {
        todo!()
    }
    /// Where the engine stands.
    pub fn stats(&self) -> EngineStats {
        todo!()
    }
    /// The executable, for its statistics.
    pub fn executable(&self) -> &dyn Executable {
        todo!()
    }
}
