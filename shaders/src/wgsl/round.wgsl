// y = x as it crosses from pool to pool: in BF16, or in FP8 with a power of two as the scale of GROUP columns.
// One workgroup a group of a row.
//
// Works on the bits of floats: GPUs may flush subnormals and need not divide exactly, and both pools must agree.
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
const INFINITY = 0x7f800000u;

// To nearest, ties to even, without the last `drop` bits; a carry goes on into the exponent.
fn without(bits: u32, drop: u32) -> u32 {
    let half = 1u << (drop - 1u);
    return (bits + half - 1u + ((bits >> drop) & 1u)) >> drop << drop;
}
#if BF16
fn rounded(bits: u32) -> u32 {
    return select(without(bits, 16u), (bits | 0x400000u) & 0xffff0000u, (bits & 0x7fffffffu) > INFINITY);
}
#end
#if F8
var<workgroup> largest: atomic<u32>;

// `scale` is the exponent of the group's scale, biased as an f32's. E4M3 has three bits of mantissa above 2^-6 times the
// scale, and below multiples of 2^-9.
fn rounded(bits: u32, scale: u32) -> u32 {
    let sign = bits & 0x80000000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude >= INFINITY { return sign | 0x7fc00000u; }
    let exponent = magnitude >> 23u;
    if exponent + 6u >= scale { return sign | without(magnitude, 20u); }
    let drop = scale - exponent + 14u;
    // Less than half of a multiple. What is subnormal in x comes here, too.
    if drop > 24u { return sign; }
    let units = without((magnitude & 0x7fffffu) | 0x800000u, drop) >> drop;
    return sign | bitcast<u32>(f32(units) * bitcast<f32>((scale - 9u) << 23u));
}
#end

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = group.x * GROUP;
    let end = min(first + GROUP, WIDTH);
    let x0 = group.y * X_STRIDE + X_OFFSET;
    let y0 = group.y * OUT_STRIDE;
    #if F8
    if thread == 0u { atomicStore(&largest, 0u); }
    workgroupBarrier();
    var own = 0u;
    for (var i = first + thread; i < end; i += WORKGROUP) {
        let magnitude = x[x0 + i] & 0x7fffffffu;
        own = max(own, select(magnitude, 0u, magnitude > INFINITY));
    }
    atomicMax(&largest, own);
    workgroupBarrier();
    let most = atomicLoad(&largest);
    // The largest E4M3 number is 1.75 * 2^8. Below 2^-100 a group's elements are as good as zero.
    let scale = max(most >> 23u, 27u) - 8u + u32((most & 0x7fffffu) > 0x600000u);
    #end
    for (var i = first + thread; i < end; i += WORKGROUP) {
        #if F8
        y[y0 + i] = rounded(x[x0 + i], scale);
        #else
        #if BF16
        y[y0 + i] = rounded(x[x0 + i]);
        #else
        y[y0 + i] = x[x0 + i];
        #end
        #end
    }
}
