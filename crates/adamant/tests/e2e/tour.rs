//! The two commands of the README.

use std::process::Command;

use rustix::process::Signal;

use crate::process::{Background, run, skipped, wait_for};
use crate::template::{exe, template};
use crate::world::{down, fresh};

#[test]
fn the_tour_runs_to_its_end_and_again() {
    let test = "the_tour_runs_to_its_end_and_again";
    if let Err(reason) = template() {
        return skipped(test, reason);
    }
    let dir = fresh("tour");
    for round in ["first", "second"] {
        let ended = run(Command::new(exe())
            .args(["demo", "--once", "--listen", "127.0.0.1:0", "--data"])
            .arg(dir.join("data")));
        let said = ended.err.clone();
        ended.ok();
        for word in ["The tour took", "nothing is wrong", "Everything is stopped"] {
            assert!(said.contains(word), "{round}: no `{word}` in\n{said}");
        }
    }
    wait_for("the end of everything", || {
        crate::process::processes(&[&dir.display().to_string()]).is_empty().then_some(())
    });
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn every_attack_on_a_running_tour_is_refused_or_caught() {
    let test = "every_attack_on_a_running_tour_is_refused_or_caught";
    if let Err(reason) = template() {
        return skipped(test, reason);
    }
    let dir = fresh("break");
    let data = dir.join("data");
    let mut demo =
        Background::spawn(Command::new(exe()).args(["demo", "--listen", "127.0.0.1:0", "--data"]).arg(&data));
    let up = demo.err.wait(|line| line.starts_with("The server stays up"));
    assert!(up.is_some(), "{}", demo.err.text());
    let broken = run(Command::new(exe()).args(["demo", "--break", "--data"]).arg(&data));
    let said = broken.err.clone();
    let result = broken.ok();
    assert!(result.contains("attacks, each refused or caught"), "{result}");
    assert!(!said.contains("BROKEN") && said.matches("held  ").count() >= 8, "{said}");
    demo.signal(Signal::TERM);
    assert_eq!(demo.wait(), 0, "{}", demo.err.text());
    down(&data, exe());
    wait_for("the end of everything", || {
        crate::process::processes(&[&dir.display().to_string()]).is_empty().then_some(())
    });
    std::fs::remove_dir_all(dir).unwrap();
}
