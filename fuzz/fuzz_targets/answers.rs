//! For libFuzzer: what a plugin answers, held to the laws of the interface. What must hold is in `tests/fuzz`.

#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| databroker_fuzz::feed("answers", bytes));
