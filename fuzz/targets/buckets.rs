//! What S3 answers, and how a bucket is named in the settings.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    adamant_store::fuzz::s3_answer(text);
    adamant_store::fuzz::s3_settings(text);
});
