//! end-8a, end-8b, end-12a, end-12b: listing tags and referrers.

use adamant_digest::Sha512;
use serde_json::{Value, json};

use super::{EMPTY, INDEX, MANIFEST, Target, descriptor, fails, print, sha256};
use crate::client::Answer;

fn tags(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    body["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

/// The address of the next page (RFC 8288), if there is one.
#[track_caller]
fn next(answer: &Answer) -> Option<String> {
    let link = answer.header("link");
    (!link.is_empty()).then(|| {
        let (address, relation) = link.split_once(';').unwrap();
        assert_eq!(relation.trim(), "rel=\"next\"", "{link}");
        let address = address.trim().trim_start_matches('<').trim_end_matches('>');
        address.split_once("://").map_or(address, |(_, rest)| &rest[rest.find('/').unwrap()..]).to_owned()
    })
}

/// A repository with tags, pushed in another order than they sort in.
fn tagged(target: &Target, repo: &str) -> Vec<String> {
    let manifest = target.image(repo, "tagged");
    let mut names = ["v2", "Z", "v10", "_", "a.b", "v1", "0", "a-b", "A"].map(str::to_owned).to_vec();
    for name in &names {
        target.put(repo, name, &manifest).expect(201);
    }
    // A neighbour's tags are not this one's.
    let near = format!("{repo}-b");
    target.put(&near, "other", &target.image(&near, "near")).expect(201);
    names.sort();
    names
}

/// "Listing Tags": `200`, the name, and all tags "in lexical … order".
#[test]
fn end_8a_lists_tags_in_order() {
    let target = Target::new("end_8a");
    let repo = target.repo("a");
    let names = tagged(&target, &repo);
    let answer = target.get(&format!("/v2/{repo}/tags/list")).expect(200);
    assert!(answer.header("content-type").starts_with("application/json"));
    assert_eq!(answer.json()["name"], json!(repo));
    assert_eq!(tags(&answer), names);
    assert_eq!(next(&answer), None);
}

/// "The list of tags MAY be empty if there are no tags on the repository"; one that is not known is 404.
#[test]
fn end_8a_of_nothing() {
    let target = Target::new("end_8a_nothing");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "untagged");
    target.put(&repo, &sha256(&manifest), &manifest).expect(201);
    let answer = target.get(&format!("/v2/{repo}/tags/list")).expect(200);
    assert!(answer.json()["tags"].as_array().is_none_or(Vec::is_empty), "{}", answer.text());
    if target.is_ours() {
        assert_eq!(answer.json()["tags"], json!([]));
    }
    fails(&target.get(&format!("/v2/{}/tags/list", target.repo("nowhere"))), 404, "NAME_UNKNOWN");
}

/// "the response MUST include `<int>` results", and a `Link` with `rel="next"` leads through all of them.
#[test]
fn end_8b_pages() {
    let target = Target::new("end_8b");
    let repo = target.repo("a");
    let names = tagged(&target, &repo);
    for n in [1, 2, 4, 9, 100] {
        let mut seen = Vec::new();
        let mut path = Some(format!("/v2/{repo}/tags/list?n={n}"));
        while let Some(here) = path {
            let answer = target.get(&here).expect(200);
            let page = tags(&answer);
            path = next(&answer);
            assert!(page.len() == n || path.is_none(), "n={n}: {page:?}");
            seen.extend(page);
            assert!(seen.len() <= names.len(), "n={n}: {seen:?}");
        }
        assert_eq!(seen, names, "n={n}");
    }
}

/// "When `n` is zero, this endpoint MUST return an empty list, and MUST NOT include a `Link` header".
#[test]
fn end_8b_of_zero() {
    let target = Target::new("end_8b_zero");
    let repo = target.repo("a");
    tagged(&target, &repo);
    for path in ["n=0", "n=0&last=v1"] {
        let answer = target.get(&format!("/v2/{repo}/tags/list?{path}")).expect(200);
        assert_eq!(tags(&answer), Vec::<String>::new());
        assert_eq!(answer.header("link"), "");
    }
}

/// "`<tagname>` will not be included in the results, but up to `<int>` tags *after* `<tagname>`".
#[test]
fn end_8b_after_the_last() {
    let target = Target::new("end_8b_last");
    let repo = target.repo("a");
    let names = tagged(&target, &repo);
    let list = |query: &str| tags(&target.get(&format!("/v2/{repo}/tags/list?{query}")).expect(200));
    for (at, name) in names.iter().enumerate() {
        assert_eq!(list(&format!("last={name}")), names[at + 1..], "{name}");
        let end = (at + 3).min(names.len());
        assert_eq!(list(&format!("n=2&last={name}")), names[at + 1..end], "{name}");
    }
    // A tag that is not there, or no more, is a place all the same.
    assert_eq!(list("last=v11"), ["v2"]);
    assert_eq!(list("last=zzz"), Vec::<String>::new());
}

/// A number that is none is the client's mistake.
#[test]
fn ours_8b_bad_numbers_are_400() {
    let target = Target::new("ours_8b");
    if !target.is_ours() {
        return;
    }
    let repo = target.repo("a");
    tagged(&target, &repo);
    for n in ["x", "-1", "1.5", ""] {
        fails(&target.get(&format!("/v2/{repo}/tags/list?n={n}")), 400, "PAGINATION_NUMBER_INVALID");
    }
}

/// "If a query results in no matching referrers, an empty manifest list MUST be returned", and never a 404.
#[test]
fn end_12a_of_nothing_is_an_empty_index() {
    let target = Target::new("end_12a_nothing");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "no referrers");
    target.put(&repo, "v1", &manifest).expect(201);
    for (repo, digest) in
        [(&repo, sha256(&manifest)), (&repo, sha256(b"x")), (&target.repo("nowhere"), Sha512::of(b"x").to_string())]
    {
        let answer = target.get(&format!("/v2/{repo}/referrers/{digest}")).expect(200);
        assert_eq!(answer.header("content-type"), INDEX);
        assert_eq!(answer.json()["schemaVersion"], 2);
        assert_eq!(answer.json()["mediaType"], INDEX);
        assert_eq!(answer.json()["manifests"], json!([]));
        assert_eq!(answer.header("oci-filters-applied"), "");
    }
}

/// "If the request is invalid, such as a `<digest>` with an invalid syntax, a `400` MUST be returned".
#[test]
fn end_12a_malformed_digests_are_400() {
    let target = Target::new("end_12a_malformed");
    for digest in ["sha256:baddigeststring", "v1", "sha256:"] {
        fails(&target.get(&format!("/v2/{}/referrers/{digest}", target.repo("a"))), 400, "DIGEST_INVALID");
    }
}

/// Pushes five referrers of `subject`; gives the descriptors that must be listed.
fn refer(target: &Target, repo: &str, subject: &Value) -> Vec<Value> {
    let empty = target.describe(repo, EMPTY, b"{}");
    let typed = target.describe(repo, "application/vnd.example.config.v1+json", b"{\"a\":1}");
    let notes =
        |note: &str| json!({"org.example.note": note, "org.opencontainers.image.created": "2026-01-01T00:00:00Z"});
    let image = |kind: Option<&str>, config: &Value, note: &str| {
        let mut all = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [empty], "subject": subject,
            "annotations": notes(note),
        });
        if let Some(kind) = kind {
            all["artifactType"] = json!(kind);
        }
        (MANIFEST, all)
    };
    let index = |kind: Option<&str>, note: &str| {
        let mut all = json!({
            "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": subject, "annotations": notes(note),
        });
        if let Some(kind) = kind {
            all["artifactType"] = json!(kind);
        }
        (INDEX, all)
    };
    let all = [
        (image(Some("x/sbom"), &empty, "1"), Some("x/sbom")),
        (image(Some("x/signature"), &empty, "2"), Some("x/signature")),
        // "If the `artifactType` is empty or missing in the image manifest": that of the configuration.
        (image(None, &typed, "3"), Some("application/vnd.example.config.v1+json")),
        (index(Some("x/sbom"), "4"), Some("x/sbom")),
        // "If the `artifactType` is empty or missing in an index, the `artifactType` MUST be omitted".
        (index(None, "5"), None),
    ];
    let mut expected = Vec::new();
    for ((kind, manifest), listed) in all {
        let bytes = print(&manifest);
        target.put(repo, &sha256(&bytes), &bytes).expect(201);
        let mut entry = descriptor(kind, &bytes);
        entry["annotations"] = manifest["annotations"].clone();
        if let Some(listed) = listed {
            entry["artifactType"] = json!(listed);
        }
        expected.push(entry);
    }
    expected.sort_by_key(|entry| entry["digest"].to_string());
    expected
}

fn listed(answer: &Answer) -> Vec<Value> {
    let mut all = answer.json()["manifests"].as_array().unwrap().clone();
    all.sort_by_key(|entry| entry["digest"].to_string());
    all
}

/// "Listing Referrers": every image and index whose `subject` it is, with type and annotations, wherever
/// the subject is and by whichever digest it is named.
#[test]
fn end_12a_lists_descriptors() {
    let target = Target::new("end_12a");
    let repo = target.repo("a");
    let there = target.image(&repo, "subject");
    target.put(&repo, "v1", &there).expect(201);
    let missing = descriptor(MANIFEST, b"a subject that was never pushed");
    let mut other = descriptor(MANIFEST, &there);
    other["digest"] = json!(Sha512::of(&there).to_string());
    for subject in [descriptor(MANIFEST, &there), missing, other] {
        let expected = refer(&target, &repo, &subject);
        let path = format!("/v2/{repo}/referrers/{}", subject["digest"].as_str().unwrap());
        let answer = target.get(&path).expect(200);
        assert_eq!(answer.header("content-type"), INDEX);
        assert_eq!(listed(&answer), expected);
        let head = target.head(&path).expect(200);
        assert_eq!(head.header("content-type"), INDEX);
    }
    // "in the same `<name>` namespace": not elsewhere.
    let path = format!("/v2/{}/referrers/{}", target.repo("b"), sha256(&there));
    assert_eq!(listed(&target.get(&path).expect(200)), Vec::<Value>::new());
}

/// "If filtering is requested and applied, the response MUST include a header `OCI-Filters-Applied`".
#[test]
fn end_12b_filters_by_type() {
    let target = Target::new("end_12b");
    let repo = target.repo("a");
    let subject = target.image(&repo, "subject");
    let all = refer(&target, &repo, &descriptor(MANIFEST, &subject));
    let path = format!("/v2/{repo}/referrers/{}", sha256(&subject));
    assert_eq!(target.get(&path).expect(200).header("oci-filters-applied"), "");
    for (query, kind) in [
        ("x/sbom", "x/sbom"),
        ("x%2Fsignature", "x/signature"),
        ("application/vnd.example.config.v1%2Bjson", "application/vnd.example.config.v1+json"),
        ("application/vnd.example.config.v1+json", "application/vnd.example.config.v1+json"),
        ("x/none", "x/none"),
    ] {
        let answer = target.get(&format!("{path}?artifactType={query}")).expect(200);
        let expected: Vec<Value> = all.iter().filter(|entry| entry["artifactType"] == kind).cloned().collect();
        assert_eq!(listed(&answer), expected, "{query}");
        assert_eq!(answer.header("oci-filters-applied"), "artifactType");
        assert_eq!(answer.header("content-type"), INDEX);
    }
}

/// "Upgrade Procedures": what clients without the API keep in a fallback tag is theirs to push, and what
/// it lists has a `subject`, so the API lists it as well.
#[test]
fn end_7_12a_the_referrers_tag_schema() {
    let target = Target::new("fallback");
    let repo = target.repo("a");
    let subject = target.image(&repo, "subject");
    target.put(&repo, "v1", &subject).expect(201);
    let entries = refer(&target, &repo, &descriptor(MANIFEST, &subject));
    let tag = sha256(&subject).replace(':', "-");
    // Each client pulls the list, adds its own entry, and pushes it.
    for length in 1..=entries.len() {
        let index = print(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[..length]}));
        target.put(&repo, &tag, &index).expect(201);
        assert_eq!(target.manifest(&repo, &tag).expect(200).body, index);
    }
    let answer = target.get(&format!("/v2/{repo}/referrers/{}", sha256(&subject))).expect(200);
    assert_eq!(listed(&answer), entries);
}
