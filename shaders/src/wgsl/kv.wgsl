// One element of the KV cache holds four numbers of a head. Keys lie [block][kv head][d / 4][token], so that the
// threads of a workgroup, a token each, read neighbours; values lie [block][kv head][token][d / 4].
#if KV_F16
alias Quad = vec2<u32>;
fn decode_quad(q: Quad) -> vec4<f32> { return vec4<f32>(unpack2x16float(q.x), unpack2x16float(q.y)); }
fn encode_quad(v: vec4<f32>) -> Quad { return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw)); }
#else
alias Quad = vec4<f32>;
fn decode_quad(q: Quad) -> vec4<f32> { return q; }
fn encode_quad(v: vec4<f32>) -> Quad { return v; }
#end
// Where the key of `token` of `block` starts; its quads are BLOCK apart.
fn key_at(block: u32, head: u32, token: u32) -> u32 { return (block * KV_HEADS + head) * QUADS * BLOCK + token; }
// Where the value of `token` of `block` starts; its quads are adjacent.
fn value_at(block: u32, head: u32, token: u32) -> u32 { return ((block * KV_HEADS + head) * BLOCK + token) * QUADS; }
