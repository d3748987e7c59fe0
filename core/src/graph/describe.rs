//! A graph for people: a listing and a DOT drawing of one layer.

use std::fmt::Write;

use super::{Graph, Node, Rows, Side};

impl Graph {
    /// The ops of `layer` (none: embedding and head), one a line.
    pub fn listing(&self, layer: Option<usize>) -> String {
        let mut text = String::new();
        for node in self.nodes.iter().filter(|n| n.layer == layer) {
            let inputs: Vec<_> = node.inputs.iter().map(|&v| self.value(v).name.as_str()).collect();
            let output = node.output.map_or_else(|| "kv cache".to_owned(), |v| self.shape_text(v));
            let side = match node.side {
                Side::Attention => "A",
                Side::Ffn => "F",
            };
            let _ = writeln!(
                text,
                "{side}  {:<13} {:<60} -> {output}",
                node.op.name(),
                format!("{}{}", inputs.join(", "), self.weights_text(node))
            );
        }
        text
    }

    /// The ops of `layer` as a Graphviz digraph; attention-side ops blue, FFN-side ops orange.
    pub fn dot(&self, layer: Option<usize>) -> String {
        let mut text = String::from("digraph layer {\n  rankdir=TB; node [shape=box, style=filled];\n");
        for (i, node) in self.nodes.iter().enumerate().filter(|(_, n)| n.layer == layer) {
            let color = match node.side {
                Side::Attention => "lightblue",
                Side::Ffn => "orange",
            };
            let label = format!("{}{}", node.op.name(), self.weights_text(node).replace("  ", "\\n"));
            let _ = writeln!(text, "  n{i} [label=\"{label}\", fillcolor={color}];");
            for input in &node.inputs {
                let made_by = self.nodes.iter().position(|n| n.output == Some(*input));
                let value = self.value(*input);
                let from = made_by.map_or_else(|| value.name.clone(), |n| format!("n{n}"));
                let _ = writeln!(text, "  {from} -> n{i} [label=\"{}\"];", value.width);
            }
        }
        text.push_str("}\n");
        text
    }

    fn shape_text(&self, id: super::ValueId) -> String {
        let value = self.value(id);
        let rows = match value.rows {
            Rows::All => "rows",
            Rows::Output => "output rows",
        };
        format!("{} [{rows}, {}]", value.name, value.width)
    }

    fn weights_text(&self, node: &Node) -> String {
        let names: Vec<_> = node
            .op
            .weights()
            .into_iter()
            .map(|w| format!("  {} {:?}", self.weight(w).name, self.weight(w).shape))
            .collect();
        names.concat()
    }
}
