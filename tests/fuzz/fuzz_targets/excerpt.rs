#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| scrinium_tests::fuzz::excerpt(data));
