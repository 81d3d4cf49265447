//! Fronts: switches and upgrades without a lost request, and what they pass.

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use adamant_deploy::Outcome;

use crate::http::{Connection, get};
use crate::support::{HOST, World, applied, helper, until};
use crate::world;

/// Requests without pause on kept and on new connections.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<String>>>,
    done: Arc<AtomicUsize>,
}

impl Load {
    fn start(port: u16) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..6)
            .map(|number| {
                let (stop, done) = (stop.clone(), done.clone());
                std::thread::spawn(move || {
                    let mut failed = Vec::new();
                    let mut kept: Option<Connection> = None;
                    while !stop.load(Ordering::Relaxed) {
                        let connection = match kept.take() {
                            Some(connection) if number % 2 == 0 && !connection.closed => Ok(connection),
                            _ => Connection::open(port),
                        };
                        let body: &[u8] = if number == 4 || number == 5 { b"body" } else { b"" };
                        let (method, path) = match (number, body.is_empty()) {
                            (_, false) => ("POST", "/echo"),
                            (0, _) => ("GET", "/slow"),
                            _ => ("GET", "/"),
                        };
                        let answer = connection.and_then(|mut c| Ok((c.ask(method, HOST, path, "", body)?, c)));
                        match answer {
                            Ok((answer, connection)) if answer.status == 200 => kept = Some(connection),
                            Ok((answer, _)) => failed.push(format!("{path}: {} {}", answer.status, answer.body)),
                            Err(error) => failed.push(format!("{path}: {error}")),
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    failed
                })
            })
            .collect();
        Self { stop, threads, done }
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed: Vec<String> = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let done = self.done.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "{} of {done} failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
        assert!(done > 100, "only {done} requests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_in_switches() {
    let world = world!("no_request_is_lost_in_switches");
    let images = [world.image(false, &[("v", "1")]).await, world.image(false, &[("v", "2")]).await];
    world.deploy(1, images[0], "1").await;
    let port = world.port().await;
    let load = Load::start(port);
    for generation in 2..7 {
        let name = generation.to_string();
        let ms = world.deploy(generation, images[usize::try_from(generation % 2).unwrap()], &name).await;
        eprintln!("switched under load in {ms} ms");
        assert_eq!(get(port, HOST, "/").unwrap().body, name);
    }
    load.finish();
    world.local.settle().await;
    assert_eq!(world.local.observe().await.unwrap()[0].instances.len(), 1);
}

/// Starts a process that deploys `generation`.
fn deployer(world: &World, generation: u64, image: adamant_digest::Digest) -> std::process::Child {
    let applied = applied(generation, image, &[("NAME", &generation.to_string())]);
    let dir = world.dir();
    std::fs::write(dir.join("generation"), generation.to_string()).unwrap();
    std::fs::write(dir.join("rollout.json"), applied.rollout).unwrap();
    std::fs::write(dir.join("configuration.json"), applied.configuration).unwrap();
    std::fs::write(dir.join("evidence"), applied.evidence).unwrap();
    let _ = std::fs::remove_file(dir.join("applied"));
    std::process::Command::new(helper()).arg("apply").arg(&dir).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_takes_nothing_with_it() {
    let world = world!("a_killed_server_takes_nothing_with_it");
    let image = world.image(false, &[]).await;
    let mut server = deployer(&world, 1, image);
    until("deployed", async || world.dir().join("applied").exists()).await;
    server.kill().unwrap();
    server.wait().unwrap();
    let port = world.port().await;
    assert_eq!(get(port, HOST, "/").unwrap().body, "1");
    assert!(world.local.converge().await.is_empty());

    // Killed at any point of a deployment: what runs answers, and the deployment can be repeated.
    let load = Load::start(port);
    for generation in 2..12 {
        let mut server = deployer(&world, generation, image);
        std::thread::sleep(Duration::from_millis(generation * 30));
        server.kill().unwrap();
        server.wait().unwrap();
        let events = world.local.converge().await;
        assert!(events.iter().all(|event| !event.trouble), "{events:?}");
        let body = get(port, HOST, "/").unwrap().body;
        assert!(body == generation.to_string() || body == (generation - 1).to_string(), "{body} at {generation}");
        world.deploy(generation, image, &generation.to_string()).await;
        assert_eq!(get(port, HOST, "/").unwrap().body, generation.to_string());
    }
    load.finish();
    world.local.settle().await;
    world.local.converge().await;
    world.local.settle().await;
    assert_eq!(world.local.observe().await.unwrap()[0].instances.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_end_where_they_began() {
    let world = world!("requests_in_flight_end_where_they_began");
    let image = world.image(false, &[]).await;
    world.deploy(1, image, "old").await;
    let port = world.port().await;
    let mut slow = Connection::open(port).unwrap();
    slow.send("GET", HOST, "/slow", "", b"").unwrap();
    let mut tunnel = Connection::open(port).unwrap();
    tunnel.send("GET", HOST, "/upgrade", "Connection: Upgrade\r\nUpgrade: echo\r\n", b"").unwrap();
    let (status, head) = tunnel.head().unwrap();
    assert_eq!(status, 101);
    assert!(head.contains("upgrade: echo"), "{head}");
    let echo = |tunnel: &mut Connection, text: &[u8]| {
        tunnel.raw().get_mut().write_all(text).unwrap();
        let mut back = vec![0; text.len()];
        tunnel.raw().read_exact(&mut back).unwrap();
        assert_eq!(back, text);
    };
    echo(&mut tunnel, b"before");
    world.deploy(2, image, "new").await;
    assert_eq!(get(port, HOST, "/").unwrap().body, "new");
    echo(&mut tunnel, b"after");
    let (status, _) = slow.head().unwrap();
    let mut body = [0; 3];
    slow.raw().read_exact(&mut body).unwrap();
    assert_eq!((status, &body), (200, b"old"));
    drop(tunnel);
    let began = Instant::now();
    world.local.settle().await;
    assert!(began.elapsed() < Duration::from_secs(9), "the closed tunnel was waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_front_passes_and_refuses() {
    let world = world!("what_a_front_passes_and_refuses");
    let image = world.image(false, &[]).await;
    world.deploy(1, image, "one").await;
    let port = world.port().await;
    let unknown = get(port, "other.dev.localhost", "/").unwrap();
    assert_eq!(unknown.status, 421);
    assert!(unknown.body.contains("no service is called other.dev.localhost here"), "{}", unknown.body);
    assert_eq!(get(port, "localhost", "/").unwrap().status, 421);
    let mut connection = Connection::open(port).unwrap();
    assert_eq!(connection.ask("POST", HOST, "/echo", "", b"some bytes").unwrap().body, "some bytes");
    let chunked = connection.ask("GET", HOST, "/stream", "", b"").unwrap();
    assert_eq!(chunked.body, "012");
    // Streams as it comes: the first byte is there long before the last.
    connection.send("GET", HOST, "/stream", "", b"").unwrap();
    let began = Instant::now();
    connection.head().unwrap();
    let mut first = [0; 6];
    connection.raw().read_exact(&mut first).unwrap();
    assert!(began.elapsed() < Duration::from_millis(350), "{:?}", began.elapsed());
    let secret = "Connection: X-Secret\r\nX-Secret: 1\r\nX-Forwarded-For: 6.6.6.6\r\n";
    let head = Connection::open(port).unwrap().ask("GET", HOST, "/headers", secret, b"").unwrap();
    let seen = head.body.to_ascii_lowercase();
    assert!(!seen.contains("x-secret") && !seen.contains("6.6.6.6"), "{seen}");
    let huge = format!("X-Big: {}\r\n", "x".repeat(100_000));
    let refused = Connection::open(port).unwrap().ask("GET", HOST, "/", &huge, b"");
    let status = refused.map_or(431, |answer| answer.status);
    assert_eq!(status, 431);
    assert!(head.head.contains("content-length"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_cannot_be_read_is_the_clients_fault() {
    let world = world!("a_body_that_cannot_be_read_is_the_clients_fault");
    let image = world.image(false, &[]).await;
    world.deploy(1, image, "one").await;
    let port = world.port().await;
    for method in ["POST", "PUT"] {
        let mut bad = Connection::open(port).unwrap();
        bad.send(method, HOST, "/slow", "Transfer-Encoding: chunked\r\n", b"").unwrap();
        // In two parts, so that the program has the head already.
        std::thread::sleep(Duration::from_millis(100));
        bad.raw().get_mut().write_all(b"nonsense\r\n").unwrap();
        let (status, head) = bad.head().unwrap();
        assert_eq!(status, 400, "{method}: {head}");
    }
    // A program that breaks off is not the client.
    let mut body = Connection::open(port).unwrap();
    assert_eq!(body.ask("POST", HOST, "/crash", "", b"body").unwrap().status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_front_takes_over_under_load() {
    let world = world!("a_new_front_takes_over_under_load");
    let image = world.image(false, &[]).await;
    world.deploy(1, image, "1").await;
    let port = world.port().await;
    let load = Load::start(port);
    let mut tunnel = Connection::open(port).unwrap();
    tunnel.send("GET", HOST, "/upgrade", "Connection: Upgrade\r\nUpgrade: echo\r\n", b"").unwrap();
    assert_eq!(tunnel.head().unwrap().0, 101);
    let mut idle = Connection::open(port).unwrap();
    assert_eq!(idle.ask("GET", HOST, "/", "", b"").unwrap().body, "1");
    let mut current = world.local.clone();
    for generation in 2..5 {
        // Another file is another build, and so another front.
        let exe = world.dir().join(format!("helper-{generation}"));
        // By another process: a child that a test beside this one starts would inherit the open
        // file of a copy made here, and nobody can run a file that is open for writing.
        assert!(Command::new("cp").arg(helper()).arg(&exe).status().unwrap().success());
        current = World::open(&world.dir(), exe, world.blobs.clone());
        let events = current.converge().await;
        let words: Vec<&str> = events.iter().map(|e| e.what.as_str()).collect();
        assert_eq!(words, ["front replaced by a newer one"]);
        assert!(current.converge().await.is_empty());
        let name = generation.to_string();
        let outcome = current.apply(&applied(generation, image, &[("NAME", &name)])).await.unwrap();
        assert!(matches!(outcome, Outcome::Healthy { .. }), "{outcome:?}");
        assert_eq!(get(port, HOST, "/").unwrap().body, name);
    }
    // A connection to the first front still finds what runs now.
    assert_eq!(idle.ask("GET", HOST, "/", "", b"").unwrap().body, "4");
    load.finish();
    drop(tunnel);
    current.settle().await;
}
