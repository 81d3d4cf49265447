//! Rollback: without a server, and what it holds back afterwards.

use rustix::fs::FlockOperation;
use rustix::process::Signal;

use crate::client;
use crate::process::{Background, run};
use crate::template::exe;
use crate::world::{Server, World, fresh, up};

#[test]
fn a_rollback_works_while_the_server_is_off() {
    let Some(mut world) = World::new("a_rollback_works_while_the_server_is_off") else { return };
    let prod = world.shop.url("prod");
    assert!(world.page("prod").contains("version second"));
    for (way, round) in [("stopped", 1), ("killed", 2)] {
        if way == "stopped" {
            world.server.stop();
        } else {
            world.server.kill();
        }
        let (to, shown) = if round == 1 { ("shop/1", "first") } else { ("shop/2", "second") };
        let rolled = world.shop.adamant(&["rollback", "prod", "--to", to, "--reason", "outage"]);
        let said = rolled.err.clone();
        rolled.ok();
        assert!(said.contains("no server runs here"), "{said}");
        let page = client::get(&prod).unwrap().text();
        // Artifact and configuration as they were.
        assert!(page.contains(&format!("version {shown}")), "{way}: {page}");
        assert!(page.contains(&format!("I am {shown}")), "{way}: {page}");
        world.restart();
        let status = world.shop.status();
        let current = status.environments.iter().find(|e| e.name == "prod").and_then(|e| e.current.clone()).unwrap();
        assert_eq!((current.release.as_str(), current.action.as_str()), (to, "rollback"), "{way}");
        assert_eq!(current.state, "healthy", "{way}");
        assert_eq!(client::get(&prod).unwrap().status, 200);
        world.assert_sound(way);
    }
}

#[test]
fn after_a_rollback_automation_holds_until_a_promotion() {
    let Some(world) = World::new("after_a_rollback_automation_holds_until_a_promotion") else { return };
    world.shop.adamant(&["rollback", "dev"]).ok();
    assert!(world.page("dev").contains("version first"));
    let commit = world.shop.change("third");
    let pushed = world.shop.push();
    assert!(pushed.err.contains("held since rollback"), "{}", pushed.err);
    pushed.ok();
    let release = world.shop.release_of(&commit);
    let held = world.shop.status().environments.iter().any(|e| e.name == "dev" && e.held);
    assert!(held && world.page("dev").contains("version first"));
    world.shop.adamant(&["promote", &release, "dev", "--wait"]).ok();
    assert!(world.page("dev").contains("version third"));
    // Released: the next push deploys again.
    world.shop.change("fourth");
    world.shop.push().ok();
    assert!(world.page("dev").contains("version fourth"));
}

#[test]
fn a_rollback_waits_for_a_server_that_stops() {
    let Some(mut world) = World::new("a_rollback_waits_for_a_server_that_stops") else { return };
    let dev = world.shop.url("dev");
    world.server.stop();
    // What a server does that stops listening while work is under way.
    let lock = std::fs::File::open(world.data.join("lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut rollback = Background::spawn(&mut world.shop.adamant_command(&["rollback", "dev"]));
    let waits = rollback.err.wait(|line| line.starts_with("waiting for process "));
    assert!(waits.is_some_and(|line| line.contains("which holds")), "{}", rollback.err.text());
    assert!(!rollback.ended());
    drop(lock);
    assert_eq!(rollback.wait(), 0, "{}", rollback.err.text());
    assert!(rollback.err.text().contains("no server runs here"), "{}", rollback.err.text());
    let page = client::get(&dev).unwrap().text();
    assert!(page.contains("version first"), "{page}");
}

#[test]
fn a_server_that_does_not_answer_is_named() {
    let data = fresh("a_server_that_does_not_answer_is_named").join("data");
    let server = Server::start(&data, exe(), &[]);
    let process = format!("process {}", server.process.child.id());
    let second = run(&mut up(&data, exe(), &[])).fails(3);
    assert!(second.contains(&process) && second.contains("SIGTERM"), "{second}");
    server.process.signal(Signal::STOP);
    let mut command = std::process::Command::new(exe());
    let rolled = run(command.args(["rollback", "dev", "--project", "shop", "--data"]).arg(&data)).fails(3);
    assert!(rolled.contains(&process) && rolled.contains("does not answer"), "{rolled}");
    assert!(!rolled.contains("version"), "{rolled}");
}
