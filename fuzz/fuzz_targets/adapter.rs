#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fewbit_fuzz::adapter(data));
