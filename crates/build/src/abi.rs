//! Build ABI 1: everything the platform itself adds to what a step sees and to what an image
//! holds. Nothing here may change without a new number; golden digests fail first.

use std::collections::BTreeMap;

use adamant_recipe::{Commit, Template};

use crate::layout::{Layout, LayoutError, Node};

/// The ABIs this version can build.
pub const SUPPORTED: [u32; 1] = [1];

/// The work tree, where the source is and the build starts.
pub const WORK: &str = "/build";
/// `HOME`, fresh and writable.
pub const HOME: &str = "/home";
/// Vendored crates, read-only.
pub const VENDOR: &str = "/vendor";
/// Host name inside.
pub const HOSTNAME: &str = "build";
/// User and group id inside, and of the program in an image.
pub const ID: u32 = 1000;
/// Bytes that fit into a step's `/tmp`.
pub const TMP_BYTES: u64 = 1 << 30;
/// Debian's and OCI's name of the one architecture.
pub const ARCH: &str = "amd64";

/// What a tree of packages is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The root of a step.
    Toolchain,
    /// The lower layer of an image.
    Runtime,
}

impl Kind {
    /// The word in cache keys.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Toolchain => "toolchain",
            Self::Runtime => "runtime",
        }
    }
}

/// Directories that Debian merged into `/usr`; packages still carry files under both names.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Mount points and other directories that exist in every tree.
const SKELETON: [&str; 9] = ["dev", "etc", "home", "proc", "run", "sys", "tmp", "usr", "var"];

/// Directories for a step alone.
const STEP_DIRS: [&str; 2] = ["build", "vendor"];

/// Link, target: what alternatives and maintainer scripts of bookworm would have made. A link is
/// made if nothing has its name and its target, beside it, exists; the first of several wins.
const LINKS: &[(&str, &str)] = &[
    ("usr/bin/awk", "gawk"),
    ("usr/bin/awk", "mawk"),
    ("usr/bin/awk", "original-awk"),
    ("usr/bin/awk", "busybox"),
    ("usr/bin/nawk", "gawk"),
    ("usr/bin/nawk", "mawk"),
    ("usr/bin/cc", "gcc"),
    ("usr/bin/cc", "clang"),
    ("usr/bin/c++", "g++"),
    ("usr/bin/c++", "clang++"),
    ("usr/bin/c89", "c89-gcc"),
    ("usr/bin/c99", "c99-gcc"),
    ("usr/lib/cpp", "../bin/cpp"),
    ("usr/bin/f77", "gfortran"),
    ("usr/bin/f95", "gfortran"),
    ("usr/bin/sh", "dash"),
    ("usr/bin/sh", "bash"),
    ("usr/bin/lex", "flex"),
    ("usr/bin/yacc", "bison.yacc"),
    ("usr/bin/yacc", "byacc"),
    ("usr/bin/which", "which.debianutils"),
    ("usr/bin/lzma", "xz"),
    ("usr/bin/unlzma", "unxz"),
    ("usr/bin/lzcat", "xzcat"),
    ("usr/bin/lzmore", "xzmore"),
    ("usr/bin/lzless", "xzless"),
    ("usr/bin/lzdiff", "xzdiff"),
    ("usr/bin/lzcmp", "xzcmp"),
    ("usr/bin/lzgrep", "xzgrep"),
    ("usr/bin/lzegrep", "xzegrep"),
    ("usr/bin/lzfgrep", "xzfgrep"),
    ("usr/bin/automake", "automake-1.16"),
    ("usr/bin/aclocal", "aclocal-1.16"),
    ("usr/bin/fakeroot", "fakeroot-sysv"),
    ("usr/sbin/rmt", "rmt-tar"),
];

/// Whether a file of a package is unpacked: manuals and indexes are left out, licences stay.
pub(crate) fn keeps(path: &str) -> bool {
    let Some(shared) = path.strip_prefix("usr/share/") else { return true };
    match shared.split_once('/') {
        Some(("doc", rest)) => rest.ends_with("/copyright"),
        Some(("man" | "info" | "lintian" | "doc-base" | "bug" | "menu", _)) => false,
        _ => !matches!(shared, "doc" | "man" | "info" | "lintian" | "doc-base" | "bug" | "menu"),
    }
}

/// The tree before any package: merged-usr links and mount points.
pub(crate) fn skeleton(kind: Kind) -> Result<Layout, LayoutError> {
    let mut layout = Layout::default();
    for name in SKELETON {
        layout.insert(name, Node::Dir { mode: if name == "tmp" { 0o1777 } else { 0o755 } })?;
    }
    if kind == Kind::Toolchain {
        for name in STEP_DIRS {
            layout.insert(name, Node::Dir { mode: 0o755 })?;
        }
    }
    for name in MERGED {
        layout.insert(&format!("usr/{name}"), Node::Dir { mode: 0o755 })?;
        layout.insert(name, Node::Link { target: format!("usr/{name}") })?;
    }
    Ok(layout)
}

/// What is added after all packages: the link table, accounts and name service, the CA bundle.
/// These files replace those of packages.
pub(crate) fn finish(layout: &mut Layout) -> Result<(), LayoutError> {
    for (link, target) in LINKS {
        let (dir, _) = link.rsplit_once('/').unwrap_or(("", link));
        let there = layout.resolve(&format!("{dir}/x"), false)?;
        let there = there.strip_suffix("/x").unwrap_or_default();
        let real = join(there, target);
        if layout.node(link).is_none() && layout.node(&real).is_some() {
            layout.insert(link, Node::Link { target: (*target).to_owned() })?;
        }
    }
    for (path, text) in FILES {
        layout.insert(path, Node::bytes(0o644, text.as_bytes()))?;
    }
    if let Some(bundle) = crate::root::ca_bundle(layout) {
        layout.insert("etc/ssl/certs/ca-certificates.crt", Node::bytes(0o644, bundle))?;
    }
    Ok(())
}

/// `dir` and a relative `target` with at most leading `..`.
fn join(dir: &str, target: &str) -> String {
    let (mut dir, mut target) = (dir, target);
    while let Some(rest) = target.strip_prefix("../") {
        dir = dir.rsplit_once('/').map_or("", |(parent, _)| parent);
        target = rest;
    }
    if dir.is_empty() { target.to_owned() } else { format!("{dir}/{target}") }
}

const FILES: [(&str, &str); 5] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/:/bin/sh\nbuild:x:1000:1000:build:/home:/bin/sh\n\
         nobody:x:65534:65534:nobody:/:/bin/sh\n",
    ),
    ("etc/group", "root:x:0:\nbuild:x:1000:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"),
    ("etc/resolv.conf", ""),
];

/// The search path of steps and images.
pub const PATH: &str = "/usr/bin:/usr/sbin:/bin:/sbin";

/// The whole environment of a step: the allow-list, then the recipe's own variables over it.
/// Nothing comes from the server's environment.
pub fn environment(
    template: Template,
    own: &BTreeMap<String, String>,
    cpus: u32,
    epoch: u64,
    commit: Option<&Commit>,
) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = [
        ("HOME", HOME),
        ("LANG", "C.UTF-8"),
        ("LC_ALL", "C.UTF-8"),
        ("LOGNAME", "build"),
        ("PATH", PATH),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTHONHASHSEED", "0"),
        ("SHELL", "/bin/sh"),
        ("TERM", "dumb"),
        ("TMPDIR", "/tmp"),
        ("TZ", "UTC"),
        ("USER", "build"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    env.insert("SOURCE_DATE_EPOCH".into(), epoch.to_string());
    if template == Template::Cargo {
        for (name, value) in [
            ("CARGO_HOME", "/home/cargo"),
            ("CARGO_INCREMENTAL", "0"),
            ("CARGO_NET_OFFLINE", "true"),
            ("CARGO_TERM_COLOR", "never"),
            ("CARGO_TERM_PROGRESS_WHEN", "never"),
        ] {
            env.insert(name.into(), value.into());
        }
        env.insert("CARGO_BUILD_JOBS".into(), cpus.to_string());
    }
    if let Some(commit) = commit {
        env.insert("ADAMANT_COMMIT".into(), commit.id.clone());
        env.insert("ADAMANT_COMMIT_TIME".into(), commit.time.to_string());
    }
    env.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

/// Cargo's configuration in `CARGO_HOME`: crates come from the vendor directory alone.
pub(crate) const CARGO_CONFIG: &str = "[source.crates-io]\nreplace-with = \"vendored\"\n\n\
    [source.vendored]\ndirectory = \"/vendor\"\n\n[net]\noffline = true\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_skeleton() {
        let found = [Kind::Toolchain, Kind::Runtime].map(|kind| {
            let mut layout = skeleton(kind).unwrap();
            finish(&mut layout).unwrap();
            layout.tree().unwrap().digest().to_string()
        });
        let golden = [
            "sha256:c8d78f75085246629a044b323d5e4beda71566d5a1d8dfec9cb5e0c25a8dba2d",
            "sha256:f89d19fd6074e851ea5955c7ade78d7f77190a3043442613a7a9d369b7980d5a",
        ];
        assert_eq!(found, golden, "what the platform adds changed: that needs a new build ABI");
    }

    #[test]
    fn links_are_made_beside_their_targets_and_never_over_files() {
        let mut layout = skeleton(Kind::Toolchain).unwrap();
        for path in ["bin/gcc", "usr/bin/mawk", "usr/bin/cpp", "bin/which", "bin/which.debianutils"] {
            layout.insert(path, Node::bytes(0o755, *b"x")).unwrap();
        }
        finish(&mut layout).unwrap();
        let target = |path: &str| match layout.node(path) {
            Some(Node::Link { target }) => Some(target.clone()),
            _ => None,
        };
        assert_eq!(target("usr/bin/cc").as_deref(), Some("gcc"));
        assert_eq!(target("usr/bin/awk").as_deref(), Some("mawk"));
        assert_eq!(target("usr/lib/cpp").as_deref(), Some("../bin/cpp"));
        assert_eq!(target("usr/bin/which"), None);
        assert_eq!(target("usr/bin/c++"), None);
        assert_eq!(layout.resolve("lib/cpp", true).unwrap(), "usr/bin/cpp");
    }

    #[test]
    fn keeps_licences_and_drops_manuals() {
        assert!(keeps("usr/share/doc/gcc/copyright"));
        assert!(keeps("usr/share/common-licenses/GPL-3"));
        assert!(keeps("usr/share/manifest"));
        for path in ["usr/share/man/man1/gcc.1.gz", "usr/share/doc/gcc/changelog.gz", "usr/share/info/dir"] {
            assert!(!keeps(path), "{path}");
        }
    }

    #[test]
    fn the_environment_is_a_fixed_list() {
        let own = [("CC".to_owned(), "gcc".to_owned())].into();
        let env = environment(Template::Make, &own, 2, 315_532_800, None);
        assert_eq!(env["SOURCE_DATE_EPOCH"], "315532800");
        assert_eq!(env["CC"], "gcc");
        assert_eq!(env.len(), 14);
        assert!(!env.contains_key("ADAMANT_COMMIT"));
    }
}
