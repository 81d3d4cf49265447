//! `Range` and `Content-Range`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, &str)| {
    let (size, text) = input;
    adamant_registry::fuzz::range(text, size);
    adamant_registry::fuzz::content_range(text);
});
