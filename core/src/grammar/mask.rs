//! Sets of tokens.

use toktrie::SimpleVob;

/// Which tokens may come next, a bit each.
#[derive(Clone)]
pub struct TokenMask(SimpleVob);

impl TokenMask {
    /// The set of the `tokens` of a vocabulary of `size`; those outside it are left out.
    pub fn of(size: usize, tokens: impl IntoIterator<Item = u32>) -> Self {
        let mut set = SimpleVob::alloc(size);
        for token in tokens.into_iter().filter(|&token| (token as usize) < size) {
            set.allow_token(token);
        }
        Self(set)
    }

    /// Whether token `id` may come next.
    pub fn allows(&self, id: u32) -> bool {
        (id as usize) < self.0.len() && self.0.is_allowed(id)
    }

    /// Sets the logits (`[vocab]`) of all other tokens to minus infinity.
    pub(crate) fn rule_out(&self, logits: &mut [f32]) {
        let words = self.0.as_slice().iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(u32::BITS as usize).zip(words) {
            match word {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => {}
                _ => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

/// What grammars need to make them.
#[cfg(feature = "grammar")]
impl TokenMask {
    pub(super) fn new(tokens: SimpleVob) -> Self {
        Self(tokens)
    }

    /// Adds the tokens of `other`, a set of the same vocabulary.
    pub(super) fn allow(&mut self, other: &Self) {
        self.0.or(&other.0);
    }

    /// Takes a token out.
    pub(super) fn forbid(&mut self, token: u32) {
        if self.allows(token) {
            self.0.disallow_token(token);
        }
    }
}

impl std::fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenMask({} of {} tokens)", self.0.num_set(), self.0.len())
    }
}
