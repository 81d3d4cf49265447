//! end-4a, end-4b, end-5, end-6, end-11, end-13, end-14: pushing blobs.

use adamant_digest::Sha512;

use super::{OCTETS, Target, code, fails, finish, location, sha256};
use crate::client::Ask;

/// "POST then PUT": `202 Accepted` and a `Location` of an upload of its own.
#[test]
fn end_4a_starts_an_upload() {
    let target = Target::new("end_4a");
    let repo = target.repo("a");
    let first = target.ask("POST", &format!("/v2/{repo}/blobs/uploads/")).expect(202);
    // "If the registry has a minimum chunk size, the POST response SHOULD include" it in bytes.
    let least = first.header("oci-chunk-min-length");
    assert!(least.is_empty() || least.parse::<u64>().is_ok(), "{least}");
    assert_ne!(location(&first), target.start(&repo));
}

/// "end-4c": an algorithm to come; "if the client provided digest … uses an unsupported algorithm, the
/// registry SHOULD respond with … `400 Bad Request`".
#[test]
fn end_4c_is_told_the_algorithm() {
    let target = Target::new("end_4c");
    let repo = target.repo("a");
    let bytes = vec![4; 512];
    for (algorithm, digest) in [("sha256", sha256(&bytes)), ("sha512", Sha512::of(&bytes).to_string())] {
        let path = format!("/v2/{repo}/blobs/uploads/?digest-algorithm={algorithm}");
        let at = location(&target.ask("POST", &path).expect(202));
        let answer = target.send_bytes("PUT", &finish(&at, &digest), &bytes).expect(201);
        target.holds(&location(&answer), &bytes);
    }
    let answer = target.ask("POST", &format!("/v2/{repo}/blobs/uploads/?digest-algorithm=md5"));
    if target.is_ours() {
        fails(&answer, 400, "DIGEST_INVALID");
    }
}

/// "POST then PUT": `201 Created` and a pullable `Location`.
#[test]
fn end_6_finishes_an_upload() {
    let target = Target::new("end_6");
    let repo = target.repo("a");
    for bytes in [vec![1; 512], vec![2; 2 << 20], Vec::new(), b"{}".to_vec()] {
        let digest = sha256(&bytes);
        let path = finish(&target.start(&repo), &digest);
        let answer = target.send_bytes("PUT", &path, &bytes).expect(201);
        assert_eq!(answer.header("docker-content-digest"), digest);
        target.holds(&location(&answer), &bytes);
        assert_eq!(
            target.head(&format!("/v2/{repo}/blobs/{digest}")).expect(200).header("docker-content-digest"),
            digest
        );
    }
}

/// "Single POST": `201 Created` and `Location`, or `202` and the upload goes on by `PUT`.
#[test]
fn end_4b_a_whole_blob_in_the_post() {
    let target = Target::new("end_4b");
    let repo = target.repo("a");
    let bytes = vec![3; 512];
    let digest = sha256(&bytes);
    let mut answer = target.send_bytes("POST", &format!("/v2/{repo}/blobs/uploads/?digest={digest}"), &bytes);
    if answer.status == 202 && !target.is_ours() {
        answer = target.send_bytes("PUT", &finish(&location(&answer), &digest), &bytes);
    }
    let answer = answer.expect(201);
    target.holds(&location(&answer), &bytes);
}

/// "Pushing a blob in chunks": each chunk is `202` with `Location` and `Range`; an empty `PUT` closes it.
#[test]
fn end_5_chunks_and_a_closing_put() {
    let target = Target::new("end_5_chunks");
    let repo = target.repo("a");
    let bytes: Vec<u8> = (0..3067_u32).map(|n| u8::try_from(n % 253).unwrap()).collect();
    let mut at = target.start(&repo);
    let mut sent = 0;
    for chunk in bytes.chunks(1024) {
        let answer = target.chunk(&at, sent, chunk).expect(202);
        sent += chunk.len();
        assert_eq!(answer.header("range"), format!("0-{}", sent - 1));
        at = location(&answer);
    }
    let path = finish(&at, &sha256(&bytes));
    let answer = target.send(Ask::new("PUT", &path).body(OCTETS, b"")).expect(201);
    target.holds(&location(&answer), &bytes);
}

/// "The final chunk MAY be uploaded using a `PATCH` request or … in the closing `PUT` request".
#[test]
fn end_6_takes_the_last_chunk() {
    let target = Target::new("end_6_last");
    let repo = target.repo("a");
    let at = location(&target.chunk(&target.start(&repo), 0, b"hello ").expect(202));
    let path = finish(&at, &sha256(b"hello world"));
    let ask = Ask::new("PUT", &path).header("Content-Range", "6-10").body(OCTETS, b"world");
    let answer = target.send(ask).expect(201);
    target.holds(&location(&answer), b"hello world");
}

/// "If a chunk is uploaded out of order, the registry MUST respond with a `416`", and a `GET` tells
/// where to go on.
#[test]
fn end_5_chunks_out_of_order_are_416() {
    let target = Target::new("end_5_order");
    let repo = target.repo("a");
    let at = target.start(&repo);
    // Ahead, before anything came.
    target.chunk(&at, 6, b"world").expect(416);
    let at = location(&target.get(&at).expect(204));
    let at = location(&target.chunk(&at, 0, b"hello ").expect(202));
    // Back to the start, and ahead with a gap, by PATCH and by the closing PUT.
    target.chunk(&at, 0, b"hello ").expect(416);
    target.chunk(&at, 7, b"orld").expect(416);
    let path = finish(&at, &sha256(b"hello world"));
    target.send(Ask::new("PUT", &path).header("Content-Range", "7-10").body(OCTETS, b"orld")).expect(416);
    let status = target.get(&at).expect(204);
    assert_eq!(status.header("range"), "0-5");
    let at = location(&target.chunk(&location(&status), 6, b"world").expect(202));
    let answer = target.send_bytes("PUT", &finish(&at, &sha256(b"hello world")), b"").expect(201);
    target.holds(&location(&answer), b"hello world");
}

/// `<range>` MUST match `^[0-9]+-[0-9]+$`, and be the length that is sent.
#[test]
fn end_5_ranges_that_are_none_are_refused() {
    let target = Target::new("end_5_range");
    let repo = target.repo("a");
    let at = target.start(&repo);
    for range in ["x", "0", "0-", "-3", "3-0", "0-9"] {
        let answer = target.send(Ask::new("PATCH", &at).header("Content-Range", range).body(OCTETS, b"abc"));
        assert!(matches!(answer.status, 400 | 416), "{range}: {}", answer.status);
    }
    // Nothing of it was kept.
    target.chunk(&at, 0, b"abc").expect(202);
}

/// A blob is streamed by one `PATCH` without `Content-Range`, of any length (chunked transfer).
#[test]
fn end_5_a_stream() {
    let target = Target::new("end_5_stream");
    let repo = target.repo("a");
    let bytes: Vec<u8> = (0..20_000_u32).map(|n| u8::try_from(n % 241).unwrap()).collect();
    let at = target.start(&repo);
    let answer = target.send(Ask::new("PATCH", &at).body(OCTETS, &bytes).chunked()).expect(202);
    assert_eq!(answer.header("range"), "0-19999");
    let answer = target.send_bytes("PUT", &finish(&location(&answer), &sha256(&bytes)), b"").expect(201);
    target.holds(&location(&answer), &bytes);
}

/// end-13: `204 No Content`, `Location` and `Range` for an active upload.
#[test]
fn end_13_tells_how_far_an_upload_is() {
    let target = Target::new("end_13");
    let repo = target.repo("a");
    let at = target.start(&repo);
    let status = target.get(&at).expect(204);
    assert!(status.header("range").starts_with("0-"), "{}", status.header("range"));
    let at = location(&target.chunk(&location(&status), 0, b"hello").expect(202));
    let status = target.get(&at).expect(204);
    assert_eq!(status.header("range"), "0-4");
    assert!(!location(&status).is_empty());
}

/// end-14: `204 No Content`, and the upload is no more.
#[test]
fn end_14_cancels_an_upload() {
    let target = Target::new("end_14");
    let repo = target.repo("a");
    let at = location(&target.chunk(&target.start(&repo), 0, b"hello").expect(202));
    target.ask("DELETE", &at).expect(204);
    fails(&target.get(&at), 404, "BLOB_UPLOAD_UNKNOWN");
    fails(&target.chunk(&at, 5, b"x"), 404, "BLOB_UPLOAD_UNKNOWN");
    fails(&target.ask("DELETE", &at), 404, "BLOB_UPLOAD_UNKNOWN");
}

/// The table of endpoints: `404` for an upload that is not under way.
#[test]
fn end_5_6_13_14_unknown_uploads_are_404() {
    let target = Target::new("end_5_unknown");
    let repo = target.repo("a");
    let done = target.start(&repo);
    target.send_bytes("PUT", &finish(&done, &sha256(b"x")), b"x").expect(201);
    let mut places = vec![done];
    if target.is_ours() {
        // An upload is found through its repository alone.
        places.push(format!("/v2/{repo}/blobs/uploads/unknown"));
        places.push(target.start(&repo).replace(&repo, &target.repo("b")));
    }
    for at in places {
        for answer in [
            target.get(&at),
            target.chunk(&at, 0, b"x"),
            target.send_bytes("PUT", &finish(&at, &sha256(b"x")), b"x"),
            target.ask("DELETE", &at),
        ] {
            fails(&answer, 404, "BLOB_UPLOAD_UNKNOWN");
        }
    }
}

/// "`<digest>` MUST match the blob's digest": in every way to push, by both algorithms, and nothing
/// is kept.
#[test]
fn end_4b_5_6_other_bytes_than_announced_are_400() {
    let target = Target::new("end_6_wrong");
    let repo = target.repo("a");
    let bytes = b"what comes, oh no";
    for digest in [sha256(b"what was announced"), Sha512::of(b"what was announced").to_string()] {
        let post = target.send_bytes("POST", &format!("/v2/{repo}/blobs/uploads/?digest={digest}"), bytes);
        assert!(post.status == 400 || (post.status == 202 && !target.is_ours()), "{}", post.status);
        let put = target.send_bytes("PUT", &finish(&target.start(&repo), &digest), bytes);
        let at = location(&target.chunk(&target.start(&repo), 0, bytes).expect(202));
        let chunked = target.send_bytes("PUT", &finish(&at, &digest), b"");
        let at = target.start(&repo);
        let streamed = target.send(Ask::new("PATCH", &at).body(OCTETS, bytes).chunked()).expect(202);
        let streamed = target.send_bytes("PUT", &finish(&location(&streamed), &digest), b"");
        for answer in [put, chunked, streamed] {
            fails(&answer, 400, "DIGEST_INVALID");
        }
        target.get(&format!("/v2/{repo}/blobs/{digest}")).expect(404);
    }
}

/// "The closing `PUT` request MUST include the `<digest>`": without one, or with none, it is 400, and
/// the upload is still there.
#[test]
fn end_6_without_a_digest_is_400() {
    let target = Target::new("end_6_none");
    let repo = target.repo("a");
    let at = location(&target.chunk(&target.start(&repo), 0, b"hello").expect(202));
    fails(&target.send_bytes("PUT", &at, b""), 400, "DIGEST_INVALID");
    fails(&target.send_bytes("PUT", &finish(&at, "sha256:baddigeststring"), b""), 400, "DIGEST_INVALID");
    if target.is_ours() {
        target.send_bytes("PUT", &finish(&at, &sha256(b"hello")), b"").expect(201);
    }
}

/// "Mounting a blob from another repository": `201 Created`, `Location`, and the digest.
#[test]
fn end_11_mounts_from_another_repository() {
    let target = Target::new("end_11");
    let (from, to) = (target.repo("from/here"), target.repo("to"));
    let digest = target.push(&from, b"mounted");
    // Clients differ in whether they escape what need not be escaped in a query.
    for (from, to) in [(from.clone(), to.clone()), (from.replace('/', "%2F"), target.repo("too"))] {
        let path = format!("/v2/{to}/blobs/uploads/?mount={digest}&from={from}");
        let answer = target.ask("POST", &path).expect(201);
        assert_eq!(answer.header("docker-content-digest"), digest);
        target.holds(&location(&answer), b"mounted");
        target.holds(&format!("/v2/{to}/blobs/{digest}"), b"mounted");
    }
}

/// "The registry MAY treat the `from` parameter as optional".
#[test]
fn end_11_mounts_without_from() {
    let target = Target::new("end_11_anonymous");
    let digest = target.push(&target.repo("from"), b"mounted by nobody");
    let to = target.repo("to");
    let answer = target.ask("POST", &format!("/v2/{to}/blobs/uploads/?mount={digest}"));
    if answer.status == 202 && !target.is_ours() {
        return;
    }
    target.holds(&location(&answer.expect(201)), b"mounted by nobody");
}

/// "if a registry … is unable to mount the requested blob, it SHOULD return a `202`": an upload begins.
#[test]
fn end_11_a_missing_blob_begins_an_upload() {
    let target = Target::new("end_11_missing");
    let (from, to) = (target.repo("from"), target.repo("to"));
    let bytes = format!("not mounted {}", target.prefix).into_bytes();
    let digest = sha256(&bytes);
    let path = format!("/v2/{to}/blobs/uploads/?mount={digest}&from={from}");
    let answer = target.ask("POST", &path).expect(202);
    let answer = target.send_bytes("PUT", &finish(&location(&answer), &digest), &bytes).expect(201);
    target.holds(&location(&answer), &bytes);
}

/// image-spec, "Registered Algorithms": the same by sha512.
#[test]
fn end_2_4b_5_6_11_by_sha512() {
    let target = Target::new("sha512_blobs");
    let (repo, other) = (target.repo("a"), target.repo("b"));
    for (n, bytes) in [vec![4; 1500], Vec::new(), b"{}".to_vec()].iter().enumerate() {
        let digest = Sha512::of(bytes).to_string();
        let answer = match n {
            0 => target.send_bytes("POST", &format!("/v2/{repo}/blobs/uploads/?digest={digest}"), bytes),
            1 => target.send_bytes("PUT", &finish(&target.start(&repo), &digest), bytes),
            _ => {
                let at = location(&target.chunk(&target.start(&repo), 0, bytes).expect(202));
                target.send_bytes("PUT", &finish(&at, &digest), b"")
            }
        };
        let answer = answer.expect(201);
        assert_eq!(answer.header("docker-content-digest"), digest);
        target.holds(&location(&answer), bytes);
        let head = target.head(&format!("/v2/{repo}/blobs/{digest}")).expect(200);
        assert_eq!(head.header("docker-content-digest"), digest);
        let path = format!("/v2/{other}/blobs/uploads/?mount={digest}&from={repo}");
        target.holds(&location(&target.ask("POST", &path).expect(201)), bytes);
    }
}

/// "Push": the same blob again is no error, and an algorithm that nobody checks is one.
#[test]
fn end_6_again_and_by_unknown_algorithms() {
    let target = Target::new("end_6_again");
    let repo = target.repo("a");
    for _ in 0..3 {
        target.push(&repo, b"again and again");
    }
    for digest in [format!("sha384:{}", "a".repeat(96)), "md5:d41d8cd98f00b204e9800998ecf8427e".to_owned()] {
        let answer = target.send_bytes("PUT", &finish(&target.start(&repo), &digest), b"x").expect(400);
        assert_eq!(code(&answer), "DIGEST_INVALID");
    }
}
