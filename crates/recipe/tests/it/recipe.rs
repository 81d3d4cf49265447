use std::fmt::Write as _;

use adamant_recipe::{Recipe, Template};
use proptest::prelude::*;

const FULL: &str = r#"project = "shop"

[web]
path = "web"
kind = "make"
toolchain = ["make", "gcc", "libc6-dev"]
build = "make web"
files = { "/app/web" = "web", "/etc/web" = "./conf/" }
runtime = ["libc6"]
run = ["/app/web", "-D"]
port = 8080
health = "/healthz"
env = { CC = "gcc", A_1 = "x" }
needs = ["commit"]
sources = ["mini-httpd"]
cpus = 4
memory_mb = 512
timeout_s = 60

[api]
files = { "/app/api" = "target/release/api" }
run = ["/app/api"]

[sources.mini-httpd]
url = "https://example.org/mini-httpd_1.30.orig.tar.gz"
sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
dir = "src"
"#;

#[test]
fn everything_and_defaults() {
    let recipe = Recipe::parse(FULL, &|path| path == "Cargo.toml").unwrap();
    assert_eq!(recipe.project, "shop");
    assert_eq!(recipe.artifacts.iter().map(|a| a.name.as_str()).collect::<Vec<_>>(), ["api", "web"]);
    let web = recipe.artifact("web").unwrap();
    assert_eq!(web.toolchain, ["gcc", "libc6-dev", "make"]);
    assert_eq!(web.files["/etc/web"], "conf");
    assert_eq!((web.port, web.health.as_deref()), (Some(8080), Some("/healthz")));
    assert_eq!((web.cpus, web.memory_mb, web.timeout_s, web.needs_commit), (4, 512, 60, true));
    assert_eq!(web.env["A_1"], "x");
    assert_eq!(recipe.sources["mini-httpd"].file_name(), "mini-httpd_1.30.orig.tar.gz");
    let api = recipe.artifact("api").unwrap();
    assert_eq!((api.template, api.path.as_str()), (Template::Cargo, "."));
    assert_eq!(api.toolchain, ["cargo-web", "gcc", "libc6-dev", "rustc-web"]);
    assert_eq!(api.build, "cargo build --release --offline --locked");
    assert_eq!(api.env["CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER"], "gcc");
    assert_eq!((api.cpus, api.memory_mb, api.timeout_s, api.needs_commit), (2, 2048, 900, false));
    assert!(api.runtime.is_empty());
}

/// Each refusal with its place, as it is printed.
#[test]
fn errors() {
    let check = |text: &str, expect: &str| {
        let found =
            Recipe::parse(text, &|path| path == "Makefile").map_or_else(|error| error.to_string(), |_| "parsed".into());
        assert!(found.starts_with("adamant.toml:") && found.contains(expect), "{text}\n→ {found}");
    };
    let web = |lines: &str| format!("project = \"shop\"\n[web]\nfiles = {{ \"/app/web\" = \"web\" }}\n{lines}");
    check("", "1:1: `project` is missing: write `project = \"name\"` in the first line");
    check("projct = \"shop\"\n", "`project` is missing");
    check("project = 1\n", "1:11: `project` is a number: write a string in double quotes");
    check("project = \"Shop\"\n", "1:11: `project`: `Shop` is not a name: use 1 to 40 of a-z");
    check("project = \"shop\"\n", "no artifact: write a table such as `[web]`");
    check("project = \"shop\"\nx = 1\n", "2:1: `x` is not a key here; artifacts are tables");
    check("project = \"shop\"\n\n[web\n", "3:5: ");
    check("project = \"shop\"\n[We]\n", "2:2: `We` is not a name");
    check(&web("prot = 80\n"), "4:1: `prot` is not a key here; did you mean `port`?");
    check(&web("zzzzzz = 80\n"), "known here: path, kind, toolchain");
    check(&web("port = 70000\n"), "4:8: `port` is 70000: write a whole number from 1 to 65535");
    check(&web("port = 80\n"), "4:8: `web` has a port and nothing to run: write `run = [\"/app/web\"]`");
    check(&web("run = [\"web\"]\n"), "4:8: the program to run is named by its absolute path");
    check(&web("run = [\"/a\"]\nhealth = \"/h\"\n"), "5:10: `health` needs a `port`");
    check(&web("run = [\"/a\"]\nport = 1\nhealth = \"h\"\n"), "6:10: `health` is not an HTTP path");
    check(&web("kind = \"npm\"\n"), "4:8: `npm` is not a kind: write make, cargo or command");
    check(&web("kind = \"command\"\n"), "2:1: `web` has kind \"command\" and no `build`");
    check(&web("path = \"../x\"\n"), "4:8: `path`: `../x` is not a relative path");
    check(
        &web("path = \"x\"\n"),
        "`x` holds neither a Makefile nor a Cargo.toml: set `path`, or say `kind` and `build`",
    );
    check(&web("toolchain = [\"gcc\", \"GCC\"]\n"), "4:21: `GCC` is not a Debian package name");
    check(&web("toolchain = [\"gcc\", \"gcc=1\"]\n"), "4:21: `gcc` stands in `toolchain` twice");
    check(&web("env = { \"A B\" = \"\" }\n"), "4:9: not the name of an environment variable");
    check(&web("needs = [\"network\"]\n"), "4:10: a step can need `commit` and nothing else");
    check(&web("needs = [\"commit\", \"commit\"]\n"), "more than 1");
    check(&web("sources = [\"x\"]\n"), "4:12: there is no source `x`; add a table `[sources.NAME]`");
    check(&web("build = \" \"\n"), "`build` is empty");
    check("project = \"shop\"\n[web]\n", "2:1: `web` has no `files`: write `files = { \"/app/web\" = \"web\" }`");
    check(
        "project = \"shop\"\n[web]\nfiles = { \"app\" = \"web\" }\n",
        "3:11: `app` is not an absolute path in the image",
    );
    check("project = \"shop\"\n[web]\nfiles = { \"/app\" = \"/etc\" }\n", "3:20: `/etc` is not a relative path");
    let source = |lines: &str| web(&format!("[sources.s]\n{lines}"));
    check(&source(""), "`url` is missing");
    check(&source("url = \"https://h/f\"\n"), "source `s` is used by no artifact");
    check(&source("url = \"file:///etc\"\n"), "5:7: `url`: `file:///etc` is not an address");
    check(&source("url = \"https://h/f\"\nsha256 = \"abc\"\n"), "6:10: `sha256`: expected 64");
    check(&source("url = \"https://h/\"\nunpack = false\n"), "ends without a file name");
    check(&" ".repeat(300 << 10), "more than 262144");
    let both = Recipe::parse(&web(""), &|_| true).unwrap_err().to_string();
    assert!(both.contains("say which with `kind = \"make\"` or `kind = \"cargo\"`"), "{both}");
}

#[test]
fn many_artifacts_are_bounded() {
    let mut text = "project = \"shop\"\n".to_owned();
    for i in 0..65 {
        writeln!(text, "[a{i}]\nfiles = {{ \"/a\" = \"a\" }}").unwrap();
    }
    assert!(Recipe::parse(&text, &|path| path == "Makefile").unwrap_err().to_string().contains("more than 64"));
}

proptest! {
    #[test]
    fn never_panics(text in "\\PC{0,200}") {
        let _ = Recipe::parse(&text, &|_| true);
        let _ = adamant_recipe::Lock::parse(&text);
        let _ = adamant_recipe::cargo::parse(&text);
        let _ = adamant_recipe::cargo::manifests(".", &text, ["a/Cargo.toml"]);
    }

    /// Damage to a good text, which gets deeper than random characters.
    #[test]
    fn never_panics_on_damage(at in 0..FULL.len(), len in 0..40_usize, insert in "[\\[\\]{}=\"\\n.a0é-]{0,6}") {
        let end = (at + len).min(FULL.len());
        let text = format!("{}{insert}{}", &FULL[..at], &FULL[end..]);
        if let Ok(recipe) = Recipe::parse(&text, &|_| false) {
            prop_assert!(!recipe.artifacts.is_empty());
        }
    }

    #[test]
    fn proposals_parse(name in "\\PC{0,60}", makefile in "[a-z$(){}:=%.\\n\\t /-]{0,120}", manifest in "[a-z\\[\\]=\".\\n]{0,80}") {
        let mut facts = adamant_recipe::Facts::default();
        for (path, text) in [("Makefile", &makefile), ("web/Cargo.toml", &manifest), ("web/src/main.rs", &makefile)] {
            facts.paths.push(path.to_owned());
            facts.texts.insert(path.to_owned(), text.clone());
        }
        let proposal = adamant_recipe::propose(&name, &facts).unwrap();
        let parsed = Recipe::parse(&proposal.recipe, &|path| facts.paths.iter().any(|have| have == path));
        prop_assert!(parsed.is_ok(), "{:?}\n{}", parsed, proposal.recipe);
    }
}
