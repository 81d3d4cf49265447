//! end-9, end-10: deleting, which this registry never does.

use super::{Target, fails, sha256};

/// "If tag deletion is disabled, the registry MUST respond with either a `400` or a `405`".
#[test]
fn end_9_tags_stay() {
    let target = Target::new("end_9_tag");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "end_9_tag");
    target.put(&repo, "v1", &manifest).expect(201);
    let answer = target.ask("DELETE", &format!("/v2/{repo}/manifests/v1"));
    if !target.is_ours() {
        assert!(matches!(answer.status, 202 | 400 | 405), "{}", answer.status);
        return;
    }
    fails(&answer, 405, "UNSUPPORTED");
    assert!(answer.text().contains("deleted"), "{}", answer.text());
    assert!(!answer.header("allow").contains("DELETE"), "{}", answer.header("allow"));
    assert_eq!(target.manifest(&repo, "v1").expect(200).body, manifest);
    assert!(target.get(&format!("/v2/{repo}/tags/list")).expect(200).text().contains("v1"));
}

/// "If manifest deletion is disabled, the registry MUST respond with either a `400` or a `405`".
#[test]
fn end_9_manifests_stay() {
    let target = Target::new("end_9_digest");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "end_9_digest");
    let digest = sha256(&manifest);
    target.put(&repo, &digest, &manifest).expect(201);
    let answer = target.ask("DELETE", &format!("/v2/{repo}/manifests/{digest}"));
    if !target.is_ours() {
        assert!(matches!(answer.status, 202 | 400 | 405), "{}", answer.status);
        return;
    }
    fails(&answer, 405, "UNSUPPORTED");
    assert_eq!(target.manifest(&repo, &digest).expect(200).body, manifest);
}

/// "If blob deletion is disabled, the registry MUST respond with either a `400` or a `405`".
#[test]
fn end_10_blobs_stay() {
    let target = Target::new("end_10");
    let repo = target.repo("a");
    let digest = target.push(&repo, b"stays");
    let path = format!("/v2/{repo}/blobs/{digest}");
    let answer = target.ask("DELETE", &path);
    if !target.is_ours() {
        assert!(matches!(answer.status, 202 | 400 | 405), "{}", answer.status);
        return;
    }
    fails(&answer, 405, "UNSUPPORTED");
    target.holds(&path, b"stays");
}
