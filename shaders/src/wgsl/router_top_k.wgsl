// Softmax over EXPERTS logits, then the TOP_K largest (ties: lowest id): TOP_K ids as bits, then TOP_K weights.
// One thread a row: the work is some hundred operations.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    if row >= step[0] { return; }
    let x0 = row * X_STRIDE + X_OFFSET;
    let y0 = row * 2u * TOP_K;
    var most = logits[x0];
    for (var e = 1u; e < EXPERTS; e++) { most = max(most, logits[x0 + e]); }
    var total = 0.0;
    for (var e = 0u; e < EXPERTS; e++) { total += exp(logits[x0 + e] - most); }
    // The next choice is the largest (logit, -id) below the last one, so that nothing need be marked as taken.
    var last = 0.0;
    var last_id = EXPERTS;
    var chosen = 0.0;
    for (var choice = 0u; choice < TOP_K; choice++) {
        var best = 0.0;
        var best_id = EXPERTS;
        for (var e = 0u; e < EXPERTS; e++) {
            let v = logits[x0 + e];
            let open = last_id == EXPERTS || v < last || (v == last && e > last_id);
            if open && (best_id == EXPERTS || v > best) {
                best = v;
                best_id = e;
            }
        }
        last = best;
        last_id = best_id;
        let p = exp(best - most) / total;
        chosen += p;
        // All logits NaN: no choice is ordered. Expert 0 keeps the id valid; the NaN reaches the output by its weight.
        y[y0 + choice] = select(best_id, 0u, best_id == EXPERTS);
        y[y0 + TOP_K + choice] = bitcast<u32>(p);
    }
    #if RENORMALIZE
    for (var choice = 0u; choice < TOP_K; choice++) {
        y[y0 + TOP_K + choice] = bitcast<u32>(bitcast<f32>(y[y0 + TOP_K + choice]) / chosen);
    }
    #end
}
