use adamant_digest::Digest;
use adamant_recipe::{Lock, Package, PackageSet, Recipe, UrlInput, diff, lock_agrees};
use proptest::prelude::*;

fn package(name: &str, version: &str) -> Package {
    Package {
        name: name.into(),
        version: version.into(),
        arch: "amd64".into(),
        digest: Digest::of(format!("{name}{version}").as_bytes()),
        size: 10,
        path: format!("pool/main/{name}_{version}_amd64.deb"),
    }
}

fn lock() -> Lock {
    let mut lock = Lock::new("bookworm");
    lock.packages = vec![package("make", "4.3-4.1"), package("gcc", "4:12.2.0-3")];
    let request = vec!["gcc".into(), "make".into()];
    let packages = lock.packages.iter().map(Package::id).collect();
    lock.sets.insert("web.toolchain".into(), PackageSet { request, packages });
    lock.urls.push(UrlInput { name: "src".into(), url: "https://h/f".into(), digest: Digest::of(b"f"), size: 1 });
    lock.sort();
    lock
}

const TEXT: &str = r#"# Written by `adamant lock`. Commit it; the server keeps every byte it names.
version = 1
abi = 1
epoch = 315532800
debian = "bookworm"

[set."web.toolchain"]
request = ["gcc", "make"]
packages = [
  "gcc=4:12.2.0-3",
  "make=4.3-4.1",
]

[[package]]
name = "gcc"
version = "4:12.2.0-3"
arch = "amd64"
sha256 = "0a55f0e39cf4e3bc5d9b0ad3edb36c4cd1f7ee0c9fcfc2f5d7e2b3a0f2cb2a11"
size = 10
path = "pool/main/gcc_4:12.2.0-3_amd64.deb"
"#;

#[test]
fn text_is_deterministic_and_comes_back() {
    let text = lock().to_string();
    let head = TEXT.split("sha256").next().unwrap();
    assert!(text.starts_with(head), "{text}");
    let mut shuffled = lock();
    shuffled.packages.reverse();
    shuffled.sets.get_mut("web.toolchain").unwrap().packages.reverse();
    assert_eq!(shuffled.to_string(), text);
    assert_eq!(Lock::parse(&text).unwrap(), lock());
}

#[test]
fn refusals() {
    let good = lock().to_string();
    let check = |from: &str, to: &str, expect: &str| {
        assert!(good.contains(from), "{from} is not in the text");
        let error =
            Lock::parse(&good.replacen(from, to, 1)).map_or_else(|error| error.to_string(), |_| "parsed".into());
        assert!(error.starts_with("adamant.lock:") && error.contains(expect), "{from} → {to}: {error}");
    };
    let gcc = format!("sha256 = \"{}\"\n", Digest::of(b"gcc4:12.2.0-3").hex());
    check("version = 1\n", "version = 2\n", "2:11: version 2 is not known here, only 1");
    check("version = 1\n", "", "`version` is missing");
    check(&gcc, "", "package `gcc` is an input without a digest: run `adamant lock`");
    check(&gcc, "sha256 = \"00\"\n", "sha256 is not 64 lower-case hex digits");
    check("  \"make=4.3-4.1\",\n", "", "package `make=4.3-4.1` is in no set");
    check("  \"make=4.3-4.1\",\n", "  \"make=5\",\n", "`make=5`, an input without a digest: run `adamant lock`");
    check("  \"make=4.3-4.1\",\n", "  \"make\",\n", "`make` has no version");
    check("name = \"make\"\nversion = \"4.3-4.1\"", "name = \"gcc\"\nversion = \"4:12.2.0-3\"", "is in it twice");
    check("pool/main/make", "../main/make", "not a relative path");
    check("pool/main/make", "pool/a b", "not a path in a Debian mirror");
    check("size = 10", "size = -1", "write a whole number");
    check("size = 10", "sise = 10", "did you mean `size`?");
    check("web.toolchain", "web.tools", "`web.tools` is not a set");
    check("https://h/f", "file:///f", "is not an address");
    let twice = format!("{good}{}", &good[good.find("\n[[url]]").unwrap()..]);
    assert!(Lock::parse(&twice).unwrap_err().to_string().contains("url `src` is in it twice"));
}

#[test]
fn agreement() {
    let recipe = |toolchain: &str, rest: &str| {
        let text = format!(
            "project = \"shop\"\n[web]\nkind = \"make\"\ntoolchain = {toolchain}\nfiles = {{ \"/a\" = \"a\" }}\nsources = [\"src\"]\n{rest}"
        );
        Recipe::parse(&text, &|_| false).unwrap()
    };
    let source = "[sources.src]\nurl = \"https://h/f\"\n";
    let check = |recipe: &Recipe, expect: &str| {
        let found = lock_agrees(recipe, &lock()).map_or_else(|error| error.to_string(), |()| "yes".into());
        assert!(found.contains(expect), "{found}");
    };
    check(&recipe("[\"make\", \"gcc\"]", source), "yes");
    check(&recipe("[\"make\"]", source), "answers [\"gcc\", \"make\"]: run `adamant lock`");
    check(&recipe("[\"make\", \"gcc=9\"]", source), "run `adamant lock`");
    check(&recipe("[\"make\", \"gcc\"]", &format!("runtime = [\"libc6\"]\n{source}")), "has nothing for `web.runtime`");
    check(
        &recipe("[\"make\", \"gcc\"]", "[sources.src]\nurl = \"https://h/g\"\n"),
        "is https://h/g in adamant.toml and https://h/f",
    );
    let pinned = format!("{source}sha256 = \"{}\"\n", Digest::of(b"g").hex());
    check(&recipe("[\"make\", \"gcc\"]", &pinned), "run `adamant lock`, which fetches and compares");
    let mut old = lock();
    old.abi = 9;
    assert!(lock_agrees(&recipe("[\"make\", \"gcc\"]", source), &old).unwrap_err().to_string().contains("build ABI 9"));
    let mut stale = lock();
    let set = stale.sets["web.toolchain"].clone();
    stale.sets.insert("old.toolchain".into(), set);
    assert!(
        lock_agrees(&recipe("[\"make\", \"gcc\"]", source), &stale)
            .unwrap_err()
            .to_string()
            .contains("`old.toolchain`")
    );
    let mut url = lock();
    url.urls[0].name = "other".into();
    let error = lock_agrees(&recipe("[\"make\", \"gcc\"]", source), &url).unwrap_err().to_string();
    assert!(error.contains("source `src` is an input without a digest"), "{error}");
}

#[test]
fn changes() {
    let mut new = lock();
    new.packages[0] = package("gcc", "4:13");
    new.packages.push(package("tar", "1"));
    new.packages.retain(|package| package.name != "make");
    new.urls[0].digest = Digest::of(b"moved");
    let shown: Vec<String> = diff(&lock(), &new).iter().map(ToString::to_string).collect();
    let moved = format!("~ source src {} → {}", Digest::of(b"f"), Digest::of(b"moved"));
    assert_eq!(
        shown,
        [
            "~ package gcc:amd64 4:12.2.0-3 → 4:13",
            "- package make:amd64 4.3-4.1",
            "+ package tar:amd64 1",
            moved.as_str()
        ]
    );
    assert!(diff(&lock(), &lock()).is_empty());
}

prop_compose! {
    fn any_package()(name in "[a-z0-9][a-z0-9+.-]{1,12}", version in "[0-9][0-9a-z.+~:-]{0,8}", seed in any::<u64>(), all in any::<bool>()) -> Package {
        Package {
            path: format!("pool/{name}_{version}.deb"),
            arch: if all { "all" } else { "amd64" }.to_owned(),
            digest: Digest::of(&seed.to_le_bytes()),
            size: seed >> 40,
            name,
            version,
        }
    }
}

proptest! {
    #[test]
    fn round_trip(packages in proptest::collection::vec(any_package(), 0..20), url in "https://[a-z]{1,9}/[a-zA-Z0-9_.~%?=&-]{0,20}") {
        let mut lock = Lock::new("bookworm");
        let mut seen = std::collections::BTreeSet::new();
        lock.packages = packages.into_iter().filter(|package| seen.insert(package.name.clone())).collect();
        let ids = lock.packages.iter().map(Package::id).collect();
        lock.sets.insert("web.toolchain".to_owned(), PackageSet { request: vec![], packages: ids });
        lock.urls.push(UrlInput { name: "u".into(), url, digest: Digest::of(b"u"), size: 7 });
        lock.sort();
        let text = lock.to_string();
        let read = Lock::parse(&text);
        prop_assert_eq!(read.as_ref(), Ok(&lock), "{}", text);
        prop_assert_eq!(read.unwrap().to_string(), text);
    }
}
