//! `kill -9` of the server at named points, at any time, and at any sync of a file. Whatever was
//! acknowledged is there afterwards, nothing is wrong, and a repeated push completes.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use adamant_api::Deployed;
use adamant_digest::Digest;
use rustix::process::Signal;

use crate::client::Ask;
use crate::process::{Background, Ended, installed, processes, run, skipped, wait_for};
use crate::world::{Server, World, up};

/// What the server said yes to.
#[derive(Default)]
struct Acknowledged {
    /// Digest by tag of `shop/web`.
    tags: BTreeMap<String, Digest>,
    /// Release by environment and number.
    deployments: BTreeMap<(String, u64), String>,
}

impl Acknowledged {
    /// Everything there is when nothing is going on.
    fn see(&mut self, world: &World) {
        let status = world.shop.status();
        for release in status.releases {
            for artifact in &release.artifacts {
                self.tags.insert(release.commit.clone(), artifact.digest);
                self.tags.insert(release.number.to_string(), artifact.digest);
            }
        }
        for environment in status.environments {
            for deployment in environment.history.into_iter().chain(environment.current) {
                self.deployments.insert((environment.name.clone(), deployment.sequence), deployment.release);
            }
        }
    }

    fn deployed(&mut self, deployed: &Ended) {
        if deployed.code == 0 {
            let deployed: Deployed = serde_json::from_str(&deployed.out).unwrap();
            self.deployments.insert((deployed.environment, deployed.sequence), deployed.release);
        }
    }

    #[track_caller]
    fn assert_there(&self, world: &World, when: &str) {
        let token = world.token();
        for (tag, digest) in &self.tags {
            let path = format!("/v2/shop/web/manifests/{tag}");
            let answer = Ask::new("GET", &path).token(&token).send(&world.server.url).unwrap();
            assert_eq!(answer.status, 200, "{when}: tag {tag} is gone: {}", answer.text());
            assert_eq!(Digest::of(&answer.body), *digest, "{when}: tag {tag}");
        }
        let status = world.shop.status();
        for ((environment, sequence), release) in &self.deployments {
            let found = status.environments.iter().find(|e| e.name == *environment).unwrap();
            let known = found.history.iter().chain(&found.current).find(|d| d.sequence == *sequence);
            // The history shown is bounded; what is in its reach must be there.
            let oldest = found.history.iter().chain(&found.current).map(|d| d.sequence).min().unwrap_or(0);
            if *sequence >= oldest {
                let shown = known.map(|d| d.release.clone());
                assert_eq!(shown.as_ref(), Some(release), "{when}: deployment {sequence} of {environment}");
            }
        }
    }
}

/// Starts the server after its death and checks what must hold at once.
#[track_caller]
fn recover(world: &mut World, acknowledged: &Acknowledged, when: &str) {
    world.server.process.wait();
    world.restart();
    world.assert_sound(when);
    acknowledged.assert_there(world, when);
    assert!(world.page("prod").contains("version"), "{when}: prod");
}

/// Pushes what is committed, again if need be, until dev runs it.
#[track_caller]
fn complete(world: &World, commit: &str, when: &str) -> String {
    let pushed = world.shop.push();
    assert_eq!(pushed.code, 0, "{when}: {}", pushed.err);
    let release = world.shop.release_of(commit);
    world.shop.await_healthy("dev", &release);
    release
}

#[test]
fn a_kill_at_each_point_of_a_push_loses_nothing() {
    let Some(mut world) = World::new("a_kill_at_each_point_of_a_push_loses_nothing") else { return };
    let mut acknowledged = Acknowledged::default();
    acknowledged.see(&world);
    let points = [
        ("pack received", 1),
        ("commit recorded", 1),
        ("in a step", 2),
        ("layers kept", 1),
        ("artifact made", 1),
        ("before binding", 1),
        ("before the commit", 1),
        ("before the commit", 3),
        ("after the commit", 1),
        ("after the commit", 3),
        ("tiles written", 1),
        ("release bound", 1),
        ("deployment recorded", 1),
        ("before the switch", 1),
        ("switched", 1),
    ];
    for (round, (point, nth)) in points.into_iter().enumerate() {
        let when = format!("killed at `{point}`, occurrence {nth}");
        let begin = Instant::now();
        let version = format!("round {round}");
        let commit = world.shop.change(&version);
        world.trap(point, nth);
        let pushed = world.shop.push();
        // A point may come just after the answer.
        wait_for(&when, || world.server.process.ended().then_some(()));
        assert!(world.server.process.err.sprung(), "{when}: it died of something else");
        if pushed.code == 0 {
            // Acknowledged: a second push has nothing to do.
            recover(&mut world, &acknowledged, &when);
            assert!(world.shop.push().ok().is_empty(), "{when}");
            world.shop.release_of(&commit);
        } else {
            recover(&mut world, &acknowledged, &when);
        }
        complete(&world, &commit, &when);
        assert!(world.page("dev").contains(&version), "{when}: dev runs something else");
        acknowledged.see(&world);
        eprintln!("{when}: whole again after {:.1} s", begin.elapsed().as_secs_f64());
    }
    world.assert_sound("at the end");
}

#[test]
fn a_kill_in_a_promotion_or_rollback_is_finished_by_the_next_start() {
    let test = "a_kill_in_a_promotion_or_rollback_is_finished_by_the_next_start";
    let Some(mut world) = World::new(test) else { return };
    let mut acknowledged = Acknowledged::default();
    acknowledged.see(&world);
    let mut releases = Vec::new();
    for version in ["one", "two"] {
        let commit = world.shop.change(version);
        world.shop.push().ok();
        let release = world.shop.release_of(&commit);
        world.shop.adamant(&["promote", &release, "staging", "--wait"]).ok();
        releases.push(release);
    }
    for point in ["before the commit", "deployment recorded", "before the switch", "switched", "after the commit"] {
        for release in [releases[0].as_str(), releases[1].as_str()] {
            let when = format!("promotion of {release} killed at `{point}`");
            world.trap(point, 2.min(if point.contains("commit") { 2 } else { 1 }));
            let promoted = world.shop.adamant(&["promote", release, "prod", "--json"]);
            wait_for(&when, || world.server.process.ended().then_some(()));
            acknowledged.deployed(&promoted);
            recover(&mut world, &acknowledged, &when);
            acknowledged.deployed(&world.shop.adamant(&["promote", release, "prod", "--json"]));
            world.shop.await_healthy("prod", release);
        }
        let when = format!("rollback killed at `{point}`");
        world.trap(point, 1);
        let to = releases[0].as_str();
        let rolled = world.shop.adamant(&["rollback", "prod", "--to", to, "--json"]);
        wait_for(&when, || world.server.process.ended().then_some(()));
        acknowledged.deployed(&rolled);
        recover(&mut world, &acknowledged, &when);
        world.shop.adamant(&["rollback", "prod", "--to", to, "--json"]);
        world.shop.await_healthy("prod", to);
        assert!(world.page("prod").contains("version one"), "{when}");
    }
    world.assert_sound("at the end");
}

#[test]
fn a_start_completes_the_push_that_was_cut_off_and_takes_no_branch_back() {
    let test = "a_start_completes_the_push_that_was_cut_off_and_takes_no_branch_back";
    let Some(mut world) = World::new(test) else { return };
    let at = |world: &World, branch: &str| {
        let line = world.shop.git(&["ls-remote", "adamant", &format!("refs/heads/{branch}")]).ok();
        line.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let before = at(&world, "main");
    let again = |world: &mut World| {
        world.server.process.wait();
        world.restart();
    };

    // Before the release there is nothing to complete; after it there is.
    let commit = world.shop.change("cut off");
    world.trap("before binding", 1);
    assert_ne!(world.shop.push().code, 0);
    again(&mut world);
    assert_eq!(at(&world, "main"), before);
    world.trap("release bound", 1);
    assert_ne!(world.shop.push().code, 0);
    again(&mut world);
    assert_eq!(at(&world, "main"), commit);

    // A branch that was made and deleted, and one that was moved and moved back.
    let topic = world.shop.change("topic");
    world.shop.git(&["push", "adamant", "HEAD:topic"]).ok();
    assert_eq!(at(&world, "topic"), topic);
    world.shop.git(&["push", "adamant", ":topic"]).ok();
    world.shop.push().ok();
    assert_eq!(at(&world, "main"), topic);
    world.shop.git(&["push", "--force", "adamant", &format!("{commit}:main")]).ok();
    for _ in 0..2 {
        world.server.kill();
        again(&mut world);
        assert_eq!(at(&world, "topic"), "", "the branch was deleted");
        assert_eq!(at(&world, "main"), commit, "the branch was moved back");
    }

    // Cut off on its way back, to a release that is there already.
    world.shop.push().ok();
    world.trap("deployment recorded", 1);
    let forced = world.shop.git(&["push", "--force", "adamant", &format!("{commit}:main")]);
    if forced.code == 0 {
        world.server.kill();
    }
    again(&mut world);
    assert_eq!(at(&world, "main"), commit);
    world.assert_sound("at the end");
}

/// Numbers that differ from run to run; the seed is printed for a repetition.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("ADAMANT_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let seed = given.unwrap_or(now);
        eprintln!("ADAMANT_TEST_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn kills_at_any_time_lose_nothing() {
    let Some(mut world) = World::new("kills_at_any_time_lose_nothing") else { return };
    let mut random = Random::new();
    let mut acknowledged = Acknowledged::default();
    acknowledged.see(&world);
    for round in 0..12 {
        let after = Duration::from_millis(random.below(6000));
        let when = format!("round {round}, killed after {after:?}");
        let commit = world.shop.change(&format!("round {round}"));
        let shop = world.shop.clone();
        let pid = world.server.process.child.id();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(after);
            crate::process::kill(pid, Signal::KILL);
        });
        let number = 3 + round;
        let mut reached = 0;
        if shop.push().code == 0 {
            reached = 1;
            let release = format!("shop/{number}");
            for environment in ["staging", "prod"] {
                let promoted = shop.adamant(&["promote", &release, environment, "--wait", "--json"]);
                acknowledged.deployed(&promoted);
                reached += i32::from(promoted.code == 0);
            }
            let rolled = shop.adamant(&["rollback", "prod", "--json"]);
            // After the death the same command works without the server.
            acknowledged.deployed(&rolled);
            reached += i32::from(rolled.code == 0);
        }
        killer.join().unwrap();
        recover(&mut world, &acknowledged, &when);
        let release = complete(&world, &commit, &when);
        assert_eq!(release, format!("shop/{number}"), "{when}: a number was given twice or left out");
        acknowledged.see(&world);
        eprintln!("{when}: {reached} commands were acknowledged");
    }
    world.assert_sound("at the end");
}

#[test]
fn a_kill_at_any_sync_of_a_file_loses_nothing() {
    let test = "a_kill_at_any_sync_of_a_file_loses_nothing";
    if !installed("strace") {
        return skipped(test, "strace is not installed");
    }
    if run(Command::new("strace").args(["-f", "-o", "/dev/null", "true"])).code != 0 {
        return skipped(test, "this host does not allow ptrace");
    }
    let Some(mut world) = World::new(test) else { return };
    let mut acknowledged = Acknowledged::default();
    acknowledged.see(&world);
    for nth in [2, 4, 7, 11, 16] {
        let when = format!("killed at sync {nth} of a thread");
        let commit = world.shop.change(&format!("sync {nth}"));
        world.server.stop();
        let plain = up(&world.data, &world.exe, &[]);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync"]);
        traced.args(["-e", &format!("inject=fsync,fdatasync:signal=KILL:when={nth}")]);
        traced.arg(plain.get_program()).args(plain.get_args()).env("ADAMANT_LOG", "error");
        let process = Background::spawn(&mut traced);
        let data = world.data.display().to_string();
        let alive = || processes(&["adamant up", &data]).into_iter().any(|pid| !comm(pid).contains("strace"));
        match Server::try_of(process, &world.data, &world.exe) {
            Err(_) => {}
            Ok(server) => {
                world.server = server;
                // The server may die in any of these.
                let _ = world.shop.adamant(&["init"]);
                let pushed = world.shop.push();
                if pushed.code == 0 {
                    acknowledged.see_if_up(&world);
                }
            }
        }
        let died = !alive();
        for pid in processes(&["adamant up", &data]) {
            crate::process::kill(pid, Signal::KILL);
        }
        wait_for("the end of the traced server", || (!alive()).then_some(()));
        world.server.kill();
        recover(&mut world, &acknowledged, &when);
        complete(&world, &commit, &when);
        acknowledged.see(&world);
        eprintln!("{when}: {}", if died { "it died there" } else { "it never came to that" });
    }
    world.assert_sound("at the end");
}

impl Acknowledged {
    /// As `see`, where the server may be gone meanwhile.
    fn see_if_up(&mut self, world: &World) {
        if world.shop.adamant(&["status", "--json"]).code == 0 {
            self.see(world);
        }
    }
}

fn comm(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}
