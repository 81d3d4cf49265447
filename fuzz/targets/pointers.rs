//! Signature lists of older clients: which tags are such lists, and whether a list only grows.
#![no_main]

use libfuzzer_sys::fuzz_target;

// A tag and two manifests, each ended by a byte that no text has.
fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == 0xff);
    let mut part = || parts.next().unwrap_or_default();
    let (tag, old, new) = (part(), part(), part());
    adamant_registry::fuzz::pointer(&String::from_utf8_lossy(tag), old, new);
});
