#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    tread_tests::fuzz::safetensors_fp8(data);
});
