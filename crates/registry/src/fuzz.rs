//! What the fuzz targets reach of the parsers here. It is compiled for them alone (`--cfg fuzzing`).
#![expect(missing_docs, clippy::unwrap_used, clippy::missing_panics_doc, reason = "a panic is the finding")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use adamant_oci::{Content, Manifest, RepositoryName, Tag};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::http::fuzz as http;
use crate::registry::Limits;
use crate::uploads::Uploads;
use crate::{Action, Asked, Named, Pattern, Rights, Scope, names, pointers, secret};

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

/// A value of `Authorization`.
pub fn authorization(text: &str) {
    if let Some(found) = secret(text) {
        // It comes from what was sent, and means the same written the other way.
        assert!(found.len() <= text.len());
        let basic = format!("Basic {}", STANDARD.encode(format!("any:{found}")));
        assert_eq!(secret(&basic), Some(found));
    }
}

/// The `scope` of a request for a token.
pub fn asked(text: &str) {
    let pull = Rights::everywhere(&[Action::Pull]);
    for part in text.split(' ') {
        let Some(asked) = Asked::parse(part) else { continue };
        let all = asked.within(&Rights::everywhere(&[Action::Pull, Action::Push]));
        let Asked::Repository { name, actions } = &asked else {
            assert!(all.is_none());
            continue;
        };
        // Nothing that was not asked for, nowhere else, and nothing beyond the rights.
        assert_eq!(all, (!actions.is_empty()).then(|| Scope::exactly(name, actions)));
        assert!(asked.within(&Rights::none()).is_none());
        if let Some(scope) = all {
            assert_eq!(scope.to_string().parse().as_ref(), Ok(&scope));
        }
        if let Some(scope) = asked.within(&pull) {
            let rights = Rights::new(vec![scope]).unwrap();
            assert!(rights.may(Action::Pull, name.as_str()) && !rights.may(Action::Push, name.as_str()));
            assert!(!rights.may(Action::Pull, &format!("{name}/x")));
        }
    }
}

/// The meaning of a pattern by its definition: where in it one may be after each byte of the name.
fn covers(pattern: &[u8], name: &[u8]) -> bool {
    let stars = |mut places: Vec<bool>| {
        for at in 0..pattern.len() {
            places[at + 1] |= places[at] && pattern[at] == b'*';
        }
        places
    };
    let mut places = vec![false; pattern.len() + 1];
    places[0] = true;
    let mut places = stars(places);
    for byte in name {
        let mut next = vec![false; pattern.len() + 1];
        for (at, letter) in pattern.iter().enumerate().filter(|(at, _)| places[*at]) {
            if *letter == b'*' { next[at] = true } else { next[at + 1] |= letter == byte }
        }
        places = stars(next);
    }
    places[pattern.len()]
}

/// Patterns, scopes and names of pointers, as operators write them; `name` is held against them.
pub fn pattern(text: &str, name: &str) {
    if let Ok(pattern) = text.parse::<Pattern>() {
        assert_eq!(pattern.to_string(), text);
        assert_eq!(pattern.covers(name), covers(text.as_bytes(), name.as_bytes()));
    }
    if let Ok(scope) = text.parse::<Scope>() {
        assert_eq!(scope.to_string().parse(), Ok(scope));
    }
    // What is read twice is the same.
    assert_eq!(text.parse::<Named>(), text.parse::<Named>());
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
