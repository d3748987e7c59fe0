// SUMS sums over the LANES threads that share rows, all of them with two barriers: every thread calls `set_part` for
// each of its sums, then `add_parts` once, and reads a `total`. A sum is taken in the order of the lanes.
#if SUBGROUPS
// LANES is the size of a subgroup, and subgroups are made of consecutive threads.
fn set_part(at: u32, thread: u32, part: f32) {}
fn add_parts(thread: u32) {}
fn total(at: u32, thread: u32, part: f32) -> f32 { return subgroupAdd(part); }
#else
const TOTALS = SUMS * (WORKGROUP / LANES);
// One more element a sum than lanes: threads that add neighbouring sums read different banks.
var<workgroup> parts: array<f32, TOTALS * (LANES + 1u)>;
fn part_at(at: u32, thread: u32) -> u32 { return (thread / LANES * SUMS + at) * (LANES + 1u); }
fn set_part(at: u32, thread: u32, part: f32) { parts[part_at(at, thread) + thread % LANES] = part; }
fn add_parts(thread: u32) {
    workgroupBarrier();
    for (var i = thread; i < TOTALS; i += WORKGROUP) {
        var sum = 0.0;
        for (var lane = 0u; lane < LANES; lane++) { sum += parts[i * (LANES + 1u) + lane]; }
        parts[i * (LANES + 1u)] = sum;
    }
    workgroupBarrier();
}
fn total(at: u32, thread: u32, part: f32) -> f32 { return parts[part_at(at, thread)]; }
#end
