//! The line that an answer begins with, for clients that print nothing else of it.

use std::sync::Arc;

use adamant_oci::media;
use adamant_registry::{Access, Action, Reserve, Rights};

use crate::world::World;

async fn line(world: &World, method: &str, path: &str, kind: &str, body: &[u8]) -> String {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    );
    let answer = world.raw(&[head.as_bytes(), body].concat()).await;
    answer.split("\r\n").next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_refusal_says_why_in_the_status_line() {
    let world = World::new().await;
    let (one, two) = (world.image("shop/web", "one").await, world.image("shop/web", "two").await);
    world.put("shop/web", "v1", &one).await.expect(201);
    let path = "/v2/shop/web/manifests/v1";
    let refused = line(&world, "PUT", path, media::OCI_MANIFEST, two.bytes().bytes()).await;
    let begin = format!("HTTP/1.1 409 Conflict: `shop/web:v1` is bound to {} for ever, by alice at ", one.digest());
    assert!(refused.starts_with(&begin), "{refused}");
    assert!(refused.contains(&two.digest().to_string()) && refused.contains("new tag"), "{refused}");
    let refused = line(&world, "DELETE", path, "", b"").await;
    assert!(refused.starts_with("HTTP/1.1 405 Method Not Allowed: `v1` of shop/web cannot be deleted"), "{refused}");
    // What is no text stays one line: this is a tag with a line break and bytes beyond ASCII.
    let refused = line(&world, "DELETE", "/v2/shop/web/manifests/a%0d%0aX:%20y%c3%bc", "", b"").await;
    assert!(refused.starts_with("HTTP/1.1 405 ") && refused.is_ascii(), "{refused}");
    // What clients ask without being wrong is answered as ever.
    assert_eq!(line(&world, "HEAD", "/v2/shop/web/manifests/v2", "", b"").await, "HTTP/1.1 404 Not Found");
    world.allow(Access::known("reader", Rights::everywhere(&[Action::Pull])));
    let refused = line(&world, "PUT", path, media::OCI_MANIFEST, one.bytes().bytes()).await;
    assert!(refused.starts_with("HTTP/1.1 403 Forbidden: reader may not push to shop/web"), "{refused}");
    world.allow(Access::anonymous(Rights::none()));
    assert_eq!(line(&world, "GET", path, "", b"").await, "HTTP/1.1 401 Unauthorized");
}

#[tokio::test]
async fn a_full_disk_is_told_in_the_status_line() {
    let reserve = Reserve { bytes: 1000, free: Arc::new(|| Ok(999)) };
    let world = World::bounded(Vec::new(), Some(reserve)).await;
    let refused = line(&world, "POST", "/v2/a/blobs/uploads/", "", b"").await;
    assert!(refused.starts_with("HTTP/1.1 507 Insufficient Storage: ") && refused.contains("999"), "{refused}");
}
