//! Which engine gets a request.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, mpsc};

use super::Command;
use super::status::{Each, Status};

/// Leading tokens of a prompt by which it finds the engine that may have them in its prefix cache.
const LEADING: usize = 64;

/// The engines of a server.
#[derive(Debug)]
pub(super) struct Engines {
    each: Vec<Engine>,
    status: Each,
}

#[derive(Debug)]
struct Engine {
    commands: mpsc::Sender<Command>,
    /// Sequences that it has.
    load: Arc<AtomicUsize>,
}

impl Engines {
    pub(super) fn new(commands: Vec<mpsc::Sender<Command>>, status: Each) -> Self {
        let engine = |commands| Engine { commands, load: Arc::default() };
        Self { each: commands.into_iter().map(engine).collect(), status }
    }

    pub(super) fn len(&self) -> usize {
        self.each.len()
    }

    /// The engine for a prompt: of those that live, and are not opening their device anew if another one is not, the one
    /// that prompts with this beginning go to, unless another one has clearly less to do. None when all are gone but the
    /// one that it must not be.
    pub(super) fn choose(&self, prompt: &[u32], not: Option<usize>) -> Option<usize> {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let living = |wanted: fn(&Status) -> bool| -> Vec<usize> {
            (0..self.each.len()).filter(|&engine| Some(engine) != not && wanted(&status[engine])).collect()
        };
        let mut candidates = living(|status| matches!(status, Status::Loading | Status::Ready(_)));
        if candidates.is_empty() {
            candidates = living(|status| !matches!(status, Status::Failed(_)));
        }
        let load = |&engine: &usize| self.each[engine].load.load(Ordering::Relaxed);
        let least = candidates.iter().map(load).min()?;
        let mut hasher = DefaultHasher::new();
        prompt[..prompt.len().min(LEADING)].hash(&mut hasher);
        let favourite = hasher.finish() as usize % candidates.len();
        candidates.rotate_left(favourite);
        candidates.into_iter().find(|engine| load(engine) <= least + 1)
    }

    /// The count of an engine's sequences.
    pub(super) fn load(&self, engine: usize) -> &Arc<AtomicUsize> {
        &self.each[engine].load
    }

    pub(super) fn send(&self, engine: usize, command: Command) {
        // A thread that is gone drops the command, and whoever waits for an answer hears of that.
        let _ = self.each[engine].commands.send(command);
    }

    pub(super) fn stop(&self) {
        (0..self.each.len()).for_each(|engine| self.send(engine, Command::Stop));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tread_core::cpu::Cpu;

    use super::super::status::Running;
    use super::*;

    fn engines(status: &[Status]) -> Engines {
        let senders = status.iter().map(|_| mpsc::channel().0).collect();
        Engines::new(senders, Arc::new(Mutex::new(status.to_vec())))
    }

    fn ready() -> Status {
        Status::Ready(Running::on(&Cpu::new()))
    }

    #[test]
    fn prompts_that_begin_alike_meet_unless_another_engine_is_idle() {
        let engines = engines(&[ready(), ready(), ready()]);
        let prompt: Vec<u32> = (0..100).collect();
        let first = engines.choose(&prompt, None).unwrap();
        let longer = [&prompt[..], &[7; 50]].concat();
        assert_eq!(engines.choose(&longer, None), Some(first));
        engines.load(first).store(1, Ordering::Relaxed);
        assert_eq!(engines.choose(&prompt, None), Some(first), "one more is not much");
        engines.load(first).store(2, Ordering::Relaxed);
        assert_ne!(engines.choose(&prompt, None), Some(first));
        let others: Vec<usize> = (0..50).filter_map(|token| engines.choose(&[token], None)).collect();
        assert!(
            (0..3).filter(|engine| *engine != first).all(|engine| others.contains(&engine)),
            "{others:?}"
        );
    }

    #[test]
    fn engines_that_are_gone_get_nothing() {
        let gone = || Status::Failed("gone".to_owned());
        for _ in 0..10 {
            assert_eq!(engines(&[gone(), ready(), gone()]).choose(&[1], None), Some(1));
            assert_eq!(engines(&[Status::Rebuilding, gone(), ready()]).choose(&[1], None), Some(2));
            assert_eq!(engines(&[gone(), Status::Rebuilding]).choose(&[1], None), Some(1));
            assert_eq!(engines(&[gone(), gone()]).choose(&[1], None), None);
            assert_eq!(engines(&[ready(), ready()]).choose(&[1], Some(0)), Some(1));
            assert_eq!(engines(&[gone(), ready()]).choose(&[1], Some(1)), None);
        }
    }
}
