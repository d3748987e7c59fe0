//! Names for well-known models.

/// A model that has a name of its own.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// `org/name[:file.gguf]` on the hub; none: inside the binary.
    pub(crate) hub: Option<&'static str>,
    pub(crate) about: &'static str,
    pub(crate) size: &'static str,
    pub(crate) licence: &'static str,
}

/// All names.
pub(crate) const ENTRIES: [Entry; 6] = [
    Entry {
        name: crate::embedded::NAME,
        hub: None,
        about: "Step-3 in small, trained on Shakespeare; built in",
        size: "12 MB",
        licence: "MIT OR Apache-2.0",
    },
    Entry {
        name: "smollm2",
        hub: Some("unsloth/SmolLM2-135M-Instruct-GGUF:SmolLM2-135M-Instruct-Q8_0.gguf"),
        about: "SmolLM2 135M Instruct, Q8_0",
        size: "145 MB",
        licence: "Apache-2.0",
    },
    Entry {
        name: "smollm2-360m",
        hub: Some("HuggingFaceTB/SmolLM2-360M-Instruct-GGUF:smollm2-360m-instruct-q8_0.gguf"),
        about: "SmolLM2 360M Instruct, Q8_0",
        size: "386 MB",
        licence: "Apache-2.0",
    },
    Entry {
        name: "llama-3.2-1b",
        hub: Some("unsloth/Llama-3.2-1B-Instruct-GGUF:Llama-3.2-1B-Instruct-Q4_K_M.gguf"),
        about: "Llama 3.2 1B Instruct, Q4_K_M",
        size: "808 MB",
        licence: "Llama 3.2 Community",
    },
    Entry {
        name: "step3",
        hub: Some("stepfun-ai/step3"),
        about: "Step-3 321B, BF16 (its language model)",
        size: "642 GB",
        licence: "Apache-2.0",
    },
    Entry {
        name: "step3-fp8",
        hub: Some("stepfun-ai/step3-fp8"),
        about: "Step-3 321B, FP8 with block scales (its language model)",
        size: "328 GB",
        licence: "Apache-2.0",
    },
];

/// The entry called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|e| e.name == name)
}

/// All names in a row, for errors.
pub(crate) fn names() -> String {
    ENTRIES.map(|e| e.name).join(", ")
}
