//! What the fuzz targets reach of the parsers here. It is compiled for them alone (`--cfg fuzzing`).
#![expect(missing_docs, clippy::unwrap_used, clippy::missing_panics_doc, reason = "a panic is the finding")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use adamant_oci::{Content, Manifest, RepositoryName, Tag};

use crate::http::fuzz as http;
use crate::registry::Limits;
use crate::uploads::Uploads;
use crate::{names, pointers};

pub fn path(path: &str) {
    http::path(path);
}

pub fn query(query: &str) {
    http::query(query);
}

pub fn range(text: &str, size: u64) {
    http::range(text, size);
}

pub fn content_range(text: &str) {
    http::content_range(text);
}

/// `old` and `new` are manifests under the same tag, one after the other.
pub fn pointer(tag: &str, old: &[u8], new: &[u8]) {
    if let Ok(tag) = tag.parse::<Tag>() {
        assert!(!(pointers::is_list(&tag) && names::is_release(&tag)));
    }
    let Ok(old) = Manifest::parse(old.to_vec()) else { return };
    let same = pointers::grows("a:t", &old, &old);
    let Ok(new) = Manifest::parse(new.to_vec()) else { return };
    if pointers::grows("a:t", &old, &new).is_ok() {
        assert_eq!(old.kind(), new.kind());
        // By what the parser understood, nothing is lost either.
        let mut there = count(&new);
        for (digest, times) in count(&old) {
            assert!(there.remove(&digest).unwrap_or(0) >= times, "{digest} is lost");
        }
        assert!(same.is_ok());
    }
}

fn count(manifest: &Manifest) -> HashMap<String, usize> {
    let items = match manifest.content() {
        Content::Image { layers, .. } => layers,
        Content::Index { manifests } => manifests,
    };
    let mut count = HashMap::new();
    for item in items {
        *count.entry(item.digest.to_string()).or_default() += 1;
    }
    count
}

/// `name` is an id that a client sends and a file that lies in the directory.
pub async fn upload(directory: &Path, repository: &str, name: &str, bytes: &[u8]) {
    let uploads = directory.join("uploads");
    std::fs::create_dir(&uploads).unwrap();
    let is_name = !name.is_empty() && !name.contains(['/', '\0']) && !matches!(name, "." | "..") && name.len() < 256;
    if is_name {
        std::fs::write(uploads.join(name), bytes).unwrap();
    }
    let limits = Limits { upload_bytes: 64, ..Limits::default() };
    let opened = Uploads::open(uploads, Arc::new(limits), Arc::new(SystemTime::now)).unwrap();
    let Ok(repository) = repository.parse::<RepositoryName>() else { return };
    for id in [name, name.split('-').next().unwrap_or(name)] {
        if let Ok(held) = opened.take(&repository, id).await {
            // Only a file whose name says this id and this repository.
            assert!(is_name && name.starts_with(id) && name.len() == id.len() + 17);
            assert_eq!(held.length(), bytes.len() as u64);
        }
    }
}
