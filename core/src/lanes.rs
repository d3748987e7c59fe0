//! Sixteen numbers at a time, in whatever registers there are: four of SSE, NEON or WebAssembly, two of AVX.
//!
//! Written out rather than left to the compiler, which does not make vectors of loops in a module for browsers: there
//! link-time optimisation comes before that, and optimises for size.

use wide::{f32x16, u8x16, u32x16};

/// How many numbers that are.
pub(crate) const LANES: usize = 16;

/// Bytes as numbers.
#[inline]
pub(crate) fn unsigned(bytes: u8x16) -> f32x16 {
    widen::unsigned(bytes)
}

/// Bytes as numbers with a sign.
#[inline]
pub(crate) fn signed(bytes: u8x16) -> f32x16 {
    widen::signed(bytes)
}

/// Half words, the lower byte first.
#[inline]
pub(crate) fn halves(bytes: &[u8; 2 * LANES]) -> u32x16 {
    let halves = bytemuck::cast::<_, [u16; LANES]>(*bytes).map(u16::from_le);
    widen::halves(halves.into())
}

/// WebAssembly widens half a register at a time; [`wide`] would go through memory.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod widen {
    use core::arch::wasm32::{
        f32x4_convert_i32x4, i16x8_extend_high_i8x16, i16x8_extend_low_i8x16, i32x4_extend_high_i16x8,
        i32x4_extend_low_i16x8, u16x8_extend_high_u8x16, u16x8_extend_low_u8x16, u32x4_extend_high_u16x8,
        u32x4_extend_low_u16x8, v128,
    };
    use wide::{f32x4, f32x16, u8x16, u16x8, u16x16, u32x4, u32x16};

    #[inline]
    pub(super) fn unsigned(bytes: u8x16) -> f32x16 {
        let bytes = bytes.into();
        numbers(unsigned_words([u16x8_extend_low_u8x16(bytes), u16x8_extend_high_u8x16(bytes)]))
    }

    #[inline]
    pub(super) fn signed(bytes: u8x16) -> f32x16 {
        let bytes = bytes.into();
        let halves = [i16x8_extend_low_i8x16(bytes), i16x8_extend_high_i8x16(bytes)];
        let [a, b] = halves.map(|half| [i32x4_extend_low_i16x8(half), i32x4_extend_high_i16x8(half)]);
        numbers([a[0], a[1], b[0], b[1]])
    }

    #[inline]
    pub(super) fn halves(halves: u16x16) -> u32x16 {
        let halves: [u16x8; 2] = bytemuck::cast(halves);
        bytemuck::cast(unsigned_words(halves.map(v128::from)).map(u32x4::from))
    }

    #[inline]
    fn unsigned_words(halves: [v128; 2]) -> [v128; 4] {
        let [a, b] = halves.map(|half| [u32x4_extend_low_u16x8(half), u32x4_extend_high_u16x8(half)]);
        [a[0], a[1], b[0], b[1]]
    }

    #[inline]
    fn numbers(words: [v128; 4]) -> f32x16 {
        bytemuck::cast(words.map(|words| f32x4::from(f32x4_convert_i32x4(words))))
    }
}

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod widen {
    use wide::{f32x16, i16x16, i32x16, u8x16, u16x16, u32x16};

    #[inline]
    pub(super) fn unsigned(bytes: u8x16) -> f32x16 {
        i32x16::from(i16x16::from(bytes)).round_float()
    }

    #[inline]
    pub(super) fn signed(bytes: u8x16) -> f32x16 {
        // Two's complement is the other order of the same numbers; the difference is exact.
        unsigned(bytes ^ u8x16::splat(0x80)) - f32x16::splat(128.0)
    }

    #[inline]
    pub(super) fn halves(halves: u16x16) -> u32x16 {
        u32x16::from(halves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_half_word() {
        for first in (0..=u8::MAX).step_by(LANES) {
            let bytes: [u8; LANES] = std::array::from_fn(|i| first + i as u8);
            assert_eq!(unsigned(bytes.into()).to_array(), bytes.map(f32::from));
            assert_eq!(signed(bytes.into()).to_array(), bytes.map(|byte| f32::from(byte as i8)));
        }
        for first in (0..=u16::MAX).step_by(LANES) {
            let words: [u16; LANES] = std::array::from_fn(|i| first + i as u16);
            let bytes: [[u8; 2]; LANES] = words.map(u16::to_le_bytes);
            assert_eq!(halves(bytes.as_flattened().try_into().unwrap()).to_array(), words.map(u32::from));
        }
    }
}
