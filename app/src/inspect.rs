//! `tread inspect`: what a model is.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Result, bail};
use tread_core::backend::KvDType;
use tread_core::graph::Op;
use tread_core::model::Model;

use crate::cli::InspectArgs;
use crate::memory::text as bytes_text;
use crate::{catalog, load};

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if args.catalog {
        for entry in catalog::ENTRIES.iter() {
            writeln!(out, "{:<14} {:<8} {} ({})", entry.name, entry.size(), entry.about, entry.licence)?;
        }
        return Ok(());
    }
    let model = load::model(args.model.as_deref())?;
    if args.dot {
        write!(out, "{}", model.graph.dot(Some(check_layer(&model, args.layer)?)))?;
        return Ok(());
    }
    summary(&mut out, &model, args.context)?;
    if args.tensors {
        writeln!(out, "\ntensors")?;
        for tensor in model.checkpoint.tensors.values() {
            let shape = format!("{:?}", tensor.shape());
            writeln!(out, "  {:<60} {:<8} {shape}", tensor.name(), tensor.dtype().name())?;
        }
        for (name, reason) in &model.checkpoint.refused {
            writeln!(out, "  {name:<60} not read: {reason}")?;
        }
    }
    if args.graph {
        let layer = check_layer(&model, args.layer)?;
        let graph = &model.graph;
        writeln!(out, "\ngraph (A: attention side, F: FFN side)\nbefore and after the layers")?;
        write!(out, "{}", graph.listing(None))?;
        writeln!(out, "layer {layer}")?;
        write!(out, "{}", graph.listing(Some(layer)))?;
    }
    Ok(())
}

fn summary(out: &mut impl Write, model: &Model, context: Option<usize>) -> Result<()> {
    let (total, active) = model.parameters();
    let limit = model.config.context_length();
    let context = context.unwrap_or(limit);
    writeln!(out, "model         {}", model.name)?;
    writeln!(out, "architecture  {}", model.config.architecture())?;
    writeln!(out, "layers        {}", model.config.num_layers())?;
    writeln!(out, "vocabulary    {}", model.config.vocab_size())?;
    writeln!(out, "context       {limit} tokens")?;
    writeln!(out, "parameters    {} ({} active per token)", count(total), count(active))?;
    writeln!(out, "weights       {}", bytes_text(model.weight_bytes()))?;
    for (dtype, (tensors, bytes)) in by_type(model) {
        writeln!(out, "  {dtype:<11} {} in {tensors} tensors", bytes_text(bytes))?;
    }
    for (name, dtype) in [("f32", KvDType::F32), ("f16", KvDType::F16)] {
        let token = model.graph.kv_bytes_per_token(dtype.bytes()) as u64;
        let all = token.saturating_mul(context as u64);
        writeln!(out, "KV cache {name}  {} for {context} tokens ({token} bytes a token)", bytes_text(all))?;
    }
    let has = |there: bool| if there { "yes" } else { "no" };
    writeln!(out, "tokenizer     {}", has(model.tokenizer.is_some()))?;
    writeln!(out, "chat template {}", has(model.template.is_some()))?;
    Ok(())
}

/// Weights by storage type: tensors and bytes. Scales are counted with their tensor.
fn by_type(model: &Model) -> BTreeMap<&'static str, (usize, u64)> {
    let mut types = BTreeMap::new();
    for tensor in &model.weights {
        let entry = types.entry(tensor.dtype().name()).or_insert((0, 0));
        entry.0 += 1;
        entry.1 += tensor.bytes() + tensor.scales().map_or(0, |s| 4 * s.values.len() as u64);
    }
    types
}

/// The layer the user named, or the first with experts, or layer 0.
fn check_layer(model: &Model, layer: Option<usize>) -> Result<usize> {
    let layers = model.config.num_layers();
    match layer {
        Some(layer) if layer >= layers => {
            bail!("there is no layer {layer}: the model has 0 to {}", layers - 1)
        }
        Some(layer) => Ok(layer),
        None => {
            let experts = model.graph.nodes.iter().find(|n| matches!(n.op, Op::ExpertsGateUp { .. }));
            Ok(experts.and_then(|n| n.layer).unwrap_or(0))
        }
    }
}

/// `135 M`, `316.3 B`.
fn count(parameters: u64) -> String {
    let millions = parameters as f64 / 1e6;
    if millions < 1000.0 { format!("{millions:.1} M") } else { format!("{:.2} B", millions / 1000.0) }
}
