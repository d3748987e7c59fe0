//! Messages between the page and the worker that owns the engine.
//!
//! Each is a JavaScript object `{ json, files? }`: JSON of the types below, and the `File`s of [`ModelRef::Files`], which
//! only JavaScript can hand over.

use serde::{Deserialize, Serialize};
use tread_core::monitor::{Standing, StepEvent};

use crate::chat::{ChatEvent, ChatRequest};

/// What the page asks of the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToEngine {
    /// What can this browser do, and does it compute correctly? Answered by [`FromEngine::Probed`].
    Probe,
    /// Which files are kept? Answered by [`FromEngine::Stored`].
    List,
    /// How large is this model? Reads no more than headers. Answered by [`FromEngine::Inspected`].
    Inspect {
        /// The model.
        model: ModelRef,
        /// Tokens of prompt and answer together; none: what the model can, at most 4096.
        context: Option<usize>,
    },
    /// Download what is missing, check it, and put the model on the GPU in place of the one there. Answered by
    /// [`FromEngine::Unloaded`], [`FromEngine::Progress`] and [`FromEngine::Loaded`].
    Load {
        /// The model.
        model: ModelRef,
        /// As in [`ToEngine::Inspect`].
        context: Option<usize>,
        /// What is to compute it.
        #[serde(default)]
        compute: Compute,
    },
    /// Stop loading; what is downloaded stays for the next time.
    CancelLoad,
    /// Free the GPU. Answered by [`FromEngine::Unloaded`].
    Unload,
    /// Compare a kept model with the hashes of its download. Answered by [`FromEngine::Verified`].
    Verify {
        /// Name of the kept model.
        name: String,
    },
    /// Delete a kept model; if it is loaded, it is unloaded first. Answered by [`FromEngine::Stored`].
    Delete {
        /// Name of the kept model.
        name: String,
    },
    /// Answer a conversation. Answered by [`FromEngine::Chat`].
    Chat {
        /// Chosen by the page.
        id: u64,
        /// The conversation.
        request: ChatRequest,
    },
    /// Forget a request.
    Abort {
        /// The request.
        id: u64,
    },
    /// Send a [`FromEngine::Step`] for every step from now on, or stop doing so.
    Watch {
        /// Whether to send them.
        on: bool,
        /// Also measure, about once a second, every op of a step.
        ops: bool,
    },
    /// Measure prefill and decode of the loaded model. Answered by [`FromEngine::Measured`].
    Bench {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens written after it.
        new_tokens: usize,
    },
    /// Destroy the device, as a driver crash would: for tests, and to try what happens then.
    LoseDevice,
}

/// What computes a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// A real GPU that computes correctly, else the CPU.
    #[default]
    Auto,
    /// What the browser has for WebGPU, be it software.
    Gpu,
    /// The CPU.
    Cpu,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum ModelRef {
    /// By its name in `models/catalog.json` of the page's own origin.
    Catalog {
        /// The name.
        name: String,
    },
    /// A GGUF file, or a folder (or its config.json) with safetensors. `#sha256=HEX` behind a file's URL says what must
    /// be found there.
    Url {
        /// The address.
        url: String,
    },
    /// Files that the user chose; they come beside the message and are read where they are.
    Files {
        /// Their names.
        names: Vec<String>,
    },
    /// Kept from before.
    Stored {
        /// Its name in [`FromEngine::Stored`].
        name: String,
    },
}

/// What the worker tells the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromEngine {
    /// The answer to [`ToEngine::Probe`].
    Probed {
        /// What there is.
        capabilities: Capabilities,
    },
    /// Models kept in the browser's storage.
    Stored {
        /// All of them.
        models: Vec<StoredModel>,
        /// Bytes that all storage of this origin takes, and what the browser allows.
        used: Option<u64>,
        /// See `used`.
        quota: Option<u64>,
    },
    /// The answer to [`ToEngine::Inspect`].
    Inspected {
        /// The model asked about.
        model: ModelRef,
        /// What it is, or why it cannot be read.
        result: Result<ModelInfo, String>,
    },
    /// How far loading is.
    Progress {
        /// What is being done.
        stage: Stage,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The model can be asked now, or why not.
    Loaded {
        /// What it is, or the reason.
        result: Result<ModelInfo, Failure>,
    },
    /// No model is loaded any more.
    Unloaded,
    /// The answer to [`ToEngine::Verify`].
    Verified {
        /// The model.
        name: String,
        /// Nothing, or what is damaged.
        result: Result<(), String>,
    },
    /// News of a request.
    Chat {
        /// The request.
        id: u64,
        /// What happened.
        event: ChatEvent,
    },
    /// A step was made.
    Step {
        /// What it did.
        step: StepEvent,
        /// Where the engine stands after it.
        standing: Standing,
    },
    /// The answer to [`ToEngine::Bench`].
    Measured {
        /// What was measured, or why not.
        result: Result<Measurement, String>,
    },
    /// The device was lost, or ran out of memory. The worker opens it anew, and requests go on; [`FromEngine::Recovered`] or
    /// [`FromEngine::Loaded`] with an error follows.
    DeviceLost {
        /// What the browser said.
        message: String,
    },
    /// The device is back.
    Recovered,
}

/// What is being done while a model loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Bytes come from the network. Kernels compile meanwhile.
    Download,
    /// What is there already is compared with its hash.
    Check,
    /// Weights go to the GPU.
    Upload,
}

/// Why loading failed, and what that means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong, and what to do.
    pub message: String,
    /// What kind of thing went wrong.
    pub kind: FailureKind,
}

/// Kinds of failures that the page treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The user stopped it.
    Cancelled,
    /// The connection broke; trying again goes on where it stopped.
    Network,
    /// What was downloaded is not what was announced; it has been deleted.
    Corrupt,
    /// It does not fit: a smaller model would.
    Memory,
    /// The device failed.
    Device,
    /// Anything else.
    Other,
}

/// What a model is and what it needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// For people.
    pub name: String,
    /// `step3`, `llama`.
    pub architecture: String,
    /// Parameters in all.
    pub parameters: u64,
    /// Bytes still to be downloaded.
    pub download_bytes: u64,
    /// Bytes of weights on the GPU.
    pub weight_bytes: u64,
    /// Bytes of KV cache for the whole context.
    pub kv_bytes: u64,
    /// Tokens of prompt and answer together.
    pub context: usize,
    /// Most that the model can.
    pub max_context: usize,
    /// Why this device cannot hold it; none when it can, as far as a browser tells.
    pub obstacle: Option<String>,
    /// The device, once it is loaded.
    pub device: Option<String>,
    /// Whether its files have a chat template.
    pub chats: bool,
}

/// A model kept in the browser's storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredModel {
    /// Its folder's name, for people too.
    pub name: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes its files will have when they are complete.
    pub total: u64,
    /// Where it came from.
    pub url: String,
}

/// What this browser and its GPU can do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// None: this browser has no WebGPU, and why.
    pub adapter: Option<Adapter>,
    /// Why there is no adapter.
    pub reason: Option<String>,
    /// What the self-test found: a layer computed on the GPU compared with a stored vector.
    pub self_test: Option<SelfTest>,
    /// Models can be kept (origin private file system).
    pub storage: bool,
}

/// A GPU as WebGPU shows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Adapter {
    /// Vendor, architecture, description, as far as the browser tells.
    pub name: String,
    /// It runs on the CPU: right, but slow.
    pub software: bool,
    /// Limits that matter here.
    pub limits: Vec<(String, u64)>,
    /// Optional features that Tread looks for: name, and whether it is there.
    pub features: Vec<(String, bool)>,
}

/// The result of the self-test.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SelfTest {
    /// The GPU computes correctly.
    pub passed: bool,
    /// Largest difference from the stored vector, relative to its largest value.
    pub error: f32,
    /// What went wrong, if something did.
    pub message: Option<String>,
}

/// Speed of the loaded model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The model.
    pub model: String,
    /// The device.
    pub device: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens written.
    pub new_tokens: usize,
    /// Until the first token, in seconds.
    pub time_to_first_token_s: f64,
    /// Prompt tokens a second.
    pub prefill_tokens_per_s: f64,
    /// Written tokens a second after the first.
    pub decode_tokens_per_s: f64,
}

#[cfg(test)]
mod tests;
