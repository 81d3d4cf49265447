//! Recipes of blobs that are stored as what differs from others, as they lie on the disk.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| adamant_store::fuzz::recipe(bytes));
