//! The page of Tread: it chats, shows the machine, and runs the model itself where no server is.
//!
//! Two WebAssembly modules are built of this crate: `tread-page` is the user interface, `tread-engine` runs in a
//! dedicated worker and owns the device. They talk by the messages of [`protocol`].

pub mod chat;
pub mod engine;
pub mod monitor;
pub mod page;
pub mod protocol;
