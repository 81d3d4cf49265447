//! What the fuzz targets reach of the parsers here. It is compiled for them alone (`--cfg fuzzing`).
#![expect(missing_docs, reason = "a panic is the finding")]

pub fn recipe(bytes: &[u8]) {
    crate::fs::fuzz::recipe(bytes);
}

pub fn s3_answer(text: &str) {
    crate::s3::fuzz::answer(text);
}

pub fn s3_settings(text: &str) {
    crate::s3::fuzz::settings(text);
}
