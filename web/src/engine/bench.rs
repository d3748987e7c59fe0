//! Speed of the loaded model, as `tread bench` defines it: a prompt from nothing, then token after token, each the
//! likeliest.

use tread_core::engine::{Event, Generate, Request, Task};
use tread_core::sampling::SamplingParams;
use web_time::Instant;

use super::failure::in_a_browser;
use crate::protocol::Measurement;

/// A measurement in the making: once to warm up, for drivers finish compiling at the first use, then the real one.
#[derive(Debug)]
pub(super) struct Bench {
    prompt_tokens: usize,
    new_tokens: usize,
    vocab_size: usize,
    /// Makes every prompt a new one, so that the prefix cache holds nothing of it.
    round: u32,
    warm: bool,
    start: Instant,
    first: Option<Instant>,
    tokens: usize,
}

/// What comes after an event.
#[derive(Debug)]
pub(super) enum Next {
    /// More events.
    Wait,
    /// A further request.
    Ask(Request),
    /// The end.
    Done(Result<Measurement, String>),
}

impl Bench {
    /// A measurement of a prompt of `prompt_tokens` and `new_tokens` after it, and its first request.
    ///
    /// # Errors
    /// When there is nothing to measure, or it does not fit the context.
    pub(super) fn new(
        [prompt_tokens, new_tokens]: [usize; 2],
        vocab_size: usize,
        context: usize,
        round: u32,
    ) -> Result<(Self, Request), String> {
        if prompt_tokens == 0 || new_tokens < 2 {
            return Err("there must be at least one token in the prompt and two after it".to_owned());
        }
        if prompt_tokens.saturating_add(new_tokens) > context {
            return Err(format!(
                "{prompt_tokens} + {new_tokens} tokens exceed the context of {context}: choose fewer, or load the model \
                 with a longer context"
            ));
        }
        let start = Instant::now();
        let bench =
            Self { prompt_tokens, new_tokens, vocab_size, round, warm: false, start, first: None, tokens: 0 };
        let request = bench.request(2);
        Ok((bench, request))
    }

    fn request(&self, new_tokens: usize) -> Request {
        let seed = 2 * self.round + u32::from(self.warm);
        // Spread over the vocabulary; the first token already tells every prompt from the others.
        let token = |n: u32| n.wrapping_add(seed).wrapping_mul(2_654_435_761) % self.vocab_size.max(1) as u32;
        let generate = Generate {
            sampling: SamplingParams::greedy(),
            max_tokens: new_tokens,
            ignore_eos: true,
            ..Generate::default()
        };
        let prompt = (0..self.prompt_tokens as u32).map(token).collect();
        Request { prompt, task: Task::Generate(Box::new(generate)) }
    }

    /// Takes an event of the last request.
    pub(super) fn take(&mut self, event: &Event) -> Next {
        match event {
            Event::Delta(delta) => {
                self.tokens += usize::from(delta.token.is_some());
                self.first.get_or_insert_with(Instant::now);
                Next::Wait
            }
            Event::Failed(error) => Next::Done(Err(in_a_browser(&error.to_string()))),
            Event::Done if self.warm => Next::Done(Ok(self.measured())),
            Event::Done => {
                (self.warm, self.first, self.tokens, self.start) = (true, None, 0, Instant::now());
                Next::Ask(self.request(self.new_tokens))
            }
            Event::Prompt { .. } | Event::Features(_) => Next::Wait,
        }
    }

    fn measured(&self) -> Measurement {
        let first = self.first.unwrap_or(self.start);
        let (prefill, decode) = ((first - self.start).as_secs_f64(), first.elapsed().as_secs_f64());
        Measurement {
            prompt_tokens: self.prompt_tokens,
            new_tokens: self.tokens,
            time_to_first_token_s: prefill,
            prefill_tokens_per_s: self.prompt_tokens as f64 / prefill.max(1e-9),
            // The first token is prefill's.
            decode_tokens_per_s: self.tokens.saturating_sub(1) as f64 / decode.max(1e-9),
            ..Measurement::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use tread_core::Error;
    use tread_core::engine::{Delta, Event, Request, Task};

    use super::{Bench, Next};

    fn token() -> Event {
        Event::Delta(Delta { token: Some(1), ..Delta::default() })
    }

    fn asked(request: &Request) -> (usize, bool) {
        let Task::Generate(generate) = &request.task else { panic!("{request:?}") };
        (generate.max_tokens, generate.ignore_eos && generate.sampling.temperature == 0.0)
    }

    #[test]
    fn it_warms_up_and_then_measures_another_prompt() {
        let (mut bench, warm) = Bench::new([20, 5], 100, 64, 3).unwrap();
        assert_eq!((warm.prompt.len(), asked(&warm)), (20, (2, true)));
        assert!(matches!(bench.take(&token()), Next::Wait));
        let Next::Ask(real) = bench.take(&Event::Done) else { panic!() };
        assert_eq!((real.prompt.len(), asked(&real)), (20, (5, true)));
        let (_, later) = Bench::new([20, 5], 100, 64, 4).unwrap();
        assert!(real.prompt[0] != warm.prompt[0] && later.prompt[0] != real.prompt[0]);
        for _ in 0..5 {
            assert!(matches!(bench.take(&token()), Next::Wait));
        }
        let Next::Done(Ok(measured)) = bench.take(&Event::Done) else { panic!() };
        assert_eq!((measured.prompt_tokens, measured.new_tokens), (20, 5));
        assert!(measured.prefill_tokens_per_s > 0.0 && measured.decode_tokens_per_s > 0.0);
    }

    #[test]
    fn what_cannot_be_measured_is_said() {
        assert!(Bench::new([60, 5], 100, 64, 0).unwrap_err().contains("exceed the context of 64"));
        assert!(Bench::new([0, 5], 100, 64, 0).is_err() && Bench::new([5, 1], 100, 64, 0).is_err());
        let (mut bench, _) = Bench::new([5, 5], 100, 64, 0).unwrap();
        let failed = bench.take(&Event::Failed(Error::Capacity("full".into())));
        assert!(matches!(failed, Next::Done(Err(message)) if message == "full"));
    }
}
