// Matrix products with quantised weights: y[c, r] = sum_k W[r, k] x[c, k], and what is fused with it.
//
// MATRICES = 2: y = silu(W0 x) * (W1 x)                (gate and up of a SwiGLU FFN).
// ADD:          y = W x + addend                        (residual connections).
// EXPERTS:      a column is one (row, choice) pair; W is a stack of HELD matrices of MATRIX_ROWS rows, that of expert
//               FIRST first, and the pair's expert picks one. Gate and up take the row's x and make one of each pair's;
//               DOWN takes that and makes the pair's slot in the row. ZERO: both are zero for experts that are elsewhere.
//
// Work: a workgroup makes WORKGROUP / LANES * ROWS rows for COLS columns; LANES threads share ROWS rows and walk
// along K, a chunk of 32 weights each time. Every (row, column) is summed in the same order whatever COLS is and
// whichever rows and columns are there: a row of a batch does not depend on the others, nor an element on how many there are.
//
// Weights may be a segment of a larger tensor: rows ROW0 .. ROW0 + SEGMENT_ROWS. OUT_ROWS rows of output, starting
// at element OUT_OFFSET of rows of OUT_STRIDE; x has rows of X_STRIDE vectors, zero beyond its width.
@group(0) @binding(0) var<storage, read> step: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
#if ADD
@group(0) @binding(3) var<storage, read> addend: array<f32>;
#end
#if EXPERTS
@group(0) @binding(3) var<storage, read> routing: array<u32>;
#end
#include weights.wgsl
#if SHARED_LANES
const SUMS = MATRICES * ROWS * COLS;
#include reduce.wgsl
#end

const GROUP_ROWS = WORKGROUP / LANES * ROWS;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
#if SHARED_LANES
    let lane = thread % LANES;
#else
    let lane = 0u;
#end
    let first = group.x * GROUP_ROWS + thread / LANES * ROWS;
#if EXPERTS
    let pair = group.y;
    let token = pair / TOP_K;
    let choice = pair % TOP_K;
    // Wraps around for those before the first, and so is beyond the last.
    let expert = routing[token * 2u * TOP_K + choice] - FIRST;
    #if DOWN
    let x0 = pair * X_STRIDE;
    let y0 = token * OUT_STRIDE + choice * MATRIX_ROWS;
    #else
    let x0 = token * X_STRIDE;
    let y0 = pair * OUT_STRIDE;
    #end
    if expert >= HELD {
        #if ZERO
        #for r in 0..ROWS
        if lane == 0u && first + $r < MATRIX_ROWS { y[y0 + first + $r] = 0.0; }
        #end
        #end
        return;
    }
    // The segment may hold only some of the expert's rows, or none: the rest is another dispatch's.
    let base = expert * MATRIX_ROWS;
    let begin = base + group.x * GROUP_ROWS;
    if begin >= ROW0 + SEGMENT_ROWS || begin + GROUP_ROWS <= ROW0 { return; }
    #for r in 0..ROWS
    let wanted$r = base + first + $r;
    let mine$r = first + $r < MATRIX_ROWS && wanted$r >= ROW0 && wanted$r < ROW0 + SEGMENT_ROWS;
    let row$r = select(0u, wanted$r - ROW0, mine$r);
    let out$r = first + $r;
    #end
    let stored0 = true;
#else
    let columns = step[COUNT];
    #for r in 0..ROWS
    let mine$r = first + $r < SEGMENT_ROWS;
    let row$r = min(first + $r, SEGMENT_ROWS - 1u);
    let out$r = ROW0 + first + $r;
    #end
    #for c in 0..COLS
    let column$c = group.y * COLS + $c;
    let stored$c = column$c < columns;
    let x$c = min(column$c, columns - 1u) * X_STRIDE;
    let y$c = column$c * OUT_STRIDE + OUT_OFFSET;
    #end
#end
    #for r in 0..ROWS
    #for c in 0..COLS
    #for m in 0..MATRICES
    var sum$m_$r_$c = vec4<f32>(0.0);
    #end
    #end
    #end
    for (var chunk = lane; chunk < CHUNKS; chunk += LANES) {
        #for r in 0..ROWS
        #for m in 0..MATRICES
        let raw$m_$r = load$m(row$r, chunk);
        let scale$m_$r = scale$m(row$r, chunk);
        #for c in 0..COLS
        var part$m_$r_$c = vec4<f32>(0.0);
        #end
        #end
        #end
        #if HAS_MIN
        #for c in 0..COLS
        var total$c = vec4<f32>(0.0);
        #end
        #end
        #for i in 0..8
        {
            #for c in 0..COLS
            let v$c = x[x$c + chunk * 8u + $iu];
            #if HAS_MIN
            total$c += v$c;
            #end
            #end
            #for r in 0..ROWS
            #for m in 0..MATRICES
            let w$m_$r = quad$m(raw$m_$r, $iu);
            #for c in 0..COLS
            part$m_$r_$c += w$m_$r * v$c;
            #end
            #end
            #end
        }
        #end
        #for r in 0..ROWS
        #for m in 0..MATRICES
        #for c in 0..COLS
        sum$m_$r_$c += scale$m_$r.x * part$m_$r_$c;
        #if HAS_MIN
        sum$m_$r_$c += scale$m_$r.y * total$c;
        #end
        #end
        #end
        #end
    }
    #for r in 0..ROWS
    #for c in 0..COLS
    #for m in 0..MATRICES
    var dot$m_$r_$c = (sum$m_$r_$c.x + sum$m_$r_$c.y) + (sum$m_$r_$c.z + sum$m_$r_$c.w);
    #if SHARED_LANES
    set_part(($mu * ROWS + $ru) * COLS + $cu, thread, dot$m_$r_$c);
    #end
    #end
    #end
    #end
    #if SHARED_LANES
    add_parts(thread);
    #for r in 0..ROWS
    #for c in 0..COLS
    #for m in 0..MATRICES
    dot$m_$r_$c = total(($mu * ROWS + $ru) * COLS + $cu, thread, dot$m_$r_$c);
    #end
    #end
    #end
    #end
    #for r in 0..ROWS
    #for c in 0..COLS
    if lane == 0u && mine$r && stored$c {
        #if SWIGLU
        y[y$c + out$r] = dot0_$r_$c / (1.0 + exp(-dot0_$r_$c)) * dot1_$r_$c;
        #else
        #if ADD
        y[y$c + out$r] = dot0_$r_$c + addend[y$c + out$r];
        #else
        y[y$c + out$r] = dot0_$r_$c;
        #end
        #end
    }
    #end
    #end
}
