#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../src/manifest/mod.rs"]
mod manifest;

mod law;

libfuzzer_sys::fuzz_target!(|text: &[u8]| law::holds(text, manifest::Format::Json));
