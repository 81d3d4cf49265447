//! `Authorization`, and the `scope` of a request for a token.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    adamant_registry::fuzz::authorization(text);
    adamant_registry::fuzz::asked(text);
});
