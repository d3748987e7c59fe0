// Causal attention of one new row over its sequence's paged cache, for GROUP query heads that share a KV head
// (all query heads of a KV head, or a divisor of them): every key and value read serves GROUP heads.
//
// Positions are cut into splits of SPLIT at fixed places. A split is softmaxed online in tiles of WORKGROUP (after
// FlashAttention) and leaves (maximum, sum, weighted values). With PARTIAL, workgroup z is split z and
// attention_combine.wgsl merges; without, every row sees one split only and the result is final. The arithmetic of
// a row depends on its position alone, not on the batch. ROPE: queries are rotated while they are read.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> source_0: array<f32>;
#if PARTIAL
@group(0) @binding(2) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> pass_base: array<u32>;
#else
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
#end
#if ROPE
@group(0) @binding(3) var<storage, read> angles: array<vec2<f32>>;
#end
@group(0) @binding(4) var<storage, read> keys: array<Quad>;
@group(0) @binding(5) var<storage, read> cached_values: array<Quad>;
#include kv.wgsl
#if ROPE
#for s in 0..1
#include rotate.wgsl
#end
#end
const LOWEST = -3.0e38;
var<workgroup> query: array<vec4<f32>, GROUP_QUADS>;
var<workgroup> scores: array<f32, GROUP_SCORES>;
var<workgroup> part_max: array<f32, GROUP_PARTS>;
var<workgroup> tile_max: array<f32, GROUP>;
var<workgroup> rescale: array<f32, GROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
#if PARTIAL
    let local_row = group.x;
    let row = pass_base[0] + local_row;
    let live = row < step[0];
#else
    let row = group.x;
    let live = true;
#end
    let head0 = group.y * GROUP;
    let kv_head = head0 / HEADS_PER_KV;
    let length = select(0u, step[POSITIONS + row] + 1u, live);
    let table = TABLE + select(0u, step[TABLE_OF + row], live);
    let begin = group.z * SPLIT;
    let end = min(begin + SPLIT, length);

    for (var i = thread; i < GROUP_QUADS; i += WORKGROUP) {
        let base = row * X_STRIDE + X_OFFSET + (head0 + i / QUADS) * HEAD_DIM;
        let d = i % QUADS * 4u;
        #if ROPE
        let q = vec4<f32>(rotated_0(base, row, d), rotated_0(base, row, d + 1u), rotated_0(base, row, d + 2u), rotated_0(base, row, d + 3u));
        #else
        let q = vec4<f32>(source_0[base + d], source_0[base + d + 1u], source_0[base + d + 2u], source_0[base + d + 3u]);
        #end
        query[i] = q * bitcast<f32>(SCALE_BITS);
    }
    if thread < GROUP { tile_max[thread] = LOWEST; }
    #for n in 0..ITEMS
    var acc$n = vec4<f32>(0.0);
    var sum$n = 0.0;
    #end
    workgroupBarrier();

    for (var tile = begin; tile < end; tile += WORKGROUP) {
        let position = tile + thread;
        let valid = position < end;
        #for g in 0..GROUP
        var score$g = vec4<f32>(0.0);
        #end
        if valid {
            let key = key_at(step[table + position / BLOCK], kv_head, position % BLOCK);
            for (var quad = 0u; quad < QUADS; quad++) {
                let k = decode_quad(keys[key + quad * BLOCK]);
                #for g in 0..GROUP
                score$g += query[$gu * QUADS + quad] * k;
                #end
            }
        }
        #for g in 0..GROUP
        let s$g = select(LOWEST, (score$g.x + score$g.y) + (score$g.z + score$g.w), valid);
        scores[$gu * WORKGROUP + thread] = s$g;
        #end
        workgroupBarrier();
        for (var i = thread; i < GROUP_PARTS; i += WORKGROUP) {
            var most = LOWEST;
            for (var j = 0u; j < WORKGROUP / 8u; j++) { most = max(most, scores[i * (WORKGROUP / 8u) + j]); }
            part_max[i] = most;
        }
        workgroupBarrier();
        if thread < GROUP {
            var most = tile_max[thread];
            let before = most;
            for (var j = 0u; j < 8u; j++) { most = max(most, part_max[thread * 8u + j]); }
            tile_max[thread] = most;
            rescale[thread] = exp(before - most);
        }
        workgroupBarrier();
        #for g in 0..GROUP
        scores[$gu * WORKGROUP + thread] = select(0.0, exp(s$g - tile_max[$gu]), valid);
        #end
        workgroupBarrier();
        let count = min(WORKGROUP, end - tile);
        #for n in 0..ITEMS
        {
            let item = thread + $nu * WORKGROUP;
            if item < GROUP_QUADS {
                let g = item / QUADS;
                let quad = item % QUADS;
                acc$n *= rescale[g];
                sum$n *= rescale[g];
                for (var t = 0u; t < count; t++) {
                    let p = scores[g * WORKGROUP + t];
                    let at = value_at(step[table + (tile + t) / BLOCK], kv_head, (tile + t) % BLOCK);
                    acc$n += p * decode_quad(cached_values[at + quad]);
                    sum$n += p;
                }
            }
        }
        #end
        workgroupBarrier();
    }
    #for n in 0..ITEMS
    {
        let item = thread + $nu * WORKGROUP;
        if item < GROUP_QUADS && live {
            #if PARTIAL
            let at = ((local_row * HEADS + head0 + item / QUADS) * SPLITS + group.z) * (QUADS + 1u);
            partials[at + item % QUADS] = acc$n;
            if item % QUADS == 0u { partials[at + QUADS] = vec4<f32>(tile_max[item / QUADS], sum$n, 0.0, 0.0); }
            #else
            y[row * OUT_STRIDE + head0 * QUADS + item] = acc$n / sum$n;
            #end
        }
    }
    #end
}
