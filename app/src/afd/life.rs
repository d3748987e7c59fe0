//! The lives of a worker. One whose lease has run out is dead to others, so it must not speak as who it was.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Which life it is, and for how long it may speak.
#[derive(Debug)]
pub(super) struct Life {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug)]
struct Now {
    incarnation: u64,
    /// None: for ever.
    until: Option<Instant>,
}

impl Life {
    /// A life without an end.
    pub(super) fn begin() -> Self {
        Self { now: Mutex::new(Now { incarnation: another(), until: None }), changed: Condvar::new() }
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.now().incarnation
    }

    /// It may speak until then; none: for ever.
    pub(super) fn answer_until(&self, until: Option<Instant>) {
        self.now().until = until;
        self.changed.notify_all();
    }

    /// Another life, in which it may not speak yet.
    pub(super) fn begin_anew(&self) {
        *self.now() = Now { incarnation: another(), until: Some(Instant::now()) };
        self.changed.notify_all();
    }

    /// Waits until it may speak, and says in which life.
    pub(super) fn may_answer(&self) -> u64 {
        let ended = |now: &mut Now| now.until.is_some_and(|until| until <= Instant::now());
        let now = self.changed.wait_while(self.now(), ended);
        now.unwrap_or_else(PoisonError::into_inner).incarnation
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn another() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_may_not_speak_waits_and_then_speaks_as_who_it_is() {
        let life = Life::begin();
        let first = life.incarnation();
        assert_eq!(life.may_answer(), first);
        life.answer_until(Some(Instant::now() + Duration::from_secs(3600)));
        assert_eq!(life.may_answer(), first);
        life.answer_until(Some(Instant::now()));
        thread::scope(|scope| {
            let (said, heard) = mpsc::channel();
            let life = &life;
            let speaker = scope.spawn(move || said.send(life.may_answer()).unwrap());
            life.begin_anew();
            assert!(heard.try_recv().is_err(), "it speaks before it may");
            life.answer_until(None);
            speaker.join().unwrap();
            assert_ne!(heard.recv(), Ok(first));
        });
        assert_eq!(life.may_answer(), life.incarnation());
    }
}
