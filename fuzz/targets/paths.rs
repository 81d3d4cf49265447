//! Paths, queries and the parameters of pages.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    adamant_registry::fuzz::path(path);
    adamant_registry::fuzz::query(query);
});
