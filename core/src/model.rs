//! A model ready to be compiled: its graph with the weights bound, and all that its text needs.

use crate::backend::{Backend, CompileOptions, Executable};
use crate::checkpoint::{Checkpoint, TextFiles};
use crate::config::ModelConfig;
use crate::graph::{Graph, Op};
use crate::sampling::SamplingParams;
use crate::tensor::Tensor;
use crate::text::{ChatTemplate, Tokenizer};
use crate::{Error, Result, models};

/// A model read from files, not yet on a device.
#[derive(Debug)]
pub struct Model {
    /// What the user calls it.
    pub name: String,
    /// Architecture and sizes.
    pub config: ModelConfig,
    /// The files.
    pub checkpoint: Checkpoint,
    /// The computation.
    pub graph: Graph,
    /// The tensor of each of the graph's weights, in its order.
    pub weights: Vec<Tensor>,
    /// The tokenizer; none in bare test checkpoints.
    pub tokenizer: Option<Tokenizer>,
    /// The chat template; none in base models.
    pub template: Option<ChatTemplate>,
    /// Tokens that end an answer, ascending.
    pub stop_ids: Vec<u32>,
    /// The sampling the checkpoint suggests, else the default.
    pub sampling: SamplingParams,
}

impl Model {
    /// Builds the graph and binds the checkpoint's tensors to it; reads no weights.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a tensor is missing or has the wrong shape, [`Error::Text`] or
    /// [`Error::Unsupported`] when the tokenizer or template cannot be used.
    pub fn new(name: impl Into<String>, checkpoint: Checkpoint) -> Result<Self> {
        let config = checkpoint.config.clone();
        let graph = models::graph(&config);
        let weights = checkpoint.bind(&graph)?;
        let text = &checkpoint.text;
        let tokenizer = text.tokenizer.as_ref().map(Tokenizer::from_file).transpose()?;
        let template = text
            .chat_template
            .as_ref()
            .map(|source| ChatTemplate::new(source, text.bos_token.as_deref(), text.eos_token.as_deref()))
            .transpose()?;
        let stop_ids = stop_ids(text, tokenizer.as_ref());
        let sampling = sampling(text);
        let name = name.into();
        Ok(Self { name, config, checkpoint, graph, weights, tokenizer, template, stop_ids, sampling })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Text`] when the checkpoint has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::Text(format!(
                "{} has no tokenizer; put its tokenizer.json beside the weights, or give token ids",
                self.name
            ))
        })
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::Text`] when the checkpoint has none.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            Error::Text(format!(
                "{} has no chat template, so it is not made for chat; `tread run` continues plain text with it",
                self.name
            ))
        })
    }

    /// Parameters in all, and those that work on one token.
    ///
    /// Active are all weights a token is multiplied with: of the experts only the chosen ones, the output head
    /// even where it is the embedding table, but not the embedding itself, which is a lookup of one row.
    pub fn parameters(&self) -> (u64, u64) {
        parameters(&self.graph)
    }

    /// Bytes of all weights as stored, scales included.
    pub fn weight_bytes(&self) -> u64 {
        let scales = |t: &Tensor| t.scales().map_or(0, |s| 4 * s.values.len() as u64);
        self.weights.iter().map(|t| t.bytes() + scales(t)).sum()
    }

    /// Compiles the model for a device. `progress` is called with weight bytes done and in all.
    ///
    /// # Errors
    /// As [`Backend::compile`].
    pub async fn load(
        &self,
        backend: &dyn Backend,
        options: CompileOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Box<dyn Executable>> {
        backend.compile(&self.graph, &self.weights, options, progress).await
    }
}

fn parameters(graph: &Graph) -> (u64, u64) {
    let elements = |shape: &[usize]| shape.iter().map(|&d| d as u64).product::<u64>();
    let total = graph.weights.iter().map(|w| elements(&w.shape)).sum();
    let active = graph.nodes.iter().map(|node| {
        let weights = node.op.weights();
        let sum: u64 = weights.iter().map(|&w| elements(&graph.weight(w).shape)).sum();
        match node.op {
            Op::Embed { .. } => 0,
            Op::ExpertsGateUp { gate: stack, top_k, .. } | Op::ExpertsDown { down: stack, top_k, .. } => {
                let experts = graph.weight(stack).shape[0].max(1) as u64;
                sum / experts * top_k as u64
            }
            _ => sum,
        }
    });
    (total, active.sum())
}

/// Strings with which models of several families end a turn or a text.
const END_MARKERS: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<|EOT|>", "<|end_of_text|>", "<|endoftext|>"];

/// What the files name as end of sequence, and each known end marker that is a special token and that the chat
/// template writes: many checkpoints name only the end of a text, but a chat ends with its turn.
fn stop_ids(text: &TextFiles, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
    let template = text.chat_template.as_deref().unwrap_or_default();
    let written = END_MARKERS.into_iter().filter(|marker| template.contains(marker));
    let id = |token: &str| tokenizer.and_then(|t| t.token_id(token).filter(|&id| t.is_special(id)));
    let mut ids = text.eos_token_ids.clone();
    ids.extend(written.chain(text.eos_token.as_deref()).filter_map(id));
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn sampling(text: &TextFiles) -> SamplingParams {
    let default = SamplingParams::default();
    SamplingParams {
        temperature: text.temperature.unwrap_or(default.temperature),
        top_k: text.top_k.unwrap_or(default.top_k),
        top_p: text.top_p.unwrap_or(default.top_p),
        ..default
    }
}

#[cfg(test)]
mod tests {
    use super::{TextFiles, parameters, stop_ids};
    use crate::checkpoint::{GgufVocab, TokenizerFile};
    use crate::config::{LlamaConfig, ModelConfig, Step3Config};
    use crate::graph::RopeStyle;
    use crate::models;
    use crate::text::Tokenizer;

    /// Against the figures of Step-3's technical report (arXiv 2507.19427): 316 B in all, 38 B active.
    #[test]
    fn step3_has_as_many_parameters_as_its_report_says() {
        let config = Step3Config {
            hidden_size: 7168,
            intermediate_size: 18432,
            num_layers: 61,
            num_heads: 64,
            num_kv_heads: 1,
            head_dim: 256,
            query_rank: 2048,
            vocab_size: 128_815,
            context_length: 65536,
            rms_norm_eps: 1e-5,
            inv_freq: vec![1.0; 128],
            moe_layers: (0..61).map(|n| (4..60).contains(&n)).collect(),
            num_experts: 48,
            top_k: 3,
            moe_intermediate_size: 5120,
            shared_expert_size: 5120,
            norm_expert_weight: false,
            tie_word_embeddings: false,
        };
        let (total, active) = parameters(&models::graph(&ModelConfig::Step3(config)));
        assert_eq!((total / 1_000_000, (active as f64 / 1e7).round()), (316_294, 3_792.0));
    }

    /// SmolLM2-135M, whose head is its embedding: everything is active.
    #[test]
    fn a_tied_head_counts_once_and_is_active() {
        let config = LlamaConfig {
            hidden_size: 576,
            intermediate_size: 1536,
            num_layers: 30,
            num_heads: 9,
            num_kv_heads: 3,
            head_dim: 64,
            vocab_size: 49152,
            context_length: 8192,
            rms_norm_eps: 1e-5,
            inv_freq: vec![1.0; 32],
            rope_style: RopeStyle::Interleaved,
            tie_word_embeddings: true,
        };
        let (total, active) = parameters(&models::graph(&ModelConfig::Llama(config)));
        assert_eq!((total, active), (134_515_008, 134_515_008));
    }

    #[test]
    fn stop_ids_are_those_named_and_those_the_template_ends_turns_with() {
        let vocab = GgufVocab {
            model: "gpt2".into(),
            pre: "gpt-2".into(),
            tokens: ["<|endoftext|>", "<|im_end|>", "<|eot_id|>", "</s>", "a"].map(String::from).to_vec(),
            token_types: vec![3, 3, 1, 3, 1],
            ..Default::default()
        };
        let tokenizer = Tokenizer::from_file(&TokenizerFile::Gguf(vocab)).unwrap();
        let mut text = TextFiles { eos_token_ids: vec![7, 0, 7], ..Default::default() };
        assert_eq!(stop_ids(&text, None), [0, 7]);
        assert_eq!(stop_ids(&text, Some(&tokenizer)), [0, 7]);
        // `<|eot_id|>` is ordinary text in this vocabulary.
        text.chat_template = Some("{{ '<|im_end|><|eot_id|>' }}".into());
        text.eos_token = Some("</s>".into());
        assert_eq!(stop_ids(&text, Some(&tokenizer)), [0, 1, 3, 7]);
    }
}
