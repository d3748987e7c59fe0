//! Where there is no NIXL, nothing is ever linked.

use bytes::Bytes;

use super::{Arrivals, Offer};

/// Why activations cannot go by NIXL.
pub fn missing() -> Option<&'static str> {
    Some("this tread was built without it: build on Linux with `--features cluster`")
}

#[derive(Debug)]
pub(in crate::afd::transport) enum Link {}

#[derive(Debug)]
pub(in crate::afd::transport) enum Posts {}

impl Link {
    pub(in crate::afd::transport) fn open(_slots: usize, _slot_bytes: usize) -> Result<Self, String> {
        Err(missing().unwrap_or_default().to_owned())
    }

    pub(in crate::afd::transport) fn offer(&self) -> Result<Offer, String> {
        match *self {}
    }

    pub(in crate::afd::transport) fn join(self, _theirs: &Offer) -> Result<(Posts, Arrivals), String> {
        match self {}
    }
}

impl Posts {
    pub(in crate::afd::transport) fn post(&self, _slot: usize, _frame: Bytes) {
        match *self {}
    }
}
