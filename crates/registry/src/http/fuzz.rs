//! The parsers of this module, for the fuzz targets.

use adamant_oci::RepositoryName;

use super::listings::page;
use super::range::{Wanted, chunk, wanted};
use super::route::{Parsed, Query, Route, Target, encode};

pub(crate) fn path(path: &str) {
    let Ok(Parsed::Repository(Route { repository, target })) = Route::parse(path) else { return };
    assert_eq!(repository.as_str().parse::<RepositoryName>().as_ref(), Ok(&repository));
    let reference = match &target {
        Target::Manifest(text) | Target::Blob(text) | Target::Upload(text) | Target::Referrers(text) => text,
        Target::Uploads | Target::Tags => return,
    };
    // Percent-encoded anew it is the same.
    let encoded = encode(reference).replace('/', "%2F");
    let word = match &target {
        Target::Manifest(_) => "manifests",
        Target::Blob(_) => "blobs",
        Target::Upload(_) => "blobs/uploads",
        _ => "referrers",
    };
    let again = Route::parse(&format!("/v2/{repository}/{word}/{encoded}"));
    // An empty last part and the words of the protocol are read as what they are.
    if !matches!(reference.as_str(), "" | "uploads" | "list") {
        assert_eq!(again.ok(), Some(Parsed::Repository(Route { repository, target })));
    }
}

pub(crate) fn query(text: &str) {
    let Ok(query) = Query::parse(text) else { return };
    for key in ["n", "last", "digest", "mount", "from", "tag", "artifactType"] {
        for value in query.values(key) {
            let again = Query::parse(&format!("{key}={}", encode(value))).unwrap_or_default();
            assert_eq!(again.value(key), Some(value));
        }
    }
    if let Ok(n) = page(&query, 1000) {
        assert!(n <= 1000);
    }
}

pub(crate) fn range(text: &str, size: u64) {
    if let Wanted::Part { start, length } = wanted(Some(text), size) {
        assert!(length > 0 && start.checked_add(length).is_some_and(|end| end <= size));
    }
}

pub(crate) fn content_range(text: &str) {
    if let Some(chunk) = chunk(text) {
        assert!(chunk.length > 0 && chunk.start.checked_add(chunk.length - 1).is_some());
    }
}
