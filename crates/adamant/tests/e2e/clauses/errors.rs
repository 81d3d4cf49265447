//! "Error Codes", and what HTTP itself asks of every answer.

use super::{Target, code, fails, sha256};
use crate::client::{Ask, Connection};

/// The form of an error: `errors`, each with a code in capitals, a message for people, and a detail.
#[test]
fn errors_have_the_form_of_the_specification() {
    let target = Target::new("errors");
    let repo = target.repo("a");
    target.push(&repo, b"there");
    for (method, path, status) in [
        ("GET", format!("/v2/{repo}/manifests/none"), 404),
        ("GET", format!("/v2/{repo}/blobs/{}", sha256(b"none")), 404),
        ("GET", format!("/v2/{}/tags/list", target.repo("none")), 404),
        ("PUT", format!("/v2/{repo}/manifests/v1"), 400),
    ] {
        let answer = target.ask(method, &path).expect(status);
        assert!(answer.header("content-type").starts_with("application/json"), "{path}");
        assert!(!code(&answer).is_empty());
        for error in answer.json()["errors"].as_array().unwrap() {
            assert!(!error["message"].as_str().unwrap().is_empty(), "{error}");
        }
    }
}

/// RFC 9110, 9.3.2: `HEAD` has the headers of `GET`, errors included, and no body, on one connection.
#[test]
fn head_is_get_without_the_body() {
    let target = Target::new("head");
    let repo = target.repo("a");
    let manifest = target.image(&repo, "head");
    target.put(&repo, "v1", &manifest).expect(201);
    let blob = target.push(&repo, b"head");
    let mut connection = Connection::open(&target.url).unwrap();
    let mut ask = |method: &str, path: &str| {
        let mut ask = Ask::new(method, path);
        if let Some(token) = &target.token {
            ask = ask.token(token);
        }
        connection.ask(&ask, false).unwrap()
    };
    for path in [
        "/v2/".to_owned(),
        format!("/v2/{repo}/manifests/v1"),
        format!("/v2/{repo}/manifests/{}", sha256(&manifest)),
        format!("/v2/{repo}/manifests/none"),
        format!("/v2/{repo}/blobs/{blob}"),
        format!("/v2/{repo}/blobs/{}", sha256(b"none")),
        format!("/v2/{repo}/tags/list"),
        format!("/v2/{repo}/referrers/{blob}"),
    ] {
        let (get, head) = (ask("GET", &path), ask("HEAD", &path));
        if head.status == 405 && !target.is_ours() {
            continue;
        }
        assert_eq!(get.status, head.status, "{path}");
        for name in ["content-type", "content-length", "docker-content-digest", "etag"] {
            assert_eq!(get.header(name), head.header(name), "{path}: {name}");
        }
        assert!(head.body.is_empty(), "{path}");
    }
}

/// RFC 9110, 15.5.6: `405` names what is allowed.
#[test]
fn ours_methods_that_are_none() {
    let target = Target::new("ours_methods");
    if !target.is_ours() {
        return;
    }
    let repo = target.repo("a");
    for (method, path, allowed) in [
        ("POST", "/v2/".to_owned(), "GET, HEAD"),
        ("PATCH", format!("/v2/{repo}/manifests/v1"), "GET, HEAD, PUT"),
        ("PUT", format!("/v2/{repo}/tags/list"), "GET, HEAD"),
        ("POST", format!("/v2/{repo}/referrers/{}", sha256(b"x")), "GET, HEAD"),
        ("GET", format!("/v2/{repo}/blobs/uploads/"), "POST"),
    ] {
        let answer = target.ask(method, &path);
        fails(&answer, 405, "UNSUPPORTED");
        assert_eq!(answer.header("allow"), allowed, "{method} {path}");
    }
}

/// `UNAUTHORIZED` with the way to sign in, before anything is told about a repository.
#[test]
fn ours_without_a_token_is_401() {
    let target = Target::new("ours_401");
    if !target.is_ours() {
        return;
    }
    let repo = target.repo("a");
    let manifest = target.image(&repo, "secret");
    target.put(&repo, "v1", &manifest).expect(201);
    for (method, path) in [
        ("GET", "/v2/".to_owned()),
        ("GET", format!("/v2/{repo}/manifests/v1")),
        ("GET", format!("/v2/{repo}/manifests/none")),
        ("GET", format!("/v2/{repo}/tags/list")),
        ("POST", format!("/v2/{repo}/blobs/uploads/")),
        ("PUT", format!("/v2/{repo}/manifests/v2")),
    ] {
        let answer = Ask::new(method, &path).send(&target.url).unwrap();
        fails(&answer, 401, "UNAUTHORIZED");
        assert!(!answer.header("www-authenticate").is_empty(), "{method} {path}");
    }
}
