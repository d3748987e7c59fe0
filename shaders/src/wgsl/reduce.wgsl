// Sum over the LANES threads that share a row, in an order that depends on nothing else. LANES is a power of two.
#if SUBGROUPS
// LANES is the size of a subgroup, and subgroups are made of consecutive threads.
fn sum_lanes(thread: u32, value: f32) -> f32 { return subgroupAdd(value); }
#else
var<workgroup> lane_sums: array<f32, WORKGROUP>;
fn sum_lanes(thread: u32, value: f32) -> f32 {
    lane_sums[thread] = value;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if thread % LANES < half { lane_sums[thread] += lane_sums[thread + half]; }
        workgroupBarrier();
    }
    let sum = lane_sums[thread - thread % LANES];
    workgroupBarrier();
    return sum;
}
#end
