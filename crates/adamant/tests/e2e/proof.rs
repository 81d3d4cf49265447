//! Capsules: checked with no network, refused when anything in them is another.

use std::process::Command;

use serde_json::Value;

use crate::process::{installed, is_root, run, skipped};
use crate::world::{Server, World, fresh};

#[test]
fn a_capsule_proves_prod_without_network_and_nothing_else_does() {
    let test = "a_capsule_proves_prod_without_network_and_nothing_else_does";
    let Some(mut world) = World::new(test) else { return };
    let capsule = world.dir.join("prod.capsule");
    let trust = world.data.join("trust.json");
    let path = capsule.display().to_string();
    world.shop.adamant(&["prove", "prod", "-o", &path]).ok();
    world.server.stop();

    let verify = |capsule: &std::path::Path, trust: &std::path::Path| {
        run(Command::new(&world.exe).arg("verify").arg(capsule).arg("--trust").arg(trust))
    };
    let said = verify(&capsule, &trust).ok();
    for word in ["shop/2", "prod", "the host signed"] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    if is_root() && installed("unshare") {
        let alone = Command::new("unshare")
            .args(["-n", "--"])
            .arg(&world.exe)
            .arg("verify")
            .arg(&capsule)
            .arg("--trust")
            .arg(&trust)
            .output()
            .unwrap();
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
    } else {
        skipped(test, "without network: only root can use unshare -n here");
    }

    // Somebody else's trust file.
    let other = fresh("other");
    let mut server = Server::start(&other, &world.exe, &[]);
    server.stop();
    let text = verify(&capsule, &other.join("trust.json")).fails(1);
    assert!(text.contains("proves nothing"), "{text}");
    std::fs::remove_dir_all(other).unwrap();

    // Any text in it, altered: one at a time.
    let right: Value = serde_json::from_slice(&std::fs::read(&capsule).unwrap()).unwrap();
    let mut pointers = Vec::new();
    leaves(&right, String::new(), &mut pointers);
    assert!(pointers.len() > 50, "{} leaves", pointers.len());
    let altered = world.dir.join("altered.capsule");
    let step = (pointers.len() / 60).max(1);
    for pointer in pointers.iter().step_by(step) {
        let mut wrong = right.clone();
        alter(wrong.pointer_mut(pointer).unwrap());
        std::fs::write(&altered, serde_json::to_vec(&wrong).unwrap()).unwrap();
        let ended = verify(&altered, &trust);
        assert_eq!(ended.code, 1, "{pointer} was altered: {}{}", ended.out, ended.err);
    }
    // An entry, a document or a proof taken out.
    for list in ["entries", "documents"] {
        for at in 0..right[list].as_array().unwrap().len() {
            let mut wrong = right.clone();
            wrong[list].as_array_mut().unwrap().remove(at);
            std::fs::write(&altered, serde_json::to_vec(&wrong).unwrap()).unwrap();
            let ended = verify(&altered, &trust);
            // An observation need not be there; without it nothing is said to have run.
            let unobserved = ended.code == 0 && ended.out.contains("nothing shows that it ever ran");
            assert!(ended.code == 1 || unobserved, "{list}[{at}] was taken out: {}", ended.out);
        }
    }
    // Half a file, and no file.
    let bytes = std::fs::read(&capsule).unwrap();
    std::fs::write(&altered, &bytes[..bytes.len() / 2]).unwrap();
    verify(&altered, &trust).fails(1);
    verify(&world.dir.join("none"), &trust).fails(2);
}

/// Pointers to every text and number.
fn leaves(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| leaves(value, format!("{at}/{name}"), found)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(n, value)| leaves(value, format!("{at}/{n}"), found));
        }
        _ => found.push(at),
    }
}

/// Changes a text in its middle, to another of its kind; a number by one.
fn alter(value: &mut Value) {
    match value {
        Value::String(text) => {
            let at = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
            let other = if text[at..].starts_with('B') { "C" } else { "B" };
            let end = at + text[at..].chars().next().map_or(0, char::len_utf8);
            text.replace_range(at..end, other);
        }
        Value::Number(number) => *value = (number.as_u64().unwrap_or(0) + 1).into(),
        other => *other = Value::from("B"),
    }
}
