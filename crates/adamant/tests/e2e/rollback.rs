//! Rollback: without a server, and what it holds back afterwards.

use crate::client;
use crate::world::World;

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
