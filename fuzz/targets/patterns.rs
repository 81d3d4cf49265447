//! Patterns of repositories, scopes and pointers of `server.toml`, against a name.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (pattern, name) = text.split_once('\n').unwrap_or((text, "shop/web"));
    adamant_registry::fuzz::pattern(pattern, name);
});
