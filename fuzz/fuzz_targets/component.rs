//! For libFuzzer: files that are to be plugins, looked at before any of them runs. What must hold is in `tests/fuzz`.

#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| databroker_fuzz::feed("component", bytes));
