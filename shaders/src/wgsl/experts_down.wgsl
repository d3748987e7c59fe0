// y[row, r] = sum over the row's TOP_K choices of p * (W[expert] act[row, choice])[r]: the second half of the experts.
//
// Work as in linear.wgsl with one column a workgroup; choices are summed in order. Where the stack is cut into
// segments, the first dispatch (FIRST) starts from zero and the others add the choices that they hold.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> routing: array<u32>;
#include weights.wgsl
#if SHARED_LANES
const SUMS = 1u;
#include reduce.wgsl
#end

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
#if SHARED_LANES
    let lane = thread % LANES;
#else
    let lane = 0u;
#end
    let r = group.x * (WORKGROUP / LANES) + thread / LANES;
    let token = group.y;
    var sum = vec4<f32>(0.0);
    for (var choice = 0u; choice < TOP_K; choice++) {
        let wanted = routing[token * 2u * TOP_K + choice] * MATRIX_ROWS + r;
        if r < MATRIX_ROWS && wanted >= ROW0 && wanted < ROW0 + SEGMENT_ROWS {
            let row = wanted - ROW0;
            let weight = bitcast<f32>(routing[token * 2u * TOP_K + TOP_K + choice]);
            let x0 = (token * TOP_K + choice) * X_STRIDE;
            for (var chunk = lane; chunk < CHUNKS; chunk += LANES) {
                let raw = load0(row, chunk);
                let scale = scale0(row, chunk);
                var part = vec4<f32>(0.0);
                var total = vec4<f32>(0.0);
                #for i in 0..8
                {
                    let v = x[x0 + chunk * 8u + $iu];
                    #if HAS_MIN
                    total += v;
                    #end
                    part += quad0(raw, $iu) * v;
                }
                #end
                sum += weight * (scale.x * part + scale.y * total);
            }
        }
    }
    var dot = (sum.x + sum.y) + (sum.z + sum.w);
    #if SHARED_LANES
    set_part(0u, thread, dot);
    add_parts(thread);
    dot = total(0u, thread, dot);
    #end
    if lane == 0u && r < MATRIX_ROWS {
        let at = token * OUT_STRIDE + r;
        #if FIRST
        y[at] = dot;
        #else
        y[at] += dot;
        #end
    }
}
