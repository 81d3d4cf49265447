//! Who may do what, from the outside.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::client::{Ask, get};
use crate::process::{Background, run};
use crate::template::exe;
use crate::world::{Server, World, fresh, up};

#[test]
fn loopback_is_no_trust_boundary() {
    let Some(world) = World::new("loopback_is_no_trust_boundary") else { return };
    let url = world.server.url.clone();
    let token = world.token();
    let status = |ask: Ask<'_>| ask.send(&url).unwrap().status;

    // Hosts that are not ours: what DNS rebinding looks like.
    for host in ["evil.example", "shop.prod.localhost", "127.0.0.1", ""] {
        for path in ["/", "/v2/", "/api/v1/projects", "/healthz", "/metrics"] {
            let ask = Ask::new("GET", path).token(&token).header("Host", host);
            assert_eq!(status(ask), 421, "{host} {path}");
        }
    }
    // Writes from other sites, even with a token.
    let from = |name: &'static str, value: &str| {
        let ask = Ask::new("POST", "/api/v1/projects").token(&token).header(name, value);
        status(ask.body("application/json", br#"{"name":"sneaked"}"#))
    };
    assert_eq!(from("Origin", "http://evil.example"), 403);
    assert_eq!(from("Origin", "null"), 403);
    assert_eq!(from("Sec-Fetch-Site", "cross-site"), 403);
    assert_eq!(from("Sec-Fetch-Site", "same-site"), 403);
    let listed = Ask::new("GET", "/api/v1/projects").token(&token).send(&url).unwrap();
    assert_eq!(listed.status, 200);
    assert!(!listed.text().contains("sneaked"), "{}", listed.text());

    // Without a token, or with one that is not ours.
    for path in [
        "/api/v1/projects",
        "/api/v1/projects/shop",
        "/api/v1/ledger",
        "/git/shop.git/info/refs?service=git-receive-pack",
        "/v2/",
    ] {
        assert_eq!(status(Ask::new("GET", path)), 401, "{path}");
        assert_eq!(status(Ask::new("GET", path).token("guess")), 401, "{path}");
    }
    assert_eq!(status(Ask::new("POST", "/api/v1/projects").body("application/json", br#"{"name":"x"}"#)), 401);
    // Pages without a session.
    for path in ["/", "/p/shop", "/p/shop/1", "/ledger", "/events"] {
        assert_eq!(status(Ask::new("GET", path)), 401, "{path}");
    }
}

#[test]
fn a_login_link_works_once_and_gives_a_strict_cookie() {
    let Some(world) = World::new("a_login_link_works_once_and_gives_a_strict_cookie") else { return };
    let link = world.shop.adamant(&["login"]).ok().trim().to_owned();
    let first = get(&link).unwrap();
    assert!((300..400).contains(&first.status), "{}", first.status);
    let cookie = first.header("set-cookie").to_owned();
    for word in ["SameSite=Strict", "HttpOnly"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    let second = get(&link).unwrap();
    assert!(second.status >= 400 && second.header("set-cookie").is_empty(), "{}", second.status);

    let session = cookie.split(';').next().unwrap();
    let page = Ask::new("GET", "/").header("Cookie", session).send(&world.server.url).unwrap();
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    assert!(page.text().contains("shop"));
    // The page reads; its cookie changes nothing.
    let ask = Ask::new("POST", "/api/v1/projects").header("Cookie", session);
    assert_eq!(ask.body("application/json", br#"{"name":"x"}"#).send(&world.server.url).unwrap().status, 401);
}

#[test]
fn secrets_are_readable_by_their_owner_alone() {
    let Some(world) = World::new("secrets_are_readable_by_their_owner_alone") else { return };
    let mode = |path: &str| std::fs::metadata(world.data.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("run/control.sock"), 0o600);
    assert_eq!(mode("run"), 0o700);
    let mut keys = 0;
    for entry in std::fs::read_dir(world.data.join("keys")).unwrap().flatten() {
        if entry.path().is_file() {
            let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode & 0o077, 0, "{}: {mode:o}", entry.path().display());
            keys += 1;
        }
    }
    assert!(keys >= 4, "{keys} keys");
    let config = world.shop.read(".git/config");
    assert!(!config.contains(&world.token()), "a token in .git/config");
}

#[test]
fn a_request_is_for_one_host() {
    let data = fresh("a_request_is_for_one_host").join("data");
    let server = Server::start(&data, exe(), &[]);
    let host = server.url.trim_start_matches("http://");
    let status = |ask: Ask<'_>| ask.send(&server.url).unwrap().status;
    let (ours, theirs) = (format!("http://{host}/healthz"), "http://evil.example/healthz");
    assert_eq!(status(Ask::new("GET", &ours)), 200);
    for (first, second) in [(host, "evil.example"), ("evil.example", host), (host, host)] {
        assert_eq!(status(Ask::new("GET", "/healthz").header("Host", first).header("Host", second)), 400);
    }
    assert_eq!(status(Ask::new("GET", theirs)), 400);
    assert_eq!(status(Ask::new("GET", &ours).header("Host", "evil.example")), 400);
    assert_eq!(status(Ask::new("GET", theirs).header("Host", "evil.example")), 421);
    // None at all.
    let mut bare = TcpStream::connect(host).unwrap();
    bare.write_all(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    bare.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[test]
fn idle_connections_do_not_take_the_server_down() {
    let data = fresh("idle_connections_do_not_take_the_server_down").join("data");
    let plain = up(&data, exe(), &[]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
    let mut server = Server::of(Background::spawn(&mut command), &data, exe());
    let authority = server.url.trim_start_matches("http://").to_owned();
    let open = |_| {
        let mut stream = TcpStream::connect(&authority).unwrap();
        // A client that was ended meanwhile is what is tested.
        let _ = write!(stream, "GET /healthz HTTP/1.1\r\nHost: {authority}\r\n");
        stream
    };
    let idle: Vec<_> = (0..300).map(open).collect();
    let healthy = get(&format!("{}/healthz", server.url)).unwrap();
    assert_eq!((healthy.status, healthy.text().as_str()), (200, "ok\n"));
    let token = run(Command::new(exe()).args(["token", "--data"]).arg(&data)).ok();
    let listed = Ask::new("GET", "/api/v1/projects").token(token.trim()).send(&server.url).unwrap();
    assert_eq!(listed.status, 200);
    // Nor do they hold its end up.
    let stopping = std::time::Instant::now();
    server.stop();
    assert!(stopping.elapsed().as_secs() < 8, "{:?}", stopping.elapsed());
    drop(idle);
}
