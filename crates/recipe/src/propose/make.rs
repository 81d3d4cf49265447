//! Facts from a Makefile: what it builds and with what. It is read, never run; what cannot be
//! told is left to the person.

use std::collections::{BTreeMap, BTreeSet};

use super::{Choice, Draft, Facts, join, to_label};

/// `-l` flag → package with headers, package with the library.
const LIBRARIES: &[(&str, &str, &str)] = &[
    ("-lcrypt", "libcrypt-dev", "libcrypt1"),
    ("-lcrypto", "libssl-dev", "libssl3"),
    ("-lssl", "libssl-dev", "libssl3"),
    ("-lsqlite3", "libsqlite3-dev", "libsqlite3-0"),
    ("-lz", "zlib1g-dev", "zlib1g"),
];

/// Most rules looked at.
const MAX_RULES: usize = 2000;

pub(super) fn draft(project: &str, dir: &str, facts: &Facts, choices: &mut Vec<Choice>) -> Option<Draft> {
    let file =
        ["GNUmakefile", "makefile", "Makefile"].iter().map(|name| join(dir, name)).find(|path| facts.has(path))?;
    let text = facts.texts.get(&file).map_or("", String::as_str);
    let rules = Rules::read(text);
    let mut choose = |choice: String, reason: String| choices.push(Choice { choice, reason });
    choose("kind = \"make\"".to_owned(), format!("{file} is there"));
    let (program, reason) = match rules.program() {
        Some(program) => (program, format!("the default goal of {file} makes it")),
        None => {
            (project.to_owned(), format!("{file} does not say what it makes: correct `files` if it is another path"))
        }
    };
    let base = program.rsplit('/').next().unwrap_or(&program).to_owned();
    let mut draft = Draft { name: to_label(&base), path: dir.to_owned(), kind: "make", ..Draft::default() };
    let image = format!("/app/{base}");
    choose(format!("files = {{ \"{image}\" = \"{program}\" }}"), reason);
    draft.files.insert(image.clone(), program);
    draft.run = vec![image];
    let mut toolchain: BTreeSet<String> = ["gcc", "libc6-dev", "make"].map(str::to_owned).into();
    let default = toolchain.clone();
    let mut runtime = BTreeSet::new();
    let words: BTreeSet<&str> =
        text.split(|c: char| c.is_whitespace() || matches!(c, '=' | '(' | ')' | '{' | '}')).collect();
    let below = |path: &str| dir == "." || path.starts_with(&format!("{dir}/"));
    let cxx = facts.paths.iter().any(|path| below(path) && [".cc", ".cpp"].iter().any(|end| path.ends_with(end)));
    if cxx || words.contains("g++") || words.contains("CXX") {
        toolchain.insert("g++".to_owned());
        runtime.insert("libstdc++6".to_owned());
        choose("toolchain: g++".to_owned(), "there is C++ source".to_owned());
    }
    for (flag, headers, library) in LIBRARIES {
        if words.contains(flag) {
            toolchain.insert((*headers).to_owned());
            runtime.insert((*library).to_owned());
            choose(format!("toolchain: {headers}"), format!("{file} links {flag}"));
        }
    }
    if words.contains("pkg-config") {
        toolchain.insert("pkg-config".to_owned());
        choose("toolchain: pkg-config".to_owned(), format!("{file} calls it"));
    }
    if toolchain != default {
        draft.toolchain = Some(toolchain.into_iter().collect());
    }
    if words.contains("-static") {
        choose("no runtime".to_owned(), format!("{file} links with -static"));
    } else {
        runtime.insert("libc6".to_owned());
        choose("runtime = [\"libc6\"]".to_owned(), "the program is linked dynamically".to_owned());
        draft.runtime = runtime.into_iter().collect();
    }
    Some(draft)
}

/// Targets with what they need, variables expanded as far as they are plain.
struct Rules {
    /// In order of the file.
    rules: Vec<(String, Vec<String>)>,
    phony: BTreeSet<String>,
}

impl Rules {
    fn read(text: &str) -> Self {
        let text = text.replace("\\\n", " ");
        let mut variables: BTreeMap<String, String> = BTreeMap::new();
        let mut rules = Self { rules: Vec::new(), phony: BTreeSet::new() };
        for line in text.lines().filter(|line| !line.starts_with('\t')) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if let Some((name, value)) = assignment(line) {
                let value = expand(value, &variables);
                variables.insert(name.to_owned(), value);
                continue;
            }
            let Some((targets, needs)) = line.split_once(':') else { continue };
            let needs = expand(needs.split(';').next().unwrap_or_default().trim_start_matches(':'), &variables);
            let needs: Vec<String> = needs.split_whitespace().take(100).map(str::to_owned).collect();
            for target in expand(targets, &variables).split_whitespace() {
                if target == ".PHONY" {
                    rules.phony.extend(needs.iter().cloned());
                } else if !target.starts_with('.') && !target.contains('%') && rules.rules.len() < MAX_RULES {
                    rules.rules.push((target.to_owned(), needs.clone()));
                }
            }
        }
        rules
    }

    /// The program the default goal makes: the goal itself, or the first thing it needs that
    /// has a rule and looks like a program.
    fn program(&self) -> Option<String> {
        let mut goal = &self.rules.first()?.0;
        for _ in 0..8 {
            if !self.phony.contains(goal) && goal != "all" && looks_like_program(goal) {
                return Some(goal.clone());
            }
            let needs = self.rules.iter().filter(|(target, _)| target == goal).flat_map(|(_, needs)| needs);
            goal = needs
                .into_iter()
                .find(|need| self.rules.iter().any(|(target, _)| target == *need) || looks_like_program(need))?;
        }
        None
    }
}

fn looks_like_program(target: &str) -> bool {
    let base = target.rsplit('/').next().unwrap_or(target);
    let plain = base.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let library = [".o", ".a", ".so", ".c", ".h"].iter().any(|end| base.ends_with(end));
    plain && !base.is_empty() && !library && crate::relative_path(target).as_deref() == Ok(target) && target != "."
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim_end_matches([':', '?', '+']).trim();
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    plain.then_some((name, value.trim()))
}

/// Replaces `$(NAME)` and `${NAME}`; unknown ones become nothing. One pass, bounded.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let closing = match after.chars().next() {
            Some('(') => ')',
            Some('{') => '}',
            _ => {
                rest = after;
                continue;
            }
        };
        let Some(end) = after.find(closing) else { break };
        out.push_str(variables.get(&after[1..end]).map_or("", String::as_str));
        rest = &after[end + 1..];
        if out.len() > 64 << 10 {
            return out;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_program() {
        for (text, expect) in [
            ("web: main.o\n\tcc\n", Some("web")),
            ("all: web tool\nweb: a.o\n", Some("web")),
            (".PHONY: build\nbuild: out/srv\nout/srv: x.c\n", Some("out/srv")),
            ("P=x\nQ=$(P)y\nall: ${Q}\n$(Q): a.o\n", Some("xy")),
            ("CC ?= gcc\nobjs: a.o\n", Some("objs")),
            ("%.o: %.c\n\tcc\n", None),
            ("all: all\n", None),
            ("", None),
            ("a: ../b\n../b:\n", Some("a")),
        ] {
            assert_eq!(Rules::read(text).program().as_deref(), expect, "{text}");
        }
    }
}
