// The planes of MATRICES weight matrices of one format: values (16-byte vectors) and, where AUX_PLANE, aux words.
#for m in 0..MATRICES
@group(0) @binding(4 + 2 * $m) var<storage, read> values$m: array<vec4<u32>>;
#if AUX_PLANE
@group(0) @binding(5 + 2 * $m) var<storage, read> aux$m: array<u32>;
#end
#include FORMAT
#end
