//! What stands for grammars in builds without llguidance, which is as large as the rest of a browser's engine: there are
//! none, and so nothing here can be called.

#[path = "mask.rs"]
mod mask;

pub use mask::TokenMask;

use crate::Result;

/// No grammar: this build has none.
#[derive(Clone, Debug)]
pub enum Grammar {}

impl Grammar {
    pub(crate) fn mask(&mut self) -> Result<TokenMask> {
        match *self {}
    }

    pub(crate) fn accept(&mut self, _token: u32) -> Result<()> {
        match *self {}
    }

    pub(crate) fn is_complete(&self) -> bool {
        match *self {}
    }
}
