//! One side of a connection: an agent with its slots, and what it reads from the other's.
//!
//! Each connection has an agent of its own, under a name that is never used again. That costs some file descriptors and
//! megabytes, but nothing of a connection that has ended can be met in another one.

use std::sync::OnceLock;

use bytes::Bytes;
use nixl_sys::{
    Agent, AgentConfig, MemType, NixlError, NotificationMap, RegistrationHandle, XferDescList, XferOp,
    XferRequest, XferStatus,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::memory::{Memory, end_without_destructors};
use super::poller::{self, Posts};
use super::{Arrivals, Offer};

/// The back end of NIXL, for RDMA, shared memory and TCP.
const UCX: &str = "UCX";
/// UCX notices that a peer is gone (`ucx_error_handling_mode` is `peer`, the default), and then names requests in messages
/// by numbers that it looks up, not by addresses: what comes late from a peer that was given up is dropped. On one host it
/// would use TCP alone for that, unless it is told that the ways through memory can do so too.
const ENGINE_CONFIG: (&str, &str) = ("engine_config", "MM_ERROR_HANDLING=y,CMA_ERROR_HANDLING=y");
/// Bytes of a notification: slot and length, little-endian.
const NOTE: usize = 8;

const NO_LIBRARY: &str = "its library is not found. `pip install --no-deps --target DIR nixl-cu12==1.5.1`, then set \
     LD_LIBRARY_PATH=DIR/.nixl_cu12.mesonpy.libs and NIXL_PLUGIN_DIR=DIR/.nixl_cu12.mesonpy.libs/plugins";
const NO_PLUGIN: &str =
    "its UCX plugin is not found. Set NIXL_PLUGIN_DIR to the folder that has libplugin_UCX.so";

/// Why activations cannot go by NIXL, and what to do about it. None: they can.
pub fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<&str>> = OnceLock::new();
    *MISSING.get_or_init(|| {
        // Without its library any other call aborts the process.
        if nixl_sys::is_stub() {
            return Some(NO_LIBRARY);
        }
        let plugin = Agent::new("probe").and_then(|agent| agent.get_plugin_params(UCX));
        // Now that the library has loaded what it needs.
        end_without_destructors();
        plugin.is_err().then_some(NO_PLUGIN)
    })
}

/// One side of a connection.
pub(in crate::afd::transport) struct Link {
    // In the order in which they must go: memory is freed when neither NIXL nor a device can fill it any more.
    /// What is being read from the other's slots.
    reads: Vec<Option<Read>>,
    _registrations: [RegistrationHandle; 2],
    agent: Agent,
    /// Whither the other's slots are read.
    inbox: Memory,
    /// What the other reads.
    outbox: Memory,
    slot_bytes: usize,
    /// The other side, once it is known.
    peer: Peer,
}

struct Read {
    request: XferRequest,
    length: usize,
}

struct Peer {
    name: String,
    address: usize,
    arrived: UnboundedSender<Result<Bytes, String>>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer.name).finish_non_exhaustive()
    }
}

impl Link {
    /// So many slots each way. Takes some tens of milliseconds.
    ///
    /// # Errors
    /// What NIXL could not do.
    pub(in crate::afd::transport) fn open(slots: usize, slot_bytes: usize) -> Result<Self, String> {
        if let Some(why) = missing() {
            return Err(why.to_owned());
        }
        let new =
            || Memory::new(slots, slot_bytes).ok_or_else(|| format!("{slots} slots of {slot_bytes} bytes"));
        let (inbox, outbox) = (new()?, new()?);
        // Whoever has a link drives it: a thread of the library's own would only take processors away.
        let config = AgentConfig { enable_prog_thread: false, ..AgentConfig::default() };
        let name = uuid::Uuid::new_v4().to_string();
        let agent = Agent::new_configured(&name, &config).map_err(failed("an agent"))?;
        let (_, mut parameters) = agent.get_plugin_params(UCX).map_err(failed("the UCX plugin"))?;
        let (key, value) = ENGINE_CONFIG;
        parameters.set(key, value).map_err(failed("its parameters"))?;
        agent.create_backend(UCX, &parameters).map_err(failed("the UCX back end"))?;
        let register = |memory| agent.register_memory(memory, None).map_err(failed("registering memory"));
        let registrations = [register(&inbox)?, register(&outbox)?];
        let reads = std::iter::repeat_with(|| None).take(slots).collect();
        let peer = Peer { name: String::new(), address: 0, arrived: unbounded_channel().0 };
        Ok(Self { reads, _registrations: registrations, agent, inbox, outbox, slot_bytes, peer })
    }

    /// What the other side must know to read this one's slots.
    ///
    /// # Errors
    /// What NIXL could not do.
    pub(in crate::afd::transport) fn offer(&self) -> Result<Offer, String> {
        let metadata = self.agent.get_local_md().map_err(failed("its metadata"))?.into();
        let address = self.outbox.address(0, 0).unwrap_or_default();
        Ok(Offer { metadata, address, slot_bytes: self.slot_bytes })
    }

    /// Begins to read what the other side offers.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(in crate::afd::transport) fn join(mut self, theirs: &Offer) -> Result<(Posts, Arrivals), String> {
        if theirs.slot_bytes != self.slot_bytes {
            return Err(format!("slots of {} bytes where {} are", theirs.slot_bytes, self.slot_bytes));
        }
        if theirs.address.checked_add(self.reads.len() * self.slot_bytes).is_none() {
            return Err(format!("slots that begin at {:#x} end nowhere", theirs.address));
        }
        let (arrived, arrivals) = unbounded_channel();
        let name = self.agent.load_remote_md(&theirs.metadata).map_err(failed("the other's metadata"))?;
        self.peer = Peer { name, address: theirs.address, arrived };
        Ok((poller::add(self)?, Arrivals(Some(arrivals))))
    }

    /// Puts a frame into a slot and tells the other side.
    ///
    /// # Errors
    /// Why the link is of no use any more.
    pub(super) fn post(&mut self, slot: usize, frame: &[u8]) -> Result<(), String> {
        let whole = self.outbox.write(slot, frame);
        whole.ok_or_else(|| format!("a frame of {} bytes for slot {slot} has no room", frame.len()))?;
        let note = [(slot as u32).to_le_bytes(), (frame.len() as u32).to_le_bytes()].concat();
        self.agent.send_notification(&self.peer.name, &note, None).map_err(failed("notifying"))
    }

    /// Does what can be done at this moment, and hands on what has come. Whether there was anything.
    ///
    /// # Errors
    /// Why the link is of no use any more.
    pub(super) fn progress(&mut self) -> Result<bool, String> {
        // A new one each time: it can be emptied only by a call that takes notifications for text.
        let mut notes = NotificationMap::new().map_err(failed("notifications"))?;
        self.agent.get_notifications(&mut notes, None).map_err(failed("notifications"))?;
        let mut any = !notes.is_empty().map_err(failed("notifications"))?;
        if any {
            for note in notes.get_notifications(&self.peer.name).map_err(failed("notifications"))? {
                self.begin(&note.map_err(failed("a notification"))?)?;
            }
        }
        for slot in 0..self.reads.len() {
            any |= self.finish(slot)?;
        }
        Ok(any)
    }

    /// Begins to read what a notification tells of.
    fn begin(&mut self, note: &[u8]) -> Result<(), String> {
        let wrong = || format!("the notification {note:?} makes no sense");
        let note: [u8; NOTE] = note.try_into().map_err(|_| wrong())?;
        let number =
            |at: usize| u32::from_le_bytes([note[at], note[at + 1], note[at + 2], note[at + 3]]) as usize;
        let (slot, length) = (number(0), number(4));
        let address = self.inbox.address(slot, length).filter(|_| length > 0).ok_or_else(wrong)?;
        if self.reads[slot].is_some() {
            return Err(format!("slot {slot} is told of twice"));
        }
        let list = |address| -> Result<_, NixlError> {
            let mut list = XferDescList::new(MemType::Dram)?;
            list.add_desc(address, length, 0);
            Ok(list)
        };
        let read = || {
            let theirs = list(self.peer.address + slot * self.slot_bytes)?;
            let request =
                self.agent.create_xfer_req(XferOp::Read, &list(address)?, &theirs, &self.peer.name, None)?;
            self.agent.post_xfer_req(&request, None)?;
            Ok(Read { request, length })
        };
        self.reads[slot] = Some(read().map_err(failed("reading"))?);
        Ok(())
    }

    /// Hands on what has been read into a slot. Whether anything was.
    fn finish(&mut self, slot: usize) -> Result<bool, String> {
        let Some(Read { request, length }) = &self.reads[slot] else { return Ok(false) };
        if self.agent.get_xfer_status(request).map_err(failed("reading"))? == XferStatus::InProgress {
            return Ok(false);
        }
        if let Some(frame) = self.inbox.read(slot, *length) {
            // Whoever was to have it may be gone.
            let _ = self.peer.arrived.send(Ok(frame));
        }
        self.reads[slot] = None;
        Ok(true)
    }

    /// Says why nothing more will come.
    pub(super) fn fail(&self, why: String) {
        let _ = self.peer.arrived.send(Err(why));
    }
}

/// Names what NIXL, which says little, could not do.
fn failed(what: &str) -> impl Fn(NixlError) -> String {
    move |error| format!("NIXL, {what}: {error}")
}
