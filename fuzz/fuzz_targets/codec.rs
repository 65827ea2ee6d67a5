//! For libFuzzer: record data, decoded and encoded again. What must hold is in `tests/fuzz`.

#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| databroker_fuzz::feed("codec", bytes));
