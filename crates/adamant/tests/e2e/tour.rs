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
        if round == "first" {
            assert_readme_shows(&said);
        }
    }
    wait_for("the end of everything", || {
        crate::process::processes(&[&dir.display().to_string()]).is_empty().then_some(())
    });
    std::fs::remove_dir_all(dir).unwrap();
}

/// The README's tour is what the command prints, but for times, digests, places and who asks; lines
/// may be left out where `…` stands.
fn assert_readme_shows(said: &str) {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let tour = readme.split("## The tour").nth(1).and_then(|rest| rest.split("```").nth(1)).unwrap();
    let shown: Vec<_> = tour.lines().skip(1).filter(|line| !line.trim().is_empty()).collect();
    assert!(shown.len() > 50, "the README shows {} lines of the tour", shown.len());
    let mut printed = said.lines().map(shape);
    for line in shown {
        // How far the rebuild is when it is asked for is a matter of moments.
        if line == "…" || line.starts_with("waiting for the rebuild") {
            continue;
        }
        assert!(printed.any(|printed| printed == shape(line)), "the README's tour says `{line}`, the command:\n{said}");
    }
}

/// A line without what differs from run to run.
fn shape(line: &str) -> String {
    let word = |word: &str| {
        if word.starts_with(['/', '~']) {
            return "PATH".to_owned();
        }
        let mut shape = String::new();
        for part in word.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let (run, end) = part.split_at(part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).len());
            let hex = run.len() > 6 && run.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            if hex {
                shape.push('H');
            } else {
                shape.extend(run.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }));
            }
            shape.push_str(end);
        }
        while shape.contains("00") {
            shape = shape.replace("00", "0");
        }
        shape
    };
    let line = line.split_once("asked for by").map_or(line, |(before, _)| before);
    line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
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
