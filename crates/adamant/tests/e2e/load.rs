//! What users of prod notice of kills, restarts, upgrades, promotions and rollbacks: nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::{Answer, Ask, Connection};
use crate::process::{processes, wait_for};
use crate::world::World;

/// Requests without pause, over connections kept and connections of their own.
struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn on(url: &str) -> Self {
        let (stop, count, failures) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::default());
        let mut threads = Vec::new();
        for kept in [true, true, false, false] {
            let (url, stop, count) = (url.to_owned(), Arc::clone(&stop), Arc::clone(&count));
            let failures: Arc<Mutex<Vec<String>>> = Arc::clone(&failures);
            threads.push(std::thread::spawn(move || {
                let mut connection: Option<Connection> = None;
                while !stop.load(Ordering::Relaxed) {
                    let answer = request(&mut connection, &url, kept);
                    count.fetch_add(1, Ordering::Relaxed);
                    let bad = match answer {
                        Ok(answer) if answer.status == 200 && answer.text().contains("version") => None,
                        Ok(answer) => Some(format!("{} {}", answer.status, answer.text())),
                        Err(error) => {
                            connection = None;
                            Some(error.to_string())
                        }
                    };
                    if let Some(bad) = bad {
                        failures.lock().unwrap().push(format!("kept={kept}: {bad}"));
                    }
                    // Enough requests to be in the middle of everything; the processors have other work.
                    std::thread::sleep(Duration::from_millis(3));
                }
            }));
        }
        Self { stop, count, failures, threads }
    }

    /// Waits for some more requests, so that what just happened is covered.
    fn more(&self) {
        let before = self.count.load(Ordering::Relaxed);
        wait_for("requests", || (self.count.load(Ordering::Relaxed) > before + 100).then_some(()));
    }

    /// Ends the load; gives the number of requests.
    #[track_caller]
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let failures = self.failures.lock().unwrap();
        let count = self.count.load(Ordering::Relaxed);
        let first: Vec<_> = failures.iter().take(5).collect();
        assert!(failures.is_empty(), "{} of {count} requests failed: {first:#?}", failures.len());
        count
    }
}

fn request(connection: &mut Option<Connection>, url: &str, kept: bool) -> std::io::Result<Answer> {
    let ask = Ask::new("GET", "/");
    if !kept {
        return ask.send(url);
    }
    let open = match connection.take() {
        Some(open) => open,
        None => Connection::open(url)?,
    };
    let open = connection.insert(open);
    let answer = open.ask(&ask, false)?;
    if answer.header("connection").eq_ignore_ascii_case("close") {
        *connection = None;
    }
    Ok(answer)
}

#[test]
fn kills_restarts_and_an_upgrade_fail_no_request() {
    let Some(mut world) = World::new("kills_restarts_and_an_upgrade_fail_no_request") else { return };
    let load = Load::on(&world.shop.url("prod"));
    for _ in 0..2 {
        load.more();
        world.server.kill();
        load.more();
        world.restart();
        load.more();
    }
    world.server.stop();
    load.more();
    // An upgrade: another file, so another executable.
    let upgraded = world.dir.join("adamant-upgraded");
    std::fs::copy(&world.exe, &upgraded).unwrap();
    let front = world.data.join("local/prod").display().to_string();
    let before = processes(&["__front", &front]);
    assert!(!before.is_empty(), "prod has no front");
    world.exe = upgraded.clone();
    world.shop.exe = upgraded;
    world.restart();
    wait_for("another front", || {
        let now = processes(&["__front", &front]);
        now.iter().any(|pid| !before.contains(pid)).then_some(())
    });
    load.more();
    load.more();
    let count = load.end();
    eprintln!("{count} requests");
    world.assert_sound("after the upgrade");
}

#[test]
fn promotions_and_rollbacks_fail_no_request() {
    let Some(world) = World::new("promotions_and_rollbacks_fail_no_request") else { return };
    let commit = world.shop.change("third");
    world.shop.push().ok();
    let release = world.shop.release_of(&commit);
    world.shop.adamant(&["promote", &release, "staging", "--wait"]).ok();
    let load = Load::on(&world.shop.url("prod"));
    load.more();
    for _ in 0..3 {
        world.shop.adamant(&["promote", &release, "prod"]).ok();
        assert!(world.page("prod").contains("version third"));
        load.more();
        world.shop.adamant(&["rollback", "prod"]).ok();
        assert!(world.page("prod").contains("version second"));
        load.more();
    }
    eprintln!("{} requests", load.end());
}
