//! For libFuzzer: what a database sends. What must hold is in `tests/fuzz`.

#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| databroker_fuzz::feed("rows", bytes));
