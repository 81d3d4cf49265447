//! What other registries ask for (`WWW-Authenticate`), and what their token services answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The file alone: the crate around it takes an implementation of OpenPGP and more.
#[path = "../../crates/fetch/src/remote/challenge.rs"]
mod challenge;
use challenge::Challenge;

fuzz_target!(|text: &str| {
    if let Some(Challenge::Bearer { realm, service }) = Challenge::choose(text.split('\n')) {
        // Both come from what was sent: nothing grows.
        assert!(realm.len() + service.map_or(0, |service| service.len()) <= text.len());
    }
    if let Some((token, life)) = challenge::token(text.as_bytes()) {
        assert!(!token.is_empty() && life.is_none_or(|life| life.as_secs() <= 24 * 60 * 60));
    }
});
