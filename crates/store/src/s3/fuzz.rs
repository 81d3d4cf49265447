//! The parsers of what a bucket answers and of how it is named, for the fuzz targets.

use super::requests::{listed, said};
use super::settings::{S3Credentials, S3Settings};

/// A page of objects, an error document.
pub(crate) fn answer(text: &str) {
    if let Ok(names) = listed(text, "blobs/sha256/") {
        assert!(names.iter().map(String::len).sum::<usize>() <= text.len());
    }
    let (code, words) = said(text);
    // Both go into messages: an answer of any length makes a short one.
    assert!(code.chars().count() <= 300 && words.chars().count() <= 610);
}

/// The bucket's address and the file of its key.
pub(crate) fn settings(text: &str) {
    let credentials = S3Credentials::parse(text);
    if let Some(credentials) = credentials {
        // The key may be shown, the secret never is.
        assert_eq!(format!("{credentials:?}"), format!("S3Credentials({})", credentials.0.key()));
        let _ = S3Settings::new(text, Some(text), "r", true, credentials);
    }
    let fixed = || S3Credentials::parse("[default]\naws_access_key_id=i\naws_secret_access_key=s\n").unwrap();
    let (url, endpoint) = text.split_once('\n').unwrap_or((text, "http://127.0.0.1:1"));
    for path_style in [false, true] {
        let _ = S3Settings::new(url, Some(endpoint), "r", path_style, fixed());
    }
}
