//! What is not signed as the operator demands runs nowhere new.

use std::process::Command;

use crate::process::run;
use crate::world::World;

#[test]
fn a_gate_keeps_an_unsigned_release_from_running() {
    let Some(mut world) = World::new("a_gate_keeps_an_unsigned_release_from_running") else { return };
    let key = world.dir.join("key");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ecdsa", "-N", "", "-C", "", "-f"]).arg(&key)).ok();
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let gate = |world: &mut World, key: &str| {
        let text = format!("[[gate]]\nrepositories = \"shop/*\"\nkeys = [\"{}\"]\n", key.trim());
        std::fs::write(world.data.join("server.toml"), text).unwrap();
        world.server.stop();
        world.restart();
    };
    gate(&mut world, &public);
    let commit = world.shop.change("third");
    let pushed = world.shop.push();
    assert!(pushed.err.contains("may not be deployed"), "{}", pushed.err);
    let release = world.shop.release_of(&commit);
    assert!(world.page("dev").contains("version second"));
    let refused = world.shop.adamant(&["promote", &release, "dev", "--wait"]).fails(1);
    assert!(refused.contains("may not be deployed") && refused.contains("SHA256:"), "{refused}");
    // What ran before is not stopped by it, and a rollback asks no gate.
    world.shop.adamant(&["rollback", "dev"]).ok();
    assert!(world.page("dev").contains("version first"));

    // The provenance that this server signed is evidence for those who trust its builder.
    gate(&mut world, "builder");
    world.shop.adamant(&["promote", &release, "dev", "--wait"]).ok();
    assert!(world.page("dev").contains("version third"));
    world.assert_sound("at the end");
}
