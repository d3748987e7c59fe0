//! Builds a [`Graph`] op by op, checking widths as it goes.

use super::{
    EdgeDType, Graph, Heads, Node, Op, RopeStyle, Rows, Segment, Side, Value, ValueId, WeightDecl, WeightId,
};

/// Appends ops to a graph. Model files use it; a width that does not fit is a bug of the model file and panics.
#[derive(Debug)]
pub struct Builder {
    graph: Graph,
    layer: Option<usize>,
    side: Side,
}

impl Builder {
    /// An empty graph for a model with this rotary table and vocabulary.
    pub fn new(inv_freq: Vec<f32>, vocab_size: usize) -> Self {
        let graph = Graph {
            values: vec![],
            weights: vec![],
            nodes: vec![],
            inv_freq,
            kv_widths: vec![],
            hidden: vec![],
            features: None,
            logits: None,
            vocab_size,
            segments: vec![],
        };
        Self { graph, layer: None, side: Side::Attention }
    }

    /// Ops from here on belong to `layer` (none: embedding and head).
    pub fn layer(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// Ops from here on belong to `side`.
    pub fn side(&mut self, side: Side) {
        self.side = side;
    }

    /// Declares a weight, once however often it is used (tied embeddings).
    pub fn weight(&mut self, name: impl Into<String>, shape: &[usize]) -> WeightId {
        let decl = WeightDecl { name: name.into(), shape: shape.to_vec() };
        let found = self.graph.weights.iter().position(|w| *w == decl);
        WeightId(found.unwrap_or_else(|| {
            self.graph.weights.push(decl);
            self.graph.weights.len() - 1
        }))
    }

    /// Elements in a row of `x`.
    pub fn width(&self, x: ValueId) -> usize {
        self.graph.value(x).width
    }

    /// Token embedding.
    pub fn embed(&mut self, table: WeightId) -> ValueId {
        let width = self.graph.weight(table).shape[1];
        self.push(Op::Embed { table }, vec![], "embed", width, Rows::All)
    }

    /// RMS norm over whole rows.
    pub fn rms_norm(&mut self, x: ValueId, weight: WeightId, eps: f32, name: &str) -> ValueId {
        let (width, rows) = self.shape(x);
        assert_eq!(self.graph.weight(weight).shape, [width], "{name}");
        self.push(Op::RmsNorm { weight, eps }, vec![x], name, width, rows)
    }

    /// Matrix product with a weight.
    pub fn linear(&mut self, x: ValueId, weight: WeightId, name: &str) -> ValueId {
        let (width, rows) = self.shape(x);
        let shape = &self.graph.weight(weight).shape;
        assert_eq!(shape[1], width, "{name}");
        let out = shape[0];
        self.push(Op::Linear { weight }, vec![x], name, out, rows)
    }

    /// Rotary position embedding of every head.
    pub fn rope(&mut self, x: ValueId, head_dim: usize, style: RopeStyle, name: &str) -> ValueId {
        let (width, rows) = self.shape(x);
        assert!(width % head_dim == 0 && self.graph.inv_freq.len() * 2 == head_dim, "{name}");
        self.push(Op::Rope { head_dim, style }, vec![x], name, width, rows)
    }

    /// Appends `k` and `v` to the cache and attends with `q`.
    pub fn attention(&mut self, q: ValueId, k: ValueId, v: ValueId, heads: Heads, scale: f32) -> ValueId {
        let layer = self.graph.kv_widths.len();
        let kv_width = heads.kv_heads * heads.head_dim;
        assert_eq!((self.shape(k).0, self.shape(v).0), (kv_width, kv_width));
        assert!(heads.heads.is_multiple_of(heads.kv_heads));
        self.graph.kv_widths.push(kv_width);
        let (op, layer_no, side) = (Op::KvAppend { layer }, self.layer, self.side);
        self.graph.nodes.push(Node { op, inputs: vec![k, v], output: None, layer: layer_no, side });
        let (width, rows) = self.shape(q);
        assert_eq!(width, heads.heads * heads.head_dim);
        self.push(Op::Attention { layer, heads, scale }, vec![q], "attention", width, rows)
    }

    /// `silu(gate) * up`.
    pub fn swiglu(&mut self, gate: ValueId, up: ValueId, name: &str) -> ValueId {
        let (width, rows) = self.shape(gate);
        assert_eq!(self.shape(up), (width, rows), "{name}");
        self.push(Op::SwiGlu, vec![gate, up], name, width, rows)
    }

    /// Sum of two values.
    pub fn add(&mut self, a: ValueId, b: ValueId, name: &str) -> ValueId {
        let (width, rows) = self.shape(a);
        assert_eq!(self.shape(b), (width, rows), "{name}");
        self.push(Op::Add, vec![a, b], name, width, rows)
    }

    /// Softmax over experts and choice of the best.
    pub fn router_top_k(&mut self, logits: ValueId, top_k: usize, renormalize: bool) -> ValueId {
        let (experts, rows) = self.shape(logits);
        assert!(top_k <= experts);
        self.push(Op::RouterTopK { top_k, renormalize }, vec![logits], "routing", 2 * top_k, rows)
    }

    /// What each chosen expert says of a row. Weights are `[gate, up, down]`.
    pub fn experts(&mut self, x: ValueId, routing: ValueId, weights: [WeightId; 3]) -> ValueId {
        let [gate, up, down] = weights;
        let (width, rows) = self.shape(x);
        let top_k = self.shape(routing).0 / 2;
        let shapes = weights.map(|w| self.graph.weight(w).shape.clone());
        assert!(shapes[0] == shapes[1] && shapes[0][2] == width && shapes[2][1] == width);
        let op = Op::ExpertsGateUp { gate, up, top_k, first: 0 };
        let acts = self.push(op, vec![x, routing], "ffn.experts.act", top_k * shapes[0][1], rows);
        let op = Op::ExpertsDown { down, top_k, first: 0 };
        self.push(op, vec![acts, routing], "ffn.experts", top_k * width, rows)
    }

    /// The weighted sum of what the chosen experts say.
    pub fn combine(&mut self, slots: ValueId, routing: ValueId) -> ValueId {
        let (width, rows) = self.shape(slots);
        let top_k = self.shape(routing).0 / 2;
        assert!(width.is_multiple_of(top_k));
        self.push(Op::Combine { top_k }, vec![slots, routing], "ffn.combine", width / top_k, rows)
    }

    /// `x` as it crosses to the other side in the type `to`.
    pub fn round(&mut self, x: ValueId, to: EdgeDType) -> ValueId {
        let (width, rows) = self.shape(x);
        self.push(Op::Round { to }, vec![x], "rounded", width, rows)
    }

    /// Records `x` as the hidden state after the embedding or after a layer.
    pub fn hidden(&mut self, x: ValueId) {
        self.graph.hidden.push(x);
    }

    /// Records `x` as what the output head reads.
    pub fn features(&mut self, x: ValueId) {
        self.graph.features = Some(x);
    }

    /// Keeps the rows whose logits are wanted.
    pub fn gather_rows(&mut self, x: ValueId) -> ValueId {
        let (width, _) = self.shape(x);
        self.push(Op::GatherRows, vec![x], "output_rows", width, Rows::Output)
    }

    /// Ends the graph with its logits.
    pub fn finish(mut self, logits: ValueId) -> Graph {
        assert_eq!(self.shape(logits), (self.graph.vocab_size, Rows::Output));
        self.graph.logits = Some(logits);
        self.graph.segments = vec![Segment { nodes: 0..self.graph.nodes.len(), ..Segment::default() }];
        self.graph
    }

    fn shape(&self, id: ValueId) -> (usize, Rows) {
        let value = self.graph.value(id);
        (value.width, value.rows)
    }

    fn push(&mut self, op: Op, inputs: Vec<ValueId>, name: &str, width: usize, rows: Rows) -> ValueId {
        let name = match self.layer {
            Some(layer) => format!("layers.{layer}.{name}"),
            None => name.to_owned(),
        };
        let id = ValueId(self.graph.values.len());
        self.graph.values.push(Value { name, width, rows });
        self.graph.nodes.push(Node { op, inputs, output: Some(id), layer: self.layer, side: self.side });
        id
    }
}
