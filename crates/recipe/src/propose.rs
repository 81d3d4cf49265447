//! `adamant init`: from what lies in a directory to the recipe a person would have written, each
//! choice with its reason.

mod make;
mod rust;
mod serve;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::lock::quote;
use crate::names;

/// What is known about a source tree.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// All files, `/`-separated, from the root of the repository.
    pub paths: Vec<String>,
    /// The texts of those files that [`Facts::wants`].
    pub texts: BTreeMap<String, String>,
}

impl Facts {
    /// Whether the text of `path` would help. Callers read at most some MiB of such files.
    pub fn wants(path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or_default();
        let source = [".c", ".cc", ".cpp", ".rs"].iter().any(|end| name.ends_with(end));
        path.matches('/').count() <= 4 && (MANIFESTS.contains(&name) || name == "Cargo.lock" || source)
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.paths.iter().any(|have| have == path)
    }
}

/// One choice made for the person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What was chosen, as it stands in the recipe.
    pub choice: String,
    /// Why.
    pub reason: String,
}

/// A recipe to start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Text of `adamant.toml`.
    pub recipe: String,
    /// Why it says what it says.
    pub choices: Vec<Choice>,
}

/// Why nothing could be proposed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No file that says how something is built.
    #[error("there is neither a Makefile nor a Cargo.toml here")]
    Nothing,
    /// There are some, and none of them makes a program.
    #[error("nothing that is here makes a program: {}", listed(.0))]
    Unused(Vec<Unused>),
}

/// A file that was found and not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unused {
    /// Its path.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// Most unused files that an error names.
const MAX_UNUSED: usize = 5;

fn listed(unused: &[Unused]) -> String {
    let mut shown: Vec<String> =
        unused.iter().take(MAX_UNUSED).map(|one| format!("{} {}", one.path, one.reason)).collect();
    if unused.len() > MAX_UNUSED {
        shown.push(format!("and {} more", unused.len() - MAX_UNUSED));
    }
    shown.join("; ")
}

/// An artifact as proposed; only what differs from the defaults is written.
#[derive(Debug, Default)]
struct Draft {
    name: String,
    path: String,
    kind: &'static str,
    toolchain: Option<Vec<String>>,
    build: Option<String>,
    files: BTreeMap<String, String>,
    runtime: Vec<String>,
    run: Vec<String>,
    port: Option<u16>,
    health: Option<String>,
}

/// Files that say how something is built.
const MANIFESTS: [&str; 4] = ["Makefile", "GNUmakefile", "makefile", "Cargo.toml"];
/// Most artifacts proposed.
const MAX_DRAFTS: usize = 8;

/// Proposes a recipe for `project`; an error if there is neither a Makefile nor a Cargo.toml with
/// a program at the root or one directory below.
pub fn propose(project: &str, facts: &Facts) -> Result<Proposal, ProposeError> {
    let project = to_label(project);
    let mut choices =
        vec![Choice { choice: format!("project = {}", quote(&project)), reason: "the directory's name".to_owned() }];
    let mut drafts = Vec::new();
    for dir in directories(facts) {
        if drafts.len() >= MAX_DRAFTS {
            break;
        }
        if facts.has(&join(&dir, "Cargo.toml")) {
            drafts.extend(rust::drafts(&dir, facts, &mut choices));
        } else if let Some(draft) = make::draft(&project, &dir, facts, &mut choices) {
            drafts.push(draft);
        }
        // What lies below a root that builds by itself belongs to it.
        if dir == "." && !drafts.is_empty() {
            break;
        }
    }
    drafts.truncate(MAX_DRAFTS);
    if drafts.is_empty() {
        let unused = unused(facts);
        return Err(if unused.is_empty() { ProposeError::Nothing } else { ProposeError::Unused(unused) });
    }
    unique_names(&mut drafts);
    let mut recipe = format!("project = {}\n", quote(&project));
    for draft in &mut drafts {
        serve::fill(draft, facts, &mut choices);
        write_draft(&mut recipe, draft);
    }
    Ok(Proposal { recipe, choices })
}

/// Every Makefile and Cargo.toml, of a tree of which none could be used.
fn unused(facts: &Facts) -> Vec<Unused> {
    let mut unused = Vec::new();
    for path in &facts.paths {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        if !MANIFESTS.contains(&name) {
            continue;
        }
        let reason = if dir.contains('/') {
            "lies deeper than one directory below the root".to_owned()
        } else if name == "Cargo.toml" {
            rust::why_not(path, facts)
        } else {
            "stands beside a Cargo.toml, which goes first".to_owned()
        };
        unused.push(Unused { path: path.clone(), reason });
    }
    unused.sort_by_key(|one| one.path.matches('/').count());
    unused
}

/// The root and the directories one below that hold a Makefile or a Cargo.toml.
fn directories(facts: &Facts) -> Vec<String> {
    let mut found = vec![".".to_owned()];
    for path in &facts.paths {
        if let Some((dir, name)) = path.rsplit_once('/')
            && MANIFESTS.contains(&name)
            && !dir.contains('/')
            && names::relative_path(dir).is_ok()
        {
            found.push(dir.to_owned());
        }
    }
    found.sort();
    found.dedup();
    found
}

fn unique_names(drafts: &mut [Draft]) {
    let mut seen = std::collections::BTreeSet::from(["project".to_owned(), "sources".to_owned()]);
    for draft in drafts {
        let base = draft.name.clone();
        let mut number = 1;
        while !seen.insert(draft.name.clone()) {
            number += 1;
            draft.name = format!("{}-{number}", base.chars().take(36).collect::<String>().trim_end_matches('-'));
        }
    }
}

fn write_draft(out: &mut String, draft: &Draft) {
    let list = |items: &[String]| items.iter().map(|item| quote(item)).collect::<Vec<_>>().join(", ");
    // Writing to a String cannot fail.
    let _ = writeln!(out, "\n[{}]", draft.name);
    if draft.path != "." {
        let _ = writeln!(out, "path = {}", quote(&draft.path));
    }
    let _ = writeln!(out, "kind = {}", quote(draft.kind));
    if let Some(toolchain) = &draft.toolchain {
        let _ = writeln!(out, "toolchain = [{}]", list(toolchain));
    }
    if let Some(build) = &draft.build {
        let _ = writeln!(out, "build = {}", quote(build));
    }
    let files: Vec<String> = draft.files.iter().map(|(to, from)| format!("{} = {}", quote(to), quote(from))).collect();
    let _ = writeln!(out, "files = {{ {} }}", files.join(", "));
    if !draft.runtime.is_empty() {
        let _ = writeln!(out, "runtime = [{}]", list(&draft.runtime));
    }
    let _ = writeln!(out, "run = [{}]", list(&draft.run));
    if let Some(port) = draft.port {
        let _ = writeln!(out, "port = {port}");
    }
    if let Some(health) = &draft.health {
        let _ = writeln!(out, "health = {}", quote(health));
    }
}

/// The nearest name that fits, `app` if nothing is left.
fn to_label(text: &str) -> String {
    let mut label = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            label.push(c);
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
        if label.len() == 40 {
            break;
        }
    }
    let label = label.trim_end_matches('-');
    if label.is_empty() { "app".to_owned() } else { label.to_owned() }
}

fn join(dir: &str, file: &str) -> String {
    if dir == "." { file.to_owned() } else { format!("{dir}/{file}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn facts(files: &[(&str, &str)]) -> Facts {
        Facts {
            paths: files.iter().map(|(path, _)| (*path).to_owned()).collect(),
            texts: files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect(),
        }
    }

    fn check(files: &[(&str, &str)], expect: &str) {
        let facts = facts(files);
        let proposal = propose("My Shop", &facts).unwrap();
        assert_eq!(proposal.recipe, expect);
        let recipe = crate::Recipe::parse(&proposal.recipe, &|path| facts.has(path)).unwrap();
        assert_eq!(recipe.project, "my-shop");
        assert!(proposal.choices.len() >= 3, "{:?}", proposal.choices);
    }

    #[test]
    fn a_makefile() {
        check(
            &[
                ("Makefile", "PROG = web\nall: $(PROG)\n\n$(PROG): main.o\n\t$(CC) -o $@ $^ -lz\n\n.PHONY: all\n"),
                ("main.c", "addr.sin_port = htons(8080); if (!strcmp(path, \"/healthz\"))"),
            ],
            "project = \"my-shop\"\n\n[web]\nkind = \"make\"\ntoolchain = [\"gcc\", \"libc6-dev\", \"make\", \"zlib1g-dev\"]\nfiles = { \"/app/web\" = \"web\" }\nruntime = [\"libc6\", \"zlib1g\"]\nrun = [\"/app/web\"]\nport = 8080\nhealth = \"/healthz\"\n",
        );
        check(
            &[
                ("Makefile", "web: main.c\n\tcc -static -o web main.c\n"),
                ("main.c", "const char *text = getenv(\"PORT\"); if (!strcmp(path, \"/health\"))"),
            ],
            "project = \"my-shop\"\n\n[web]\nkind = \"make\"\nfiles = { \"/app/web\" = \"web\" }\nrun = [\"/app/web\"]\nport = 8080\nhealth = \"/health\"\n",
        );
        check(
            &[("srv/Makefile", "server: server.c\n\tcc -static -o server server.c\n")],
            "project = \"my-shop\"\n\n[server]\npath = \"srv\"\nkind = \"make\"\nfiles = { \"/app/server\" = \"server\" }\nrun = [\"/app/server\"]\n",
        );
    }

    #[test]
    fn a_crate() {
        check(
            &[
                ("Cargo.toml", "[package]\nname = \"web\"\nversion = \"0.1.0\"\n"),
                ("Cargo.lock", "version = 4\n"),
                ("src/main.rs", "TcpListener::bind(\"0.0.0.0:3000\")"),
            ],
            "project = \"my-shop\"\n\n[web]\nkind = \"cargo\"\nfiles = { \"/app/web\" = \"target/release/web\" }\nruntime = [\"libc6\", \"libgcc-s1\"]\nrun = [\"/app/web\"]\nport = 3000\n",
        );
    }

    #[test]
    fn a_workspace() {
        let facts = facts(&[
            ("Cargo.toml", "[workspace]\nmembers = [\"crates/*\"]\n"),
            ("crates/api/Cargo.toml", "[package]\nname = \"api\"\nversion = \"0.1.0\"\n"),
            ("crates/api/src/main.rs", ""),
            ("crates/lib/Cargo.toml", "[package]\nname = \"lib\"\nversion = \"0.1.0\"\n"),
        ]);
        let proposal = propose("x", &facts).unwrap();
        assert!(
            proposal.recipe.contains("build = \"cargo build --release --offline --locked -p api\""),
            "{}",
            proposal.recipe
        );
        assert!(proposal.choices.iter().any(|choice| choice.reason.contains("cargo generate-lockfile")));
        assert!(crate::Recipe::parse(&proposal.recipe, &|_| false).is_ok());
    }

    #[test]
    fn nothing_to_build() {
        let check = |files: &[(&str, &str)], expect: &str| {
            assert_eq!(propose("x", &facts(files)).unwrap_err().to_string(), expect);
        };
        check(&[("README.md", "")], "there is neither a Makefile nor a Cargo.toml here");
        let library = "[package]\nname = \"shop\"\n";
        check(
            &[("Cargo.toml", library), ("src/lib.rs", ""), ("Makefile", "all:\n")],
            "nothing that is here makes a program: Cargo.toml is a library: it has neither src/main.rs nor src/bin/ nor \
             [[bin]]; Makefile stands beside a Cargo.toml, which goes first",
        );
        check(
            &[("Cargo.toml", "[workspace]\nmembers = [\"a\"]\n"), ("a/Cargo.toml", library)],
            "nothing that is here makes a program: Cargo.toml is a workspace without a program; a/Cargo.toml is a \
             library: it has neither src/main.rs nor src/bin/ nor [[bin]]",
        );
        check(&[("Cargo.toml", "x")], "nothing that is here makes a program: Cargo.toml is not TOML of Cargo's shape");
        check(
            &[("a/b/Makefile", "web: web.c\n")],
            "nothing that is here makes a program: a/b/Makefile lies deeper than one directory below the root",
        );
        let many: Vec<String> = (0..9).map(|n| format!("a/b{n}/Makefile")).collect();
        let facts = Facts { paths: many, ..Facts::default() };
        assert!(propose("x", &facts).unwrap_err().to_string().ends_with("; and 4 more"));
    }

    #[test]
    fn labels() {
        for (text, expect) in
            [("My Shop", "my-shop"), ("--", "app"), ("a__b", "a-b"), ("x.y/", "x-y"), (&"é".repeat(50), "app")]
        {
            assert_eq!(to_label(text), expect);
            assert_eq!(crate::label(&to_label(text)), Ok(()));
        }
    }
}
